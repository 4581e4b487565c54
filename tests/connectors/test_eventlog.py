"""Event logs through the engine: out of a living source, into a repository, and back byte for byte."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors import load_all
from connectors._eventlog.capture import capture
from connectors.eventlog import EventLogConnector
from engine.adapters import parse_config
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.errors import SourceChanged, SourceDenied, SourceError, SourceUnreachable, TargetOccupied, UsageError
from engine.keys import Keyring, RootKey
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_backup import backup_tree
from engine.tree_view import TreeView
from engine.views import source_views
from stores.local import LocalConfig, LocalStore
from tests.connectors.eventlog_samples import (
    encode,
    log_files,
    make_events,
    segment_path,
    snapshot_of,
    write_log,
)

REAL = Path(__file__).parent.parent / "data" / "eventlog"


@dataclasses.dataclass(frozen=True)
class View:
    """One source of a backup, as engine.views gives it."""

    name: str
    kind: str
    category: str
    position: Mapping[str, Any]
    facts: Mapping[str, Any]
    trees: tuple[TreeView, ...]
    tables: tuple[()] = ()
    documents: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root = RootKey.generate()
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    keyring = Keyring.create(root, tenant_id="ten_test", repository_id="rep_test")
    return Repository.create(store, repository_id="rep_test", tenant_id="ten_test", keyring=keyring, root=root)


def connector(path: Path) -> EventLogConnector:
    return EventLogConnector(parse_config(EventLogConnector.Config, {"path": str(path)}))


def read_into(
    repository: Repository, opened: Any, progress: NullProgress, parent: View | None = None
) -> tuple[View, int]:
    """Back up what a connector opened; return the view and what it newly stored."""
    domain = repository.domain(encrypted=True)
    session = domain.session()
    with opened as reader:
        (part,) = reader.trees()
        before = parent.trees[0].node if parent else None
        node = backup_tree(session, part, parent=before, reader=domain.reader(), full=False, progress=progress)
        facts = {**reader.facts, **reader.finish()}
        position = dict(reader.position)
    session.finish()
    node, facts, position = json.loads(json.dumps([node, facts, position]))
    return View(
        "log", "eventlog", "database", position, facts, (TreeView(domain.reader(), node),)
    ), session.stored_bytes


def back_up(
    repository: Repository, data: Path, progress: NullProgress | None = None, parent: View | None = None
) -> View:
    progress = progress or NullProgress()
    return read_into(repository, connector(data).open(progress), progress, parent)[0]


def restore(view: View, target: Path, *, overwrite: bool = False, label: str = "opr_1") -> Any:
    request = RestoreRequest(label=label, in_place=False, overwrite=overwrite)
    return connector(target).restore(view, request, NullProgress())  # type: ignore[arg-type]


# ---------------------------------------------------------------- settings


def test_registered_with_its_settings() -> None:
    """Goal: forms and commands find the kind. Method: ask the registry."""
    kind = load_all().get("eventlog")
    assert kind is EventLogConnector
    assert (kind.categories, kind.target_keys) == (("database",), ("path",))
    with pytest.raises(UsageError):
        connector(Path("x")).at({"dsn": "y"})


def test_testing_a_source_says_what_it_found(tmp_path: Path) -> None:
    """Goal: a wrong folder is told with a hint. Method: good, empty, missing and one-too-deep folders."""
    write_log(tmp_path / "data", 30)
    probe = connector(tmp_path / "data").test()
    assert "3 segments" in probe.summary
    assert probe.details["last_event_id"] == "evt-00001d"
    assert probe.warnings == ()
    with pytest.raises(SourceUnreachable) as missing:
        connector(tmp_path / "nowhere").test()
    assert missing.value.hint
    with pytest.raises(SourceError, match="log folder itself") as deep:
        connector(tmp_path / "data" / "event-log").test()
    assert str(tmp_path / "data") in deep.value.hint
    (tmp_path / "empty").mkdir()
    assert "empty" in connector(tmp_path / "empty").test().warnings[0]


def test_unreadable_log_is_refused(tmp_path: Path) -> None:
    """Goal: a log that cannot be read fails the backup. Method: a folder without rights, as another user."""
    write_log(tmp_path / "data", 30)
    segment_path(tmp_path / "data", 2).chmod(0)
    code = (
        "import sys; sys.path[:0] = ['platform', '.']\n"
        "import os, tempfile; from pathlib import Path\n"
        "from connectors._eventlog.capture import capture\n"
        "from engine.progress import NullProgress; from engine.errors import SourceDenied\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: capture(Path(sys.argv[1]), Path(tempfile.mkdtemp()), NullProgress())\n"
        "except SourceDenied as error: print('denied', bool(error.hint))"
    )
    if os.getuid() != 0:
        (tmp_path / "stage").mkdir()
        with pytest.raises(SourceDenied):
            capture(tmp_path / "data", tmp_path / "stage", NullProgress())
        return
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "data"], capture_output=True, text=True, check=False)
    assert done.stdout == "denied True\n", done.stderr


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("events", [0, 1, 10, 47])
def test_log_comes_back_byte_for_byte(tmp_path: Path, repository: Repository, events: int) -> None:
    """Goal: exact restore to a new folder. Method: logs of several sizes, files and metadata compared."""
    data, target = tmp_path / "data", tmp_path / "a" / "restored"
    data.mkdir()
    write_log(data, events)
    progress = NullProgress()
    view = back_up(repository, data, progress)
    report = restore(view, target)
    assert progress.warnings == []
    assert log_files(target) == log_files(data)
    assert all(check.passed for check in report.checks)
    assert report.files.created == len(log_files(data))
    assert view.facts["eventlog_summary"]["total_events"] == events
    assert not list((tmp_path / "a").rglob(".lastro*"))
    for path in log_files(data):
        ours, theirs = (target / path).stat(), (data / path).stat()
        assert (ours.st_mode, ours.st_mtime_ns, ours.st_uid) == (theirs.st_mode, theirs.st_mtime_ns, theirs.st_uid)


def test_real_log_comes_back(tmp_path: Path, repository: Repository) -> None:
    """Goal: the owner's real log survives. Method: back up, restore, compare; the source is not written."""
    before = {path: path.lstat() for path in REAL.rglob("*")}
    view = back_up(repository, REAL)
    restore(view, tmp_path / "restored")
    assert log_files(tmp_path / "restored") == log_files(REAL)
    for path, status in before.items():
        after = path.lstat()
        assert (after.st_mtime_ns, after.st_ctime_ns, after.st_nlink) == (
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_nlink,
        )


def test_a_whole_backup_names_one_module(tmp_path: Path, repository: Repository) -> None:
    """Goal: the log can be chosen as a module. Method: a backup by the engine's own verb, through its views."""
    write_log(tmp_path / "data", 30)
    request = BackupRequest(backup_id="bkp_1", number=1, type="full", tenant_name="Test", created_by="test")
    inputs = [SourceInput("log", "database", "eventlog", connector(tmp_path / "data"))]
    manifest = backup_run(repository, inputs, request, NullProgress())
    (module,) = manifest.document["modules"]
    assert (module["source"], module["name"], module["files"]) == ("log", "event-log", 4)
    assert manifest.document["checksums"]["database"]
    connector(tmp_path / "out").restore(
        source_views(repository, manifest)["log"], RestoreRequest(label="opr_1", in_place=False), NullProgress()
    )
    assert log_files(tmp_path / "out") == log_files(tmp_path / "data")


def test_growth_stores_only_what_is_new(tmp_path: Path, repository: Repository) -> None:
    """Goal: an incremental costs what changed. Method: bytes stored by a backup after a few more events."""
    data = tmp_path / "data"
    segments = write_log(data, 20_000, per_segment=4000)
    progress = NullProgress()
    first, stored = read_into(repository, connector(data).open(progress), progress)
    newest = [*segments[-1], *make_events(50, after=segments[-1][-1], first=20_000)]
    segment_path(data, 5).write_bytes(encode(newest))
    (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of([*segments[:-1], newest])))
    second, more = read_into(repository, connector(data).open(progress), progress, first)
    assert more < stored / 4
    restore(second, tmp_path / "restored")
    assert log_files(tmp_path / "restored") == log_files(data)
    assert progress.warnings == []


def test_other_files_are_neither_taken_nor_touched(tmp_path: Path, repository: Repository) -> None:
    """Goal: only the log is ours. Method: strangers in both folders before and after a restore in place."""
    data = tmp_path / "data"
    write_log(data, 30)
    (data / "app.db").write_bytes(b"app")
    (data / "event-log" / "segment-000003.json.tmp").write_bytes(b"half")
    view = back_up(repository, data)
    assert view.facts["left_out"] == ["segment-000003.json.tmp"]
    assert view.trees[0].file_count == 4
    write_log(data, 12)
    with pytest.raises(TargetOccupied):
        restore(view, data)
    report = restore(view, data, overwrite=True)
    assert (data / "app.db").read_bytes() == b"app"
    assert report.files == dataclasses.replace(report.files, replaced=2, unchanged=2, created=0, removed=0)
    write_log(tmp_path / "again", 30)
    assert log_files(data) == {
        **log_files(tmp_path / "again"), "event-log/segment-000003.json.tmp": b"half",
    }  # fmt: skip
    assert sorted(path.name for path in data.iterdir()) == ["app.db", "event-log", "event-log-snapshot.json"]


def test_restore_removes_what_the_backup_did_not_have(tmp_path: Path, repository: Repository) -> None:
    """Goal: the log becomes what it was. Method: a backup without snapshot over a longer log with one."""
    write_log(tmp_path / "old", 20, snapshot=False)
    view = back_up(repository, tmp_path / "old")
    write_log(tmp_path / "data", 50)
    report = restore(view, tmp_path / "data", overwrite=True)
    assert log_files(tmp_path / "data") == log_files(tmp_path / "old")
    assert (report.files.removed, report.files.unchanged) == (4, 2)


@pytest.mark.parametrize("where", ["staged", "snapshot_away", "log_exchanged"])
def test_killed_restore_leaves_no_mixture_and_is_finished_by_a_rerun(
    tmp_path: Path, repository: Repository, where: str
) -> None:
    """Goal: old or new, never both. Method: kill a real process at each step, look, run again."""
    data = tmp_path / "data"
    old = write_log(data, 20)
    view = back_up(repository, data)
    before = log_files(data)
    write_log(data, 50)
    current = log_files(data)
    (tmp_path / "new").mkdir()
    restore(view, tmp_path / "new" / "log")
    code = (
        "import sys; sys.path[:0] = ['platform', '.']\n"
        "import shutil; from pathlib import Path\n"
        "from connectors._eventlog.target import TargetFolder\n"
        "target = TargetFolder(Path(sys.argv[1]), label='opr_1')\n"
        "stage = target.prepare(overwrite=True)\n"
        "shutil.copytree(sys.argv[2], stage, dirs_exist_ok=True)\n"
        "target.apply()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, data, tmp_path / "new" / "log"],
        env={**os.environ, "LASTRO_KILL_AT": f"eventlog.restore_{where}"},
        check=False,
    )
    assert done.returncode == -9
    found = log_files(data)
    snapshot = found.pop("event-log-snapshot.json", None)
    expected = before if where == "log_exchanged" else current
    assert found == {path: content for path, content in expected.items() if path.startswith("event-log/")}
    assert snapshot == (current["event-log-snapshot.json"] if where == "staged" else None)
    restore(view, data, overwrite=True)
    assert log_files(data) == before
    assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []
    assert old[0][0]["id"] == view.facts["eventlog_summary"]["first_event_id"]


def test_a_killed_restore_is_taken_back_when_the_next_one_is_refused(tmp_path: Path) -> None:
    """Goal: settling alone makes the target whole. Method: kill between the steps, then prepare without consent."""
    from connectors._eventlog.target import TargetFolder

    for where, whole in (("snapshot_away", 20), ("log_exchanged", 10)):
        data, new = tmp_path / where / "data", tmp_path / where / "new"
        write_log(data, 20)
        write_log(new, 10)
        wanted = log_files(data if whole == 20 else new)
        code = (
            "import sys; sys.path[:0] = ['platform', '.']\n"
            "import shutil; from pathlib import Path\n"
            "from connectors._eventlog.target import TargetFolder\n"
            "target = TargetFolder(Path(sys.argv[1]), label='opr_2')\n"
            "shutil.copytree(sys.argv[2], target.prepare(overwrite=True), dirs_exist_ok=True)\n"
            "target.apply()"
        )
        env = {**os.environ, "LASTRO_KILL_AT": f"eventlog.restore_{where}"}
        assert subprocess.run([sys.executable, "-c", code, data, new], env=env, check=False).returncode == -9
        with pytest.raises(TargetOccupied):
            TargetFolder(data, label="opr_2").prepare(overwrite=False)
        assert log_files(data) == wanted


# ---------------------------------------------------------------- broken logs


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes in these tests: do not wait for a writer."""
    monkeypatch.setattr("connectors._eventlog.capture.QUIET_SECONDS", 0.01)


def test_broken_chain_is_kept_and_said(tmp_path: Path, repository: Repository) -> None:
    """Goal: a broken log is backed up as it is. Method: one event edited; warning, facts, exact restore, checks."""
    data = tmp_path / "data"
    write_log(data, 30)
    path = segment_path(data, 2)
    path.write_text(path.read_text().replace('"d15"', '"d15X"'))
    progress = NullProgress()
    view = back_up(repository, data, progress)
    ((code, message),) = progress.warnings
    assert code == "eventlog.chain_broken"
    assert "evt-00000f" in message
    assert "segment-000002.json index 5" in message
    assert view.facts["chain_valid_at_backup"] is False
    assert view.facts["first_bad"]["event_id"] == "evt-00000f"
    report = restore(view, tmp_path / "restored")
    assert log_files(tmp_path / "restored") == log_files(data)
    assert all(check.passed for check in report.checks)
    assert "evt-00000f" in report.warnings[0]


@pytest.mark.parametrize(
    "path", ["event-log/segment-000002.json", "event-log/segment-000003.json", "event-log-snapshot.json"]
)
@pytest.mark.parametrize("content", [b"", b"{{{", bytes(3000), b"\xff\xfe"])
@pytest.mark.usefixtures("impatient")
def test_corrupt_files_are_kept_byte_for_byte(
    tmp_path: Path, repository: Repository, path: str, content: bytes
) -> None:
    """Goal: what cannot be parsed is not lost. Method: corrupt a segment, the newest one, the snapshot."""
    data = tmp_path / "data"
    write_log(data, 30)
    (data / path).write_bytes(content)
    progress = NullProgress()
    view = back_up(repository, data, progress)
    assert [code for code, _ in progress.warnings] in (["eventlog.chain_broken"], ["eventlog.snapshot_differs"])
    assert view.facts["chain_valid_at_backup"] is False
    restore(view, tmp_path / "restored")
    assert log_files(tmp_path / "restored") == log_files(data)


@pytest.mark.usefixtures("impatient")
def test_still_snapshot_behind_its_chain_is_said(tmp_path: Path, repository: Repository) -> None:
    """Goal: a snapshot that lags on a quiet log is odd. Method: one that names an earlier event."""
    data = tmp_path / "data"
    segments = write_log(data, 30)
    (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of([segments[0], segments[1][:4]])))
    progress = NullProgress()
    view = back_up(repository, data, progress)
    assert [code for code, _ in progress.warnings] == ["eventlog.snapshot_behind"]
    assert view.facts["chain_valid_at_backup"] is True


def test_lost_data_folder_is_never_an_empty_log(tmp_path: Path) -> None:
    """Goal: an unmounted disk fails loudly. Method: open a folder that is not there."""
    with pytest.raises(SourceUnreachable), connector(tmp_path / "gone").open(NullProgress()):
        pass


def test_a_changed_stage_is_not_trusted(tmp_path: Path) -> None:
    """Goal: what is stored is what was verified. Method: touch the private copy between opening and finishing."""
    write_log(tmp_path / "data", 30)
    with connector(tmp_path / "data").open(NullProgress()) as reader:
        stage = Path(os.fsdecode(reader.trees()[0].root))
        segment_path(stage, 2).write_bytes(b"[]")
        with pytest.raises(SourceChanged):
            reader.finish()
    assert not stage.exists()


def test_a_sealed_segment_rewritten_while_reading_is_said(tmp_path: Path) -> None:
    """Goal: the source is looked at again afterwards. Method: rewrite one sealed segment, touch another."""
    data = tmp_path / "data"
    write_log(data, 40)
    progress = NullProgress()
    with connector(data).open(progress) as reader:
        segment_path(data, 1).write_bytes(b"[]")
        segment_path(data, 2).write_bytes(segment_path(data, 2).read_bytes())
        segment_path(data, 3).unlink()
        assert reader.finish()["changed_while_reading"] == ["event-log/segment-000001.json"]
    assert [code for code, _ in progress.warnings] == ["eventlog.segment_changed"]
