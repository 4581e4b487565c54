"""The golden repository of every released version, read by today's engine and by the standalone reader."""

import ast
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import WrongKey
from engine.keys import RootKey
from engine.kit import kit_export, kit_open
from engine.progress import NullProgress
from engine.rebuild import index_rebuild
from engine.verify import verify_backup
from stores.local import LocalConfig, LocalStore
from tests.formats.golden import (
    GOLDEN,
    PASSPHRASE,
    REPOSITORY,
    ROOT_KEY,
    back_up,
    change_sources,
    describe,
    make,
    make_sources,
    open_repository,
)

READER = Path(__file__).parent.parent.parent / "docs" / "formats" / "reader.py"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def run(*arguments: Any, passphrase: str = PASSPHRASE) -> subprocess.CompletedProcess[str]:
    """The reader as a process of its own, which cannot import anything of ours."""
    env = {"PATH": os.environ["PATH"], "LASTRO_KIT_PASSPHRASE": passphrase, "PYTHONUTF8": "1"}
    command = [sys.executable, "-P", str(READER), *map(str, arguments)]
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)


def extracted(folder: Path) -> dict[str, Any]:
    """What the reader wrote, in the form of golden.describe."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name, status = str(path.relative_to(folder)), path.lstat()
        if "/" not in name:
            continue
        source, _, rest = name.partition("/")
        if source in ("assets", "log"):
            top, _, inside = rest.partition("/")
            link = stat.S_ISLNK(status.st_mode)
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else None
            when = 0 if link or not inside else status.st_mtime_ns // 10**9
            found[f"{source}/{top}/{inside}"] = [oct(status.st_mode), when, os.readlink(path) if link else digest]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_link_times(expected: dict[str, Any]) -> dict[str, Any]:
    """The reader keeps no times of symbolic links."""
    return {
        name: [value[0], 0, value[2]] if isinstance(value, list) and value[0].startswith("0o12") else value
        for name, value in expected.items()
    }


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


@pytest.mark.parametrize("backup", EXPECTED)
def test_engine_reads_the_golden_repository(golden: Path, backup: str) -> None:
    """Goal: every released version stays readable. Method: read all of it and compare with what was recorded."""
    repository = open_repository(golden / "store")
    manifest = next(each for each in repository.manifests() if each.document["id"] == backup)
    assert describe(repository, manifest) == EXPECTED[backup]
    assert verify_backup(repository, manifest, deep=True, progress=NullProgress()) == []


def test_engine_writes_on_where_the_golden_repository_ends(golden: Path, tmp_path: Path) -> None:
    """Goal: an old repository takes new backups. Method: an incremental on top, read by engine and reader."""
    repository = open_repository(golden / "store")
    parent = repository.manifest(2)
    inputs = make_sources(tmp_path / "sources")
    change_sources(tmp_path / "sources")
    manifest = back_up(repository, inputs, 5, parent)
    assert run(golden / "store", golden / "kit.json", "extract", "bkp_golden_5", tmp_path / "out").returncode == 0
    assert extracted(tmp_path / "out") == without_link_times(describe(repository, manifest))


def test_golden_kit_opens() -> None:
    """Goal: released kits stay readable. Method: open it, rightly and wrongly."""
    root, rows = kit_open((GOLDEN / "kit.json").read_bytes(), PASSPHRASE)
    assert root.key_id == ROOT_KEY.key_id
    assert [row["repository_id"] for row in rows] == [REPOSITORY]
    with pytest.raises(WrongKey):
        kit_open((GOLDEN / "kit.json").read_bytes(), PASSPHRASE + "x")


# ---------------------------------------------------------------- the standalone reader


def test_reader_is_short_and_depends_on_nothing_of_ours() -> None:
    """Goal: it proves the document. Method: count its lines, look at its imports."""
    text = READER.read_text()
    assert len(text.splitlines()) < 300
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"cryptography", "zstandard", "blake3"}


def test_reader_lists_backups() -> None:
    """Goal: list without Lastro. Method: run it on the golden repository; the void record does not show."""
    done = run(GOLDEN / "store", GOLDEN / "kit.json", "list")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("bkp_golden_1", "full", "assets,shop,log"),
        ("bkp_golden_2", "incremental", "assets,shop,log"),
        ("bkp_golden_4", "full", "assets,shop,log"),
    ]


@pytest.mark.parametrize("backup", EXPECTED)
@pytest.mark.parametrize("index", ["whole", "lost"])
def test_reader_extracts_exactly(golden: Path, tmp_path: Path, backup: str, index: str) -> None:
    """Goal: extract without Lastro. Method: compare each file and table with what was recorded; the index is lost."""
    if index == "lost":
        shutil.rmtree(golden / "store" / "r" / REPOSITORY / "index")
    done = run(golden / "store", golden / "kit.json", "extract", backup, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert extracted(tmp_path / "out") == without_link_times(EXPECTED[backup])
    out = tmp_path / "out" / "assets" / "files"
    assert (out / "hard link").stat().st_ino == (out / "docs" / "hello.txt").stat().st_ino


def test_reader_reads_what_today_s_engine_writes(tmp_path: Path) -> None:
    """Goal: document and engine agree today. Method: make the repository anew and extract every backup."""
    make(tmp_path / "new")
    expected = json.loads((tmp_path / "new" / "expected.json").read_text())
    for backup in expected:
        done = run(tmp_path / "new" / "store", tmp_path / "new" / "kit.json", "extract", backup, tmp_path / backup)
        assert (done.returncode, done.stderr) == (0, "")
        assert extracted(tmp_path / backup) == without_link_times(expected[backup])


def test_engine_rebuilds_the_golden_index(golden: Path) -> None:
    """Goal: an index is never needed. Method: lose it, rebuild it from the packs, read a backup."""
    shutil.rmtree(golden / "store" / "r" / REPOSITORY / "index")
    repository = open_repository(golden / "store")
    rebuilt = index_rebuild(repository, repository.sealed, NullProgress(), skip=frozenset())
    assert rebuilt.damaged == ()
    assert describe(repository, repository.manifest(2)) == EXPECTED["bkp_golden_2"]


def test_reader_opens_tenants_made_after_the_kit(golden: Path, tmp_path: Path) -> None:
    """Goal: an old kit serves new tenants. Method: a kit that names no repository."""
    (golden / "kit.json").write_bytes(kit_export(ROOT_KEY, PASSPHRASE, []))
    assert run(golden / "store", golden / "kit.json", "extract", "bkp_golden_1", tmp_path / "out").returncode == 0


def test_reader_refuses_wrong_passphrase_unknown_backup_and_foreign_keyring(golden: Path, tmp_path: Path) -> None:
    """Goal: no silence. Method: each mistake ends with a message and exit code 1."""
    store, kit = golden / "store", golden / "kit.json"
    assert run(store, kit, "list", passphrase="wrong passphrase").returncode == 1
    assert run(store, kit, "extract", "bkp_other", tmp_path / "out").returncode == 1
    assert run(store, kit).returncode == 1
    document = json.loads(kit.read_bytes())
    document["repositories"][0]["public_key"] = "00" * 32
    kit.write_text(json.dumps(document))
    assert run(store, kit, "list").returncode == 1


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("wrong passphrase", "passphrase"),
        ("no passphrase", "passphrase"),
        ("no kit", "No such file"),
        ("garbage for a kit", "no kit"),
        ("another kit", "does not fit"),
        ("wrong folder", "holds no repository"),
        ("no folder", "holds no repository"),
        ("empty store", "holds no repository"),
        ("a file for a store", "holds no repository"),
        ("unknown backup", "holds no backup bkp_other"),
        ("folder exists", "File exists"),
        ("damaged keyring", "does not fit"),
        ("damaged manifest", "cannot"),
        ("unknown verb", "reader.py STORE KIT list"),
        ("too many words", "reader.py STORE KIT list"),
        ("nothing", "reader.py STORE KIT list"),
    ],
)
@pytest.mark.parametrize("verb", ["list", "extract"])
def test_reader_says_in_one_line_what_is_wrong(
    golden: Path, tmp_path: Path, mistake: str, said: str, verb: str
) -> None:
    """Goal: somebody in trouble reads no traceback. Method: make each mistake; one line (or the usage), exit code 1."""
    out = tmp_path / "out"
    more = ["bkp_golden_1", out] if verb == "extract" else []
    words, passphrase = [golden / "store", golden / "kit.json", verb, *more], PASSPHRASE
    base = golden / "store" / "r" / REPOSITORY
    if mistake in ("wrong passphrase", "no passphrase"):
        passphrase = "another one altogether" if mistake == "wrong passphrase" else "\n"
    elif mistake == "no kit":
        words[1] = tmp_path / "none.json"
    elif mistake == "garbage for a kit":
        words[1].write_bytes(b"\xff\x00 no JSON")
    elif mistake == "another kit":
        words[1].write_bytes(kit_export(RootKey.generate(), PASSPHRASE, []))
    elif mistake in ("wrong folder", "no folder", "empty store", "a file for a store"):
        words[0] = {"wrong folder": base, "a file for a store": words[1]}.get(mistake, tmp_path / "place")
        if mistake == "empty store":
            LocalStore.make(LocalConfig(path=str(words[0]))).close()
    elif mistake == "unknown backup":
        words = [*words[:2], "extract", "bkp_other", out]
    elif mistake == "folder exists":
        out.mkdir()
        words = [*words[:2], "extract", "bkp_golden_1", out]
    elif mistake == "damaged keyring":
        (base / "keyring").write_text("{}")
    elif mistake == "damaged manifest":
        (base / "manifests" / "0000000001").write_bytes(b"LSTR")
    else:
        words = {"unknown verb": [*words[:2], "lst"], "too many words": [*words, "x"], "nothing": []}[mistake]
    done = run(*words, passphrase=passphrase)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 or said.startswith("reader.py")


def test_reader_finds_every_damage(golden: Path, tmp_path: Path, seed: int) -> None:
    """Goal: exact bytes or exit code 1. Method: flip a bit in each object that the backup needs, cut one off."""
    import random

    rng, base = random.Random(seed), golden / "store" / "r" / REPOSITORY
    for path in sorted(base / name for name in ("manifests/0000000001", "keyring")):
        _refused(golden, tmp_path, path, rng)
    for sort in ("data", "meta"):
        for path in sorted((base / sort).glob("??/*")):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            done = run(golden / "store", golden / "kit.json", "extract", "bkp_golden_2", tmp_path / "out")
            assert done.returncode == 1
            assert "not readable" in done.stderr
            path.write_bytes(content)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)


def _refused(golden: Path, tmp_path: Path, path: Path, rng: Any) -> None:
    content = path.read_bytes()
    for _ in range(4):
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
        done = run(golden / "store", golden / "kit.json", "extract", "bkp_golden_1", tmp_path / "out")
        if done.returncode == 0:  # A byte that carries nothing, such as white space in the keyring's JSON.
            assert extracted(tmp_path / "out") == without_link_times(EXPECTED["bkp_golden_1"])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    path.write_bytes(content)
