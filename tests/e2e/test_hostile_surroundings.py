"""Bad places for LASTRO_DATA, Ctrl-C in every phase, two commands at once: words and a documented exit code."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from core.errors import Exit
from tests.e2e.program import Program, Said, stop

DOCUMENTED = {int(code) for code in Exit}
COMMANDS = (
    ("tenant", "list"),
    ("tenant", "add", "new", "--name", "New"),
    ("store", "test", "default"),
    ("backup", "create", "aurora", "--here"),
    ("backup", "prune", "aurora"),
    ("backup", "list", "aurora"),
    ("master", "add", "somebody"),
    ("audit", "verify"),
    ("doctor",),
    ("migrate",),
    ("worker", "--quiet"),
    ("demo", "--no-serve"),
)
PHASES = (
    "operation.claimed",
    "backup.number_reserved",
    "backup.opened",
    "backup.source_read",
    "session.pack_stored",
    "index.stored",
    "backup.chunks_stored",
    "backup.before_manifest",
    "store.local.linked",
    "backup.manifest_stored",
    "backup.before_record",
    "operation.worked",
    "operation.recorded",
)


def _in_words(said: Said, doing: object) -> None:
    assert said.code in DOCUMENTED, (doing, said.code, said.err[-300:])
    assert "Traceback" not in said.out + said.err, (doing, said.err[-600:])
    assert "unforeseen" not in said.err, (doing, said.err[-600:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "assets"
    top.mkdir()
    (top / "a").write_bytes(os.urandom(300_000))
    return top


@contextmanager
def _mounted(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("place", ["file", "FIFO", "/proc/none", "link to nothing", "odd\nname", "not UTF-8 \udcff"])
def test_a_data_folder_that_cannot_be_one(program: Program, tmp_path: Path, place: str) -> None:
    """Goal: a slip in LASTRO_DATA is told, and taken for nothing else; name what is no folder, and odd names."""
    odd = tmp_path / place.lstrip("/")
    if place == "file":
        odd.touch()
    elif place == "FIFO":
        os.mkfifo(odd)
    elif place == "link to nothing":
        odd.symlink_to(tmp_path / "none" / "at all")
    elif place.startswith("/"):
        odd = Path(place)
    said = program.raw("tenant", "list", LASTRO_DATA=str(odd))
    _in_words(said, place)
    assert said.code in (Exit.USAGE, Exit.FAILED)
    assert "hint: " in said.err


@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_a_data_folder_on_a_bad_disk(tmp_path: Path, folder: Path, disk: str) -> None:
    """Goal: no command fails in an unforeseen way; fill the disk or make it read-only, run them, then mend it."""
    with _mounted(tmp_path / "disk", "8m"):
        program = Program(tmp_path / "disk" / "data")
        program.tenant("aurora", assets=folder)
        program.backup("aurora")
        if disk == "full":
            _fill(tmp_path / "disk" / "fill")
        else:
            subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        for command in COMMANDS:
            said = program.raw(*command)
            _in_words(said, command)
            assert said.code != Exit.OK, command
        if disk == "full":
            (tmp_path / "disk" / "fill").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", tmp_path / "disk"], check=True)
        assert program.backup("aurora", "incremental")["state"] == "succeeded"


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_in_every_phase_of_a_backup(program: Program, folder: Path, phase: str) -> None:
    """Goal: interrupted is said so, or too late; press Ctrl-C at a labelled point, look, and take the next backup."""
    program.tenant("aurora", assets=folder)
    said = program.raw("backup", "create", "aurora", "--here", "--json", LASTRO_KILL_AT=phase, LASTRO_KILL_WITH="INT")
    _in_words(said, phase)
    assert said.code in (Exit.OK, Exit.INTERRUPTED), said.err
    (row,) = program("backup", "list", "aurora")["data"]
    assert row["state"] == ("succeeded" if said.code == Exit.OK else "failed")
    assert program.backup("aurora", "incremental")["state"] == "succeeded"
    assert program("operation", "list", "--state", "running")["data"] == []


def test_commands_at_once_wait_or_say_busy(program: Program, folder: Path) -> None:
    """Goal: the catalogue survives a crowd; start many commands together and read what each one says."""
    program.tenant("aurora", assets=folder)
    crowd = [
        program.start(*command, "--json")
        for command in (
            *[("backup", "create", "aurora", "--here")] * 3,
            *[("tenant", "add", "borealis", "--name", "Borealis")] * 2,
            *[("store", "add", "second", "--kind", "local", "--set", f"path={folder.parent}/second")] * 2,
            ("source", "set", "aurora", "assets", "--class", "critical"),
            ("backup", "prune", "aurora"),
        )
    ]
    try:
        ended = [(each.communicate(timeout=120), each.returncode) for each in crowd]
    finally:
        for each in crowd:
            stop(each)
    for (out, err), code in ended:
        _in_words(Said(code, out, err), out[:200])
        assert code in (Exit.OK, Exit.FAILED, Exit.BUSY), err
    codes = [code for _, code in ended]
    assert 0 in codes[:3]
    assert sorted(codes[3:5]) == [Exit.OK, Exit.FAILED]
    assert sorted(codes[5:7]) == [Exit.OK, Exit.FAILED]
    assert program("audit", "verify")
