"""Undo: exactly what was there, or a refusal and a plan."""

import datetime
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from connectors.files import FilesConnector, PreparedFiles
from core import clock
from core.errors import ConfirmationNeeded, Conflict
from engine.errors import CommitUnknown, NameUnknown, UsageError
from tenants import plan_outputs, restore_outputs
from tenants.models import Restore
from tenants.plan_text import plan_text
from tenants.services.sources import source_add
from tenants.services.undos import undo_start, undoable_now
from tests.connectors.eventlog_samples import encode, log_files, make_events, segment_path, write_log
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def _broken(house: House, content: Content) -> tuple[Path, dict[str, bytes], Any]:
    """A folder with a backup, then something lost, changed and new."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, a="one", b="two", c="three"))
    backup = house.backup(tenant)
    (folder / "a").unlink()
    (folder / "b").write_text("changed")
    (folder / "new").write_text("new")
    return folder, content(folder), backup


def test_undo_puts_back_exactly_what_was_there(house: House, content: Content) -> None:
    """Goal: undo is exact, and can be undone as well; restore, undo, undo the undo."""
    folder, before, backup = _broken(house, content)
    restore = house.restore(backup)
    restored = content(folder)
    assert restored != before
    undo = house.undo(restore)
    assert content(folder) == before
    assert (undo.kind, undo.state, undo.undoes_id) == ("undo", "succeeded", restore.pk)
    assert undo.safety_backup_id not in (None, restore.safety_backup_id)
    restore.refresh_from_db()
    assert restore.state == "undone"
    with pytest.raises(Conflict, match="undone already"):
        house.undo(restore)
    house.undo(undo)
    assert content(folder) == restored


@pytest.mark.parametrize("mode", ["full", "merge"])
@pytest.mark.parametrize("change", ["write", "add", "remove", "mode"])
def test_what_somebody_changed_since_is_not_lost(house: House, content: Content, mode: str, change: str) -> None:
    """Goal: an undo never throws away newer work unseen; change something after the restore, undo, plan, run the plan."""
    folder, before, backup = _broken(house, content)
    restore = house.restore(backup, mode=mode)
    {
        "write": lambda: (folder / "c").write_text("newer"),
        "add": lambda: (folder / "newest").write_text("newest"),
        "remove": (folder / "c").unlink,
        "mode": lambda: (folder / "c").chmod(0o600),
    }[change]()
    newer = content(folder)
    refused = house.undo(restore, ok=False)
    assert (refused.state, refused.error_code) == ("failed", "plan.stale")
    assert f"restore undo {restore.pk} --plan" in refused.error_hint
    assert content(folder) == newer
    restore.refresh_from_db()
    assert restore.state == "succeeded"
    plan = house.undo_plan(restore)
    assert (plan.kind, plan.state) == ("undo", "ready")
    house.run_plan(plan)
    assert content(folder) == before
    restore.refresh_from_db()
    assert restore.state == "undone"


def test_an_undo_plan_binds(house: House, content: Content) -> None:
    """Goal: what was previewed is what is done; change something between the plan of an undo and its run."""
    folder, _, backup = _broken(house, content)
    restore = house.restore(backup)
    (folder / "newest").write_text("newest")
    plan = house.undo_plan(restore)
    (folder / "later").write_text("later")
    now = content(folder)
    assert house.run_plan(plan, ok=False).error_code == "plan.stale"
    assert content(folder) == now


def test_only_the_modules_of_a_selective_restore_are_undone(house: House, content: Content) -> None:
    """Goal: an undo touches what its restore touched; restore one of two folders, work in the other, undo."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    for name in ("logo", "photos"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("one")
    backup = house.backup(tenant)
    shutil.rmtree(folder / "logo")
    (folder / "photos" / "x").write_text("changed")
    lost = content(folder)
    restore = house.restore(backup, mode="selective", modules=("logo",))
    assert content(folder) == {**lost, "logo/x": b"one"}
    (folder / "photos" / "y").write_text("newest")
    house.undo(restore)
    assert content(folder) == {**lost, "photos/y": b"newest"}
    again = house.restore(backup, mode="selective", modules=("logo",))
    (folder / "logo" / "y").write_text("newest")
    now = content(folder)
    assert house.undo(again, ok=False).error_code == "plan.stale"
    assert content(folder) == now


def test_an_event_log_goes_back_and_forth(house: House) -> None:
    """Goal: a log is undone by its safety backup, and never when it grew since; restore, undo, restore, append, undo."""
    tenant, data = house.tenant(), house.data / "events"
    segments = write_log(data, 25)
    source_add(tenant, "events", kind="eventlog", category="database", values={"path": str(data)}, actor=ACTOR)
    backup = house.backup(tenant)
    old = log_files(data)
    more = make_events(3, after=segments[-1][-1], first=26)
    segment_path(data, 3).write_bytes(encode([*segments[2], *more]))
    grown = log_files(data)
    restore = house.restore(backup)
    assert log_files(data) == old
    undo = house.undo(restore)
    assert (undo.state, log_files(data)) == ("succeeded", grown)
    again = house.restore(backup)
    segment_path(data, 3).write_bytes(encode([*segments[2], *make_events(1, after=segments[-1][-1], first=26, seed=9)]))
    newest = log_files(data)
    assert house.undo(again, ok=False).error_code == "plan.stale"
    assert log_files(data) == newest


def test_a_restore_that_got_half_way_can_be_undone(
    house: House, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: whoever finds a half-done restore can go back as well as on; lose the second answer for good, undo."""
    tenant = house.tenant()
    folders = {name: house.folder(house.files(tenant, name)) for name in ("alfa", "beta")}
    backup = house.backup(tenant)
    for folder in folders.values():
        (folder / "a").write_text("changed")
    before = {name: content(folder) for name, folder in folders.items()}
    real = PreparedFiles.commit

    def lose(self: PreparedFiles) -> None:
        if (folders["alfa"] / "a").read_text() != "changed":
            raise CommitUnknown("the connection broke")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(PreparedFiles, "commit", lose)
        patched.setattr(FilesConnector, "settle", lambda *_: None)
        patched.setattr("tenants.handlers.saga.SETTLE_SECONDS", ())
        restore = house.restore(backup, ok=False)
    assert dict(restore.sources.values_list("name", "state")) == {"alfa": "new", "beta": "unknown"}
    house.undo(restore)
    assert {name: content(folder) for name, folder in folders.items()} == before
    restore.refresh_from_db()
    assert restore.state == "undone"


def test_undo_is_refused_where_it_cannot_be(house: House, monkeypatch: pytest.MonkeyPatch, content: Content) -> None:
    """Goal: no undo of what changed nothing live, without the slug, or after its term; ask for each."""
    _, _, backup = _broken(house, content)
    copy = house.restore(backup, targets=(f"path={house.data}/copy",))
    with pytest.raises(UsageError, match="another place"):
        house.undo(copy)
    restore = house.restore(backup)
    for confirmed in (None, "boreal"):
        with pytest.raises(ConfirmationNeeded):
            undo_start(restore, confirmed=confirmed, actor=ACTOR, here=True)
    late = clock.now() + datetime.timedelta(days=31)
    monkeypatch.setattr(clock, "now", lambda: late)
    with pytest.raises(Conflict, match="the term"):
        house.undo(restore)
    assert Restore.objects.count() == 2


def _two_sources(house: House, content: Content) -> tuple[Any, Path, Path]:
    """A restore of a folder and a database, in both of which something had been changed."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    database = house.folder(house.database(tenant, rows=5))
    backup = house.backup(tenant)
    (folder / "a").write_text("changed")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE users SET name = 'changed'")
    return house.restore(backup), folder, database


def _names(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM users")}


def test_one_source_alone_can_be_undone_and_the_others_later(house: House, content: Content) -> None:
    """Goal: one source goes back, the rest stays and stays undoable; undo the database, then all that is left."""
    restore, folder, database = _two_sources(house, content)
    assert undoable_now(restore) == ["assets", "db"]
    plan = house.undo_plan(restore, sources=("db",))
    assert plan_outputs.plan(plan)["left_of_undone"] == ["assets"]
    undo = house.run_plan(plan)
    assert (_names(database), (folder / "a").read_text()) == ({"changed"}, "one")
    restore.refresh_from_db()
    shown = restore_outputs.restore(restore)
    assert (shown["state"], shown["undoable"], shown["undone"]) == ("succeeded", ["assets"], {"db": undo.pk})
    assert restore_outputs.restore(undo)["left_of_undone"] == ["assets"]
    with pytest.raises(Conflict, match=f"put back already, by {undo.pk}"):
        house.undo(restore, sources=("db",))
    with pytest.raises(NameUnknown, match="no source 'none'"):
        house.undo(restore, sources=("none",))
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO users VALUES (77, 'newer')")
    rest = house.undo(restore)
    assert list(rest.sources.values_list("name", flat=True)) == ["assets"]
    assert ((folder / "a").read_text(), _names(database)) == ("changed", {"changed", "newer"})
    restore.refresh_from_db()
    assert (restore.state, restore_outputs.restore(rest)["left_of_undone"]) == ("undone", [])


def test_an_undo_of_a_part_can_be_undone(house: House, content: Content) -> None:
    """Goal: every step has its way back; undo one source, undo that, and refuse it where somebody wrote since."""
    restore, folder, database = _two_sources(house, content)
    undo = house.undo(restore, sources=("assets",))
    assert ((folder / "a").read_text(), _names(database)) == ("changed", {f"u{n}" for n in range(5)})
    house.undo(undo)
    assert (folder / "a").read_text() == "one"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE users SET name = 'newest' WHERE id = 1")
    refused = house.undo(restore, ok=False, sources=("db",))
    assert (refused.error_code, _names(database) >= {"newest"}) == ("plan.stale", True)
    assert refused.error_hint.endswith(f"restore undo {restore.pk} --plan --source db")


@pytest.mark.parametrize("change", ["nothing", "folder mode", "file mode", "folder time"])
def test_rights_and_times_alone_go_back_and_forth(house: House, change: str) -> None:
    """Goal: what a restore does to a mode or a time is undone like anything else, and rights are shown; change one alone."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    (folder / "inner").mkdir()
    (folder / "inner").chmod(0o755)
    backup = house.backup(tenant)
    if change == "folder mode":
        (folder / "inner").chmod(0o777)
    elif change == "file mode":
        (folder / "a").chmod(0o600)
    elif change == "folder time":
        os.utime(folder / "inner", (1, 1))
    mode = [path.stat().st_mode for path in (folder / "inner", folder / "a")]
    times = (folder / "inner").stat().st_mtime
    plan = house.plan(backup)
    shown = "\n".join(plan_text(plan_outputs.plan(plan)))
    assert ("inner changes: mode 777, was 755" in shown) == (change == "folder mode")
    house.undo(house.run_plan(plan))
    assert [path.stat().st_mode for path in (folder / "inner", folder / "a")] == mode
    assert (folder / "inner").stat().st_mtime == times
