"""The main job from the command line, and its refusals with their exit codes."""

import gzip
import hashlib
import io
import json
import tarfile
import time
from pathlib import Path

import pytest

from tests.e2e.program import Program, tree

CREATED = {"id", "type", "state", "size_bytes", "stored_bytes", "duration_ms", "checksums"}
LISTED = {"id", "type", "timestamp", "state", "tags", "checksums"}
RESTORED = {"id", "state", "safety_backup", "duration_ms", "checks"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "assets"
    (top / "sub").mkdir(parents=True)
    (top / "a.txt").write_text("one")
    (top / "sub" / "b.bin").write_bytes(bytes(range(256)) * 500)
    (top / "link").symlink_to("a.txt")
    return top


def test_protect_lose_restore_export(program: Program, folder: Path, tmp_path: Path) -> None:
    """Goal: the first recovery, as a script would do it; every field that the command line promises is there."""
    program.tenant("aurora", assets=folder)
    full = program.backup("aurora", "full", "--tag", "first")
    assert full.keys() >= CREATED
    assert set(full["checksums"]) == {"database", "assets", "configurations", "manifest"}
    (folder / "new").write_text("new")
    incremental = program.backup("aurora", "incremental")
    want = tree(folder)
    (folder / "a.txt").unlink()
    (folder / "sub" / "b.bin").write_bytes(b"overwritten")
    restored = program.restore(incremental["id"], "aurora")
    assert restored.keys() >= RESTORED
    assert restored["state"] == "succeeded"
    assert all(check["passed"] for check in restored["checks"])
    assert tree(folder) == want
    listed = program("backup", "list", "aurora")["data"]
    assert [row["id"] for row in listed] == [restored["safety_backup"], incremental["id"], full["id"]]
    assert all(row.keys() >= LISTED for row in listed)
    verified = program("backup", "verify", full["id"], "--deep", "--here")
    assert (verified["status"], verified["findings"]) == ("passed", [])
    exported = program("backup", "export", incremental["id"], "--output", tmp_path / "out")
    _check_export(tmp_path / "out", exported["files"], want)
    assert program("audit", "verify")


def _check_export(out: Path, files: list[str], want: dict[str, tuple[int, bytes]]) -> None:
    """The export is read here by standard means only."""
    assert set(files) == {"assets.tar.gz", "manifest.json", "SHA256SUMS"} == {path.name for path in out.iterdir()}
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert json.loads((out / "manifest.json").read_text())["type"] == "incremental"
    packed = io.BytesIO(gzip.decompress((out / "assets.tar.gz").read_bytes()))
    with tarfile.open(fileobj=packed) as archive:
        found = {member.name.removeprefix("./"): archive.extractfile(member) for member in archive if member.isfile()}
        content = {name: handle.read() for name, handle in found.items() if handle}
    assert content == {name: data for name, (mode, data) in want.items() if mode >> 12 == 8}


def test_refusals_have_their_exit_codes(program: Program, folder: Path, tmp_path: Path) -> None:
    """Goal: scripts can tell refusals apart, and each says what to do; provoke every one of them."""
    program.tenant("aurora", assets=folder)
    backup = program.backup("aurora")["id"]
    before = tree(folder)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    expected = [
        (2, ("tenant", "add", "Not A Slug", "--name", "x")),
        (2, ("backup", "create", "aurora", "--type", "sideways", "--here")),
        (2, ("backup", "list", "aurora", "--limit", "-1")),
        (2, ("backup", "list", "aurora", "--state", "sideways")),
        (2, ("tenant", "list", "--limit", "0")),
        (2, ("source", "add", "aurora", "x", "--kind", "nothing", "--category", "assets")),
        (2, ("restore", "run", backup, "--target", "colour=red", "--here")),
        (1, ("tenant", "add", "aurora", "--name", "again")),
        (1, ("source", "add", "aurora", "x", "--kind", "files", "--category", "assets", "--set", "path=/none/at/all")),
        (4, ("backup", "create", "nobody", "--here")),
        (4, ("backup", "create", "aurora", "--source", "none", "--here")),
        (4, ("backup", "verify", "bkp_nope", "--here")),
        (4, ("backup", "list", "aurora", "--before", "bkp_nope")),
        (4, ("backup", "import", "/none/at/all.tar.gz", "--tenant", "aurora", "--source", "assets", "--here")),
        (4, ("restore", "run", "bkp_nope", "--confirm", "aurora", "--here")),
        (6, ("restore", "run", backup, "--here")),
        (6, ("restore", "run", backup, "--confirm", "wrong", "--here")),
        (6, ("restore", "run", backup, "--target", f"path={full}", "--here")),
        (6, ("backup", "export", backup, "--output", full)),
        (6, ("backup", "delete", backup)),
    ]
    for code, args in expected:
        error = program(*args, code=code).get("error")
        assert error, args
        assert error["code"], args
        assert error["hint"] or code == 4, args
    assert tree(folder) == before
    assert [path.name for path in full.iterdir()] == ["x"]
    assert [row["id"] for row in program("backup", "list", "aurora")["data"]] == [backup]


@pytest.mark.parametrize("there", ["nothing", "an empty mount point"])
def test_a_store_that_is_away_is_never_begun_anew(program: Program, folder: Path, there: str) -> None:
    """Goal: an unmounted disk ends everything with exit 9 and a hint; take the folder away, try, and bring it back."""
    program.tenant("aurora", assets=folder)
    backup = program.backup("aurora")["id"]
    store, away = program.data / "store", program.data / "away"
    store.rename(away)
    if there != "nothing":
        store.mkdir()
    needing = [
        ("backup", "create", "aurora", "--here"),
        ("backup", "verify", backup, "--here"),
        ("backup", "prune", "aurora"),
        ("tenant", "add", "borealis", "--name", "Borealis"),
        ("store", "test", "default"),
    ]
    for args in needing:
        assert "mounted" in program(*args, code=9)["error"]["hint"], args
    doctor = program.raw("doctor", "--json").json
    (sign,) = [check for check in doctor["checks"] if check["name"] == "store default"]
    assert (sign["status"], "aurora" in sign["message"]) == ("critical", True)
    assert not store.exists() if there == "nothing" else list(store.iterdir()) == []
    if store.exists():
        store.rmdir()
    away.rename(store)
    assert program.backup("aurora", "incremental")["type"] == "incremental"
    assert [row["slug"] for row in program("tenant", "list")["data"]] == ["aurora"]


def test_a_noun_that_needs_no_verb_tells_its_verbs(program: Program) -> None:
    """Goal: `demo remove` can be found; ask `demo` for help."""
    said = program.raw("demo", "--help")
    assert said.code == 0
    assert "remove" in said.out
    assert "Without a verb: run." in said.out


def test_a_worker_does_what_was_asked(program: Program, folder: Path) -> None:
    """Goal: the queue works end to end; ask and wait, ask and leave, ask twice for one tenant."""
    program.tenant("aurora", assets=folder)
    with program.worker():
        waited = program("backup", "create", "aurora", "--wait")
        left = [program("backup", "create", "aurora", "--detach") for _ in range(2)]
        assert waited["state"] == "succeeded"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            states = {row["id"]: row["state"] for row in program("backup", "list", "aurora")["data"]}
            if set(states.values()) == {"succeeded"} and len(states) == 3:
                break
            time.sleep(0.5)
    assert len(states) == 3
    assert set(states.values()) == {"succeeded"}
    assert {each["subject"] for each in left} < states.keys()
