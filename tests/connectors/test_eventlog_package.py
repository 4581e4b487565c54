"""The portable package: written and read as the owner's tool does, and never trusted."""

import datetime
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from connectors._eventlog import package_read as module
from connectors._eventlog.capture import list_segments
from connectors._eventlog.package import PackageManifest, sorted_files, write_package
from connectors._eventlog.verified import verify_folder
from connectors.eventlog import restore_package
from engine.errors import DamageError, LastroError, SourceUnreachable, SourceUnsupported, TargetOccupied
from engine.progress import NullProgress
from engine.repository import Repository
from tests.connectors.eventlog_samples import encode, log_files, segment_path, write_log
from tests.connectors.test_eventlog import REAL, back_up, connector, read_into, repository, restore

__all__ = ["repository"]  # A fixture.

MOMENT = datetime.datetime(2025, 12, 23, 17, 43, 43, 700_000, tzinfo=datetime.UTC)


def manifest_of(data: Path) -> PackageManifest:
    verified = verify_folder(data, list_segments(data / "event-log")[0], NullProgress())
    return PackageManifest(MOMENT, "./data", sorted_files(verified.files), verified.summary, verified.chain_valid)


def pack(data: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / write_package(data, manifest_of(data), folder, NullProgress())[0]


def members(package: Path) -> dict[str, bytes]:
    with tarfile.open(package) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isreg()}  # type: ignore[union-attr]


def repack(package: Path, entries: Sequence[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    """Replace a package's members; its manifest beside it goes away, as with an upload."""
    package.with_name(package.name.replace(".tar.gz", ".manifest.json")).unlink(missing_ok=True)
    with tarfile.open(package, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_log(tmp_path / "data", 47)
    return pack(tmp_path / "data", tmp_path / "packages")


def refused(package: Path, tmp_path: Path, *, match: str | None = None) -> LastroError:
    """The package is refused and nothing appears at the target."""
    with pytest.raises(LastroError, match=match) as caught:
        restore_package(str(package), str(tmp_path / "target"))
    assert isinstance(caught.value, DamageError | SourceUnsupported)
    assert caught.value.hint
    assert not (tmp_path / "target").exists()
    return caught.value


# ---------------------------------------------------------------- writing


def test_manifest_equals_the_one_the_owners_tool_wrote() -> None:
    """Goal: byte-identical manifests. Method: our manifest of the real log against the reference."""
    assert manifest_of(REAL).encode() == (REAL / "reference.manifest.json").read_bytes()


def test_export_writes_package_and_manifest(tmp_path: Path, repository: Repository) -> None:
    """Goal: the format of the document. Method: export a backup of the real log and unpack it with tar."""
    view = back_up(repository, REAL)
    out = tmp_path / "out"
    out.mkdir()
    packed, beside = connector(REAL).export(view, str(out), NullProgress())  # type: ignore[arg-type]
    stem = re.fullmatch(r"(backup-eventlog-(\d{8}-\d{6}))\.tar\.gz", packed)
    assert stem
    assert beside == f"{stem[1]}.manifest.json"
    manifest = json.loads((out / beside).read_bytes())
    reference = json.loads((REAL / "reference.manifest.json").read_bytes())
    assert list(manifest) == list(reference)
    for field in ("version", "files", "eventlog_summary", "chain_valid_at_backup"):
        assert manifest[field] == reference[field]
    assert manifest["source_dir"] == str(REAL)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", manifest["created_at"])
    assert re.sub(r"[-:]", "", manifest["created_at"])[:15].replace("T", "-") == stem[2]
    assert manifest["created_at"] == view.position["at"]
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "-xzf", out / packed, "-C", tmp_path / "x"], check=True)
    assert (tmp_path / "x" / "manifest.json").read_bytes() == (out / beside).read_bytes()
    assert log_files(tmp_path / "x") == log_files(REAL)
    assert sorted(os.listdir(out)) == sorted([packed, beside])
    with pytest.raises(TargetOccupied):
        connector(REAL).export(view, str(out), NullProgress())  # type: ignore[arg-type]


def test_packages_of_equal_logs_are_equal(tmp_path: Path) -> None:
    """Goal: a package depends on the log and the backup's time alone. Method: pack the same log twice."""
    write_log(tmp_path / "data", 47)
    first, second = pack(tmp_path / "data", tmp_path / "a"), pack(tmp_path / "data", tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("events", [0, 47])
def test_package_is_imported_and_restored(tmp_path: Path, repository: Repository, events: int) -> None:
    """Goal: out and in again. Method: package to backup to folder, package to folder; all byte-identical."""
    (tmp_path / "data" / "event-log").mkdir(parents=True)
    write_log(tmp_path / "data", events)
    package = pack(tmp_path / "data", tmp_path / "packages")
    progress = NullProgress()
    view, _ = read_into(repository, connector(tmp_path / "data").open_package(str(package), progress), progress)
    assert progress.warnings == []
    assert view.position["at"] == "2025-12-23T17:43:43.700Z"
    assert view.facts["source_dir"] == "./data"
    restore(view, tmp_path / "one")
    report = restore_package(str(package), str(tmp_path / "two"))
    assert all(check.passed for check in report.checks)
    assert log_files(tmp_path / "one") == log_files(tmp_path / "two") == log_files(tmp_path / "data")
    (tmp_path / "again").mkdir()
    connector(tmp_path).export(view, str(tmp_path / "again"), NullProgress())  # type: ignore[arg-type]
    assert (tmp_path / "again" / package.name).read_bytes() == package.read_bytes()


@pytest.mark.parametrize("style", ["gnu", "v7", "ustar", "posix"])
@pytest.mark.parametrize("where", [".", "inside"])
def test_packages_of_other_tools_are_read(package: Path, tmp_path: Path, style: str, where: str) -> None:
    """Goal: what tar writes is read. Method: every header style, `./` prefixes with folders, a folder around it all."""
    stem = package.name.removesuffix(".tar.gz")
    source = tmp_path / stem
    source.mkdir()
    subprocess.run(["tar", "-xzf", package, "-C", source], check=True)
    top, what = (source, ".") if where == "." else (tmp_path, stem)
    made = tmp_path / "made" / package.name
    made.parent.mkdir()
    subprocess.run(["tar", f"--format={style}", "-C", top, "-czf", made, what], check=True)
    restore_package(str(made), str(tmp_path / "target"))
    assert log_files(tmp_path / "target") == log_files(tmp_path / "data")


def test_manifest_may_lie_beside_the_package(package: Path, tmp_path: Path) -> None:
    """Goal: both places serve, and must agree. Method: leave out the inner one, then let the outer one differ."""
    beside = package.with_name(package.name.replace(".tar.gz", ".manifest.json"))
    content = beside.read_bytes()
    found = members(package)
    repack(package, [(name, data) for name, data in found.items() if name != "manifest.json"])
    assert isinstance(refused(package, tmp_path), SourceUnsupported)
    beside.write_bytes(content)
    restore_package(str(package), str(tmp_path / "target"))
    shutil.rmtree(tmp_path / "target")
    repack(package, list(found.items()))
    beside.write_bytes(content.replace(b'"./data"', b'"./date"'))
    refused(package, tmp_path, match="differ")


def test_broken_chain_travels_and_is_said(tmp_path: Path, repository: Repository) -> None:
    """Goal: a package of a broken log is imported and warned about. Method: break a log, pack it, import it."""
    data = tmp_path / "data"
    write_log(data, 47)
    segment_path(data, 3).write_bytes(b"[{]")
    package = pack(data, tmp_path / "packages")
    assert json.loads(members(package)["manifest.json"])["chain_valid_at_backup"] is False
    progress = NullProgress()
    view, _ = read_into(repository, connector(data).open_package(str(package), progress), progress)
    assert [code for code, _ in progress.warnings] == ["eventlog.chain_broken"]
    assert view.facts["chain_valid_at_backup"] is False
    restore(view, tmp_path / "restored")
    assert log_files(tmp_path / "restored") == log_files(data)


def test_a_package_that_calls_its_whole_chain_broken_is_believed_with_a_warning(package: Path, tmp_path: Path) -> None:
    """Goal: the owner's doubt is not lost. Method: chain_valid_at_backup false over a whole chain; wrong counts."""
    found = members(package)
    manifest = json.loads(found["manifest.json"])
    manifest["chain_valid_at_backup"] = False
    manifest["eventlog_summary"]["total_events"] = 46
    repack(package, [("manifest.json", encode(manifest)), *((n, c) for n, c in found.items() if n != "manifest.json")])
    progress = NullProgress()
    restore_package(str(package), str(tmp_path / "target"), progress=progress)
    assert [code for code, _ in progress.warnings] == ["eventlog.chain_broken", "eventlog.summary_differs"]


def test_restoring_over_something_needs_consent(package: Path, tmp_path: Path) -> None:
    """Goal: nothing is overwritten unasked. Method: a target with a log, without and with consent."""
    write_log(tmp_path / "target", 12)
    before = log_files(tmp_path / "target")
    with pytest.raises(TargetOccupied):
        restore_package(str(package), str(tmp_path / "target"))
    assert log_files(tmp_path / "target") == before
    restore_package(str(package), str(tmp_path / "target"), overwrite=True)
    assert log_files(tmp_path / "target") == log_files(tmp_path / "data")


# ---------------------------------------------------------------- hostile packages


def _link(name: str, kind: bytes, target: str = "/etc/passwd") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


HOSTILE: dict[str, Callable[[], tuple[tarfile.TarInfo | str, bytes]]] = {
    "absolute path": lambda: ("/tmp/lastro-escaped.json", b"x"),
    "path upwards": lambda: ("../escaped.json", b"x"),
    "path upwards inside": lambda: ("event-log/../../escaped.json", b"x"),
    "backslashes": lambda: ("..\\escaped.json", b"x"),
    "symbolic link": lambda: _link("event-log/segment-000009.json", tarfile.SYMTYPE),
    "link as folder": lambda: _link("event-log", tarfile.SYMTYPE, "/tmp"),
    "hard link": lambda: _link("event-log/segment-000009.json", tarfile.LNKTYPE, "manifest.json"),
    "device": lambda: _link("event-log/segment-000009.json", tarfile.CHRTYPE),
    "pipe": lambda: _link("event-log/segment-000009.json", tarfile.FIFOTYPE),
    "segment twice": lambda: ("event-log/segment-000002.json", b"[]"),
    "segment twice in disguise": lambda: ("./event-log//segment-000002.json", b"[]"),
    "manifest twice": lambda: ("manifest.json", b"{}"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("first", [True, False])
def test_hostile_members_are_refused(package: Path, tmp_path: Path, what: str, first: bool) -> None:
    """Goal: nothing leaves the target, nothing is half restored. Method: one hostile member before or after the rest."""
    found = list(members(package).items())
    hostile = HOSTILE[what]()
    repack(package, [hostile, *found] if first else [*found, hostile])
    refused(package, tmp_path)
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/lastro-escaped.json").exists()


def test_sparse_members_are_refused(package: Path, tmp_path: Path) -> None:
    """Goal: a hole of any size costs nothing. Method: tar -S of a file of 2 TB."""
    source = tmp_path / "sparse" / "event-log"
    source.mkdir(parents=True)
    with open(source / "segment-000001.json", "wb") as handle:
        handle.truncate(2 << 40)
    subprocess.run(["tar", "-S", "-C", source.parent, "-czf", package, "event-log"], check=True)
    refused(package, tmp_path)


def test_a_bomb_is_refused_before_it_fills_the_disk(package: Path, tmp_path: Path) -> None:
    """Goal: bounded size. Method: 70 MB of zeros in a segment, in a file that is kept out, behind the archive's end."""
    for name in ("event-log/segment-000009.json", "junk", None):
        with gzip.open(package, "wb", compresslevel=1) as raw:
            with tarfile.open(fileobj=raw, mode="w") as archive:
                if name is not None:
                    info = tarfile.TarInfo(name)
                    info.size = 70 << 20
                    archive.addfile(info, _Zeros())
            if name is None:
                for _ in range(70):
                    raw.write(bytes(1 << 20))
        refused(package, tmp_path, match="swells|oversized")


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_huge_extended_header_is_not_held(package: Path, tmp_path: Path, kind: bytes) -> None:
    """Goal: bounded memory. Method: an extended header that claims 50 MB and has them."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 50 << 20
    with gzip.open(package, "wb", compresslevel=1) as raw:
        raw.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(50):
            raw.write(b"9" * (1 << 20))
    tracemalloc.start()
    refused(package, tmp_path, match="oversized")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_too_many_members_are_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: bounded count. Method: a lowered bound, files and folders above it."""
    monkeypatch.setattr(module, "FILES_MAX", 20)
    found = list(members(package).items())
    repack(package, [*found, *((f"event-log/segment-{n:06d}.json", b"[]") for n in range(100, 130))])
    refused(package, tmp_path)
    folders = []
    for number in range(60):
        info = tarfile.TarInfo(f"d{number}")
        info.type = tarfile.DIRTYPE
        folders.append((info, b""))
    repack(package, [*found, *folders])
    refused(package, tmp_path)


def test_unknown_files_are_kept_out_and_said(package: Path, tmp_path: Path) -> None:
    """Goal: only the log is restored. Method: strangers, a segment that the manifest does not list."""
    found = list(members(package).items())
    repack(package, [("README", b"x"), *found, ("event-log/segment-000099.json", b"[]"), ("event-log/notes.txt", b"y")])
    progress = NullProgress()
    restore_package(str(package), str(tmp_path / "target"), progress=progress)
    ((code, message),) = progress.warnings
    assert code == "eventlog.unknown_files"
    assert all(name in message for name in ("README", "segment-000099.json", "notes.txt"))
    assert log_files(tmp_path / "target") == log_files(tmp_path / "data")


def test_content_that_differs_from_the_manifest_is_named(package: Path, tmp_path: Path) -> None:
    """Goal: damage names its file. Method: another byte, another length, a file missing."""
    found = members(package)
    path = "event-log/segment-000003.json"
    for content, what in (
        (found[path].replace(b"d2", b"d3", 1), "SHA-256"),
        (found[path] + b" ", "size"),
        (None, "missing"),
    ):
        changed = [(name, content if name == path else data) for name, data in found.items()]
        repack(package, [(name, data) for name, data in changed if data is not None])
        refused(package, tmp_path, match=f"{what}.*" if what != "missing" else path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"version": None},
        {"created_at": "yesterday"},
        {"created_at": "2025-12-23T17:43:43"},
        {"source_dir": 7},
        {"files": {}},
        {"files": [{}]},
        {"files": [1]},
        {"files": "x"},
        {"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "event-log/segment-000001.json", "size": True, "sha256": "0" * 64}]},
        {"files": [{"path": "event-log/segment-000001.json", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "event-log/segment-000001.json", "size": 2, "sha256": "0" * 63 + "G"}]},
        {"files": [{"path": "event-log-snapshot.json", "size": 2, "sha256": "0" * 64}] * 2},
        {"eventlog_summary": None},
        {"chain_valid_at_backup": "yes"},
    ],
)
def test_garbled_manifests_are_refused(package: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """Goal: a typed error for any manifest. Method: one field of the wrong type or value."""
    found = members(package)
    manifest = {**json.loads(found["manifest.json"]), **change}
    repack(package, [("manifest.json", encode(manifest)), *((n, c) for n, c in found.items() if n != "manifest.json")])
    refused(package, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000])
def test_manifests_that_are_no_object_are_refused(package: Path, tmp_path: Path, content: bytes) -> None:
    """Goal: a typed error for any bytes. Method: JSON that is none."""
    found = members(package)
    repack(package, [("manifest.json", content), *((n, c) for n, c in found.items() if n != "manifest.json")])
    refused(package, tmp_path)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    """Goal: a plain message for a wrong file. Method: text, a zip's head, gzip of no tar, a folder, nothing."""
    for number, content in enumerate(
        (b"hello", b"PK\x03\x04", gzip.compress(b"no tar" * 1000), gzip.compress(b""), b"\x1f\x8b")
    ):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        refused(path, tmp_path)
    for path in (tmp_path / "none.tar.gz", tmp_path):
        with pytest.raises(SourceUnreachable):
            restore_package(str(path), str(tmp_path / "target"))


def test_any_flip_or_truncation_of_a_package_is_found(tmp_path: Path, seed: int) -> None:
    """Goal: exact bytes or a typed error. Method: flip bits all over a small package, cut it at many lengths."""
    import random

    write_log(tmp_path / "data", 5)
    package = pack(tmp_path / "data", tmp_path / "packages")
    package.with_name(package.name.replace(".tar.gz", ".manifest.json")).unlink()
    original, wanted, rng = package.read_bytes(), log_files(tmp_path / "data"), random.Random(seed)
    places = [*range(60), *rng.sample(range(len(original)), 120), *range(len(original) - 12, len(original))]
    damaged = [original[:at] + bytes([original[at] ^ 1 << rng.randrange(8)]) + original[at + 1 :] for at in places]
    damaged += [original[:length] for length in rng.sample(range(len(original)), 40)]
    for content in damaged:
        package.write_bytes(content)
        try:
            restore_package(str(package), str(tmp_path / "target"))
        except LastroError:
            assert not (tmp_path / "target").exists()
            continue
        assert log_files(tmp_path / "target") == wanted
        shutil.rmtree(tmp_path / "target")


def test_sha256_of_listed_files_is_plain_sha256(package: Path) -> None:
    """Goal: sha256sum can check a package. Method: hash every member."""
    found = members(package)
    for entry in json.loads(found["manifest.json"])["files"]:
        assert hashlib.sha256(found[entry["path"]]).hexdigest() == entry["sha256"]
        assert len(found[entry["path"]]) == entry["size"]
