"""The files connector: settings, patterns, reading, restoring in place and elsewhere, export."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from connectors.files import FilesConfig, FilesConnector
from engine.adapters import parse_config
from engine.errors import SourceChanged, SourceUnreachable, SourceUnsupported, UsageError
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.views import StoredSource
from tests.engine.tree_samples import fingerprint, fresh_repository, hostile_tree, save, write


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return fresh_repository(tmp_path)


def _connector(path: Path, exclude: str = "") -> FilesConnector:
    return FilesConnector(parse_config(FilesConfig, {"path": str(path), "exclude": exclude}))


def _view(repository: Repository, connector: FilesConnector) -> StoredSource:
    with connector.open(NullProgress()) as reader:
        (part,) = reader.trees()
        saved = save(repository, part.root, exclude=part.exclude, one_file_system=part.one_file_system)
        facts = {**reader.facts, **reader.finish()}
    return StoredSource("assets", "files", "assets", reader.position, facts, (), (saved.view,), {})


def test_round_trip_in_place_and_elsewhere(repository: Repository, tmp_path: Path) -> None:
    """Goal: restore() gives back what open() read, proven; in place over damage, and at another folder."""
    connector = _connector(hostile_tree(tmp_path / "tree"))
    view, wanted = _view(repository, connector), fingerprint(tmp_path / "tree")
    (tmp_path / "tree" / "big.bin").write_bytes(b"damaged")
    (tmp_path / "tree" / "new\nline").unlink()
    request = RestoreRequest(label="rst_1", overwrite=True, prove=True)
    report = connector.restore(view, request, NullProgress())
    assert fingerprint(tmp_path / "tree") == wanted
    assert {check.name for check in report.checks if check.passed} == {
        "checksum_verification", "asset_completeness", "data_integrity",
    }  # fmt: skip
    elsewhere = connector.at({"path": str(tmp_path / "there")})
    elsewhere.restore(view, RestoreRequest(label="rst_2", in_place=False, prove=True), NullProgress())
    assert fingerprint(tmp_path / "there") == wanted


def test_excluded_then_or_now_stays(repository: Repository, tmp_path: Path) -> None:
    """Goal: nothing that no backup holds is lost; patterns of the backup's day and of today both protect."""
    root = tmp_path / "tree"
    write(root / "keep", b"1")
    write(root / "cache" / "old", b"2")
    view = _view(repository, _connector(root, "/cache"))
    write(root / "logs" / "today", b"3")
    write(root / "stray", b"4")
    request = RestoreRequest(label="rst_1", overwrite=True, prove=True)
    report = _connector(root, "logs/").restore(view, request, NullProgress())
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["keep", "old", "today"]
    assert all(check.passed for check in report.checks)
    assert report.files is not None
    assert report.files.removed == 1


def test_export_is_read_by_gnu_tar(repository: Repository, tmp_path: Path) -> None:
    """Goal: the portable export needs no Lastro; unpack it with tar and compare everything."""
    connector = _connector(hostile_tree(tmp_path / "tree"))
    wanted = fingerprint(tmp_path / "tree")
    view = _view(repository, connector)
    (tmp_path / "export").mkdir()
    assert connector.export(view, str(tmp_path / "export"), NullProgress()) == ["assets.tar.gz"]
    (tmp_path / "out").mkdir()
    unpack = ["tar", "-xpzf", tmp_path / "export" / "assets.tar.gz", "-C", tmp_path / "out", "--numeric-owner"]
    done = subprocess.run(
        [*unpack, "--xattrs", "--xattrs-include=*"],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "out") == wanted
    assert (tmp_path / "out" / "sparse").stat().st_blocks == 0


def test_export_is_read_by_python(repository: Repository, tmp_path: Path) -> None:
    """Goal: another reader agrees; list names and sums with tarfile."""
    import tarfile

    connector = _connector(hostile_tree(tmp_path / "tree"))
    connector.export(_view(repository, connector), str(tmp_path), NullProgress())
    found: dict[bytes, Any] = {}
    with tarfile.open(tmp_path / "assets.tar.gz") as archive:
        for member in archive:
            name = os.path.normpath(member.name.encode("utf-8", "surrogateescape"))
            stream = archive.extractfile(member) if member.isfile() or member.islnk() else None
            found[name] = hashlib.sha256(stream.read()).hexdigest() if stream else None
    wanted = {
        path: hashlib.sha256(seen[4]).hexdigest() if seen[0] >> 12 == 8 else None
        for path, seen in fingerprint(tmp_path / "tree").items()
    }
    assert found == wanted


def test_settings_are_tried(tmp_path: Path) -> None:
    """Goal: a mistake is found on saving, with advice; missing, a file, empty, relative, a bad pattern."""
    write(tmp_path / "tree" / "f", b"x")
    assert _connector(tmp_path / "tree").test().warnings == ()
    (tmp_path / "empty").mkdir()
    assert "empty" in _connector(tmp_path / "empty").test().warnings[0]
    for wrong in (tmp_path / "none", tmp_path / "tree" / "f"):
        with pytest.raises(SourceUnreachable) as caught:
            _connector(wrong).test()
        assert caught.value.hint
    with pytest.raises(UsageError, match="absolute"):
        _connector(Path("relative"))
    with pytest.raises(UsageError, match="does not close"):
        _connector(tmp_path, "a[b")
    with pytest.raises(UsageError, match="no target setting"):
        _connector(tmp_path).at({"dsn": "x"})
    with pytest.raises(SourceUnsupported):
        _connector(tmp_path).open_package("x.tar.gz", NullProgress())


def test_root_that_is_swapped_while_read(tmp_path: Path) -> None:
    """Goal: an unmount in mid-backup is no backup of an empty folder; replace the root between open and finish."""
    write(tmp_path / "tree" / "f", b"x")
    with _connector(tmp_path / "tree").open(NullProgress()) as reader:
        (tmp_path / "tree").rename(tmp_path / "away")
        (tmp_path / "tree").mkdir()
        with pytest.raises(SourceChanged):
            reader.finish()


PATTERNS = [
    ("*.log", "a.log d/b.log", "a.logs log"),
    ("/cache", "cache", "d/cache"),
    ("tmp/", "tmp/ d/tmp/", "tmp d/tmp"),
    ("var/cache", "var/cache", "x/var/cache"),
    ("**/build", "build a/build a/b/build", "rebuild"),
    ("a/**/b", "a/b a/x/b a/x/y/b", "a/xb xa/b"),
    ("logs/**", "logs/x logs/x/y", "logs"),
    ("f?o", "foo f\u00fco f\u20aco", "fo f/o fooo"),
    ("[a-c]x", "ax bx", "dx"),
    ("[!a-c]x", "dx -x", "ax /x"),
    ("[]x]", "] x", "y"),
    ("*.log\n!keep.log", "a.log", "keep.log d/keep.log"),
    ("!keep.log\n*.log", "keep.log", "x"),
    ("# comment\n\\#file\n\\!file", "#file !file", "file"),
    ("trail\\ \nlead  ", "trail\\s lead", "trail"),
    ("a\\*b", "a*b", "axb"),
    ("(x)|.y$", "(x)|.y$", "x y"),
    ("*\u00fc*", "\u00fc a\u00fcb", "u"),
]


@pytest.mark.parametrize(("lines", "out", "kept"), PATTERNS)
def test_patterns_leave_out_what_they_say(tmp_path: Path, lines: str, out: str, kept: str) -> None:
    """Goal: the documented syntax, pattern by pattern; a trailing slash marks a folder, \\s stands for a blank."""
    from connectors._files.patterns import Patterns

    patterns = Patterns(lines.split("\n"))
    for names, wanted in ((out, True), (kept, False)):
        for name in names.split(" "):
            path = os.fsencode(name.replace("\\s", " "))
            assert patterns(path.rstrip(b"/"), path.endswith(b"/")) is wanted, name


def test_patterns_at_work(repository: Repository, tmp_path: Path) -> None:
    """Goal: excluded folders are not entered, and kept files in kept folders stay; non-UTF-8 names too."""
    root = tmp_path / "tree"
    for name in ("a.log", "keep.log", "d/b.log", "cache/keep.log", "d/cache/x", "d/file"):
        write(root / name, b"x")
    with open(os.fsencode(root) + b"/\xff.log", "wb"):
        pass
    view = _view(repository, _connector(root, "*.log\n!keep.log\n/cache"))
    paths = {entry.path for entry in view.trees[0].entries() if entry.is_file}  # type: ignore[attr-defined]
    assert paths == {b"keep.log", b"d/cache/x", b"d/file"}
    assert _connector(root, "/cache").leaves_out(b"cache")
