"""A restore over several sources: all or nothing, whatever happens between the commits; and what is left is said exactly."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.files import FilesConnector
from connectors.sqlite import SqliteConnector
from engine.errors import CommitUnknown, StalePlan, TargetError, TargetUnreachable
from engine.images import images_list
from operations.models import Operation
from operations.services import operation_retry, operation_run
from tenants import plan_outputs, wiring
from tenants.models import Backup, Restore, RestoreSource, RestoreSourceState
from tenants.plan_text import plan_text
from tenants.selectors import restore_get
from tenants.services.restore_recording import report_of
from tests.tenants.conftest import ACTOR, House

Fate = Callable[[Any], None]


def _rows(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT * FROM users ORDER BY id").fetchall()


class Hotel:
    """A tenant with a folder and two databases, a backup, and something changed in all three since."""

    def __init__(self, house: House) -> None:
        self.house, tenant = house, house.tenant()
        self.folder = house.folder(house.files(tenant))
        self.bookings = Path(house.database(tenant, "bookings").config["path"])
        self.crm = Path(house.database(tenant, "crm").config["path"])
        self.wanted = self.now()
        self.backup: Backup = house.backup(tenant)
        (self.folder / "a").write_text("changed")
        for path in (self.bookings, self.crm):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE users SET name = 'changed' WHERE id % 3 = 0")
                connection.execute("DELETE FROM users WHERE id % 7 = 0")
                connection.execute("INSERT INTO users VALUES (5000, 'new')")
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        return {"assets": files, "bookings": _rows(self.bookings), "crm": _rows(self.crm)}

    def states(self, restore: Restore) -> dict[str, str]:
        return dict(restore.sources.values_list("name", "state"))

    def again(self, restore: Restore) -> Operation:
        operation = operation_retry(Restore.objects.get(pk=restore.pk).operation_id, actor=ACTOR, here=True)
        return operation_run(operation.pk, here=True)


@pytest.fixture
def hotel(house: House) -> Hotel:
    return Hotel(house)


class _Fated:
    """A prepared restore whose commit meets its fate."""

    def __init__(self, real: Any, fate: Fate) -> None:
        self._real, self._fate = real, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit(self) -> None:
        self._fate(self._real)


@contextmanager
def _fated(connector: type, method: str, source: str, fate: Fate, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commits of that source meet the fate; a source is known by its path."""
    real = getattr(connector, method)

    @contextmanager
    def prepare(self: Any, what: Any, request: Any, progress: Any) -> Iterator[Any]:
        with real(self, what, request, progress) as prepared:
            config = getattr(self, "config", None) or self._config
            yield _Fated(prepared, fate) if source in config.path else prepared

    with monkeypatch.context() as patched:
        patched.setattr(connector, method, prepare)
        yield


def _refuse(times: int = 1_000, error: type[TargetError] = TargetError) -> Fate:
    left = [times]

    def fate(prepared: Any) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise error("the disk is gone")
        prepared.commit()

    return fate


def test_all_three_become_what_they_were(hotel: Hotel) -> None:
    """Goal: the ordinary case; restore three sources, then undo."""
    restore = hotel.house.restore(hotel.backup)
    assert hotel.now() == hotel.wanted
    rows = {row.name: row for row in restore.sources.all()}
    assert (rows["assets"].image, bool(rows["bookings"].image), bool(rows["crm"].image)) == ("", True, True)
    assert {report_of(row)["undo"] for row in rows.values()} == {"image", "safety backup"}
    undo = hotel.house.undo(restore)
    assert hotel.now() == hotel.before
    hotel.house.undo(undo)
    assert hotel.now() == hotel.wanted


def test_the_last_refuses_for_good(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what was committed is taken back when another cannot be; let the last database refuse every time."""
    with _fated(SqliteConnector, "prepare", "crm", _refuse(), monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    assert hotel.now() == hotel.before
    assert set(hotel.states(restore).values()) == {"old"}
    assert (restore.state, restore.error_code) == ("failed", "target.failed")
    assert hotel.again(restore).state == "succeeded"
    assert hotel.now() == hotel.wanted


def test_the_last_refuses_once(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a passing failure after the first commit is no failure; let the last database refuse once."""
    with _fated(SqliteConnector, "prepare", "crm", _refuse(times=1, error=TargetUnreachable), monkeypatch):
        restore = hotel.house.restore(hotel.backup)
    assert hotel.now() == hotel.wanted
    assert set(hotel.states(restore).values()) == {"new"}
    hotel.house.undo(restore)
    assert hotel.now() == hotel.before


def test_the_first_refuses(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: files, which have no image, go first and may refuse; nothing is changed then, nor tried again."""
    with _fated(FilesConnector, "prepare", "assets", _refuse(times=1, error=StalePlan), monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    assert hotel.now() == hotel.before
    assert (restore.state, restore.error_code) == ("failed", "plan.stale")
    assert set(hotel.states(restore).values()) == {"old"}


def test_what_cannot_be_taken_back_is_said(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nothing newer is lost by taking back; somebody writes to a committed source before the next one refuses."""

    def write_then_refuse(_prepared: Any) -> None:
        with sqlite3.connect(hotel.bookings) as connection:
            connection.execute("UPDATE users SET name = 'newest' WHERE id = 3")
        raise TargetError("the disk is gone")

    with _fated(SqliteConnector, "prepare", "crm", write_then_refuse, monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    assert restore.error_code == "restore.incomplete"
    assert hotel.states(restore)["bookings"] == "new"
    assert hotel.states(restore)["crm"] == "old"
    assert "restored: bookings" in restore.error
    assert restore.safety_backup_id
    assert restore.safety_backup_id in restore.error_hint
    assert (3, "newest") in hotel.now()["bookings"]
    assert hotel.again(restore).state == "succeeded"
    assert hotel.now()["crm"] == hotel.wanted["crm"]
    assert (3, "newest") in hotel.now()["bookings"]


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_lost_answer_is_settled(hotel: Hotel, monkeypatch: pytest.MonkeyPatch, took_effect: bool) -> None:
    """Goal: a lost answer is no failure and no success; lose it after, and instead of, the commit."""
    lost = [1]

    def fate(prepared: Any) -> None:
        if took_effect or not lost[0]:
            prepared.commit()
        if lost[0]:
            lost[0] = 0
            raise CommitUnknown("the connection broke")

    with _fated(SqliteConnector, "prepare", "crm", fate, monkeypatch):
        restore = hotel.house.restore(hotel.backup)
    assert hotel.now() == hotel.wanted
    assert set(hotel.states(restore).values()) == {"new"}


@pytest.mark.parametrize("took_effect", [True, False])
def test_an_answer_that_nobody_knows_yet(hotel: Hotel, monkeypatch: pytest.MonkeyPatch, took_effect: bool) -> None:
    """Goal: nothing is guessed; lose the answer and the server, then run it again when the server is back."""
    monkeypatch.setattr("tenants.handlers.saga.SETTLE_SECONDS", ())

    def fate(prepared: Any) -> None:
        if took_effect:
            prepared.commit()
        raise CommitUnknown("the connection broke")

    with monkeypatch.context() as patched, _fated(SqliteConnector, "prepare", "bookings", fate, monkeypatch):
        patched.setattr(SqliteConnector, "settle", lambda *_: None)
        restore = hotel.house.restore(hotel.backup, ok=False)
    assert restore.error_code == "restore.incomplete"
    assert hotel.states(restore) == {"assets": "new", "bookings": "unknown", "crm": "old"}
    assert "to be looked at: bookings" in restore.error
    assert hotel.again(restore).state == "succeeded"
    assert hotel.now() == hotel.wanted
    hotel.house.undo(restore_get(restore.pk))
    assert hotel.now() == hotel.before


@pytest.mark.parametrize("took_effect", [True, False])
def test_what_no_token_tells_is_compared(hotel: Hotel, monkeypatch: pytest.MonkeyPatch, took_effect: bool) -> None:
    """Goal: when the target has forgotten the commit, its rows tell; settle never answers, on the retry neither."""
    monkeypatch.setattr("tenants.handlers.saga.SETTLE_SECONDS", ())

    def fate(prepared: Any) -> None:
        if took_effect:
            prepared.commit()
        raise CommitUnknown("the connection broke")

    monkeypatch.setattr(SqliteConnector, "settle", lambda *_: None)
    with _fated(SqliteConnector, "prepare", "bookings", fate, monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    assert hotel.states(restore)["bookings"] == "unknown"
    assert hotel.again(restore).state == "succeeded"
    assert hotel.now() == hotel.wanted


def test_a_stale_plan_on_a_retry_takes_the_rest_back(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a plan binds after a crash too; kill between two commits, change a source that was still to come, retry."""
    plan = hotel.house.plan(hotel.backup)

    def die(_prepared: Any) -> None:
        raise KeyboardInterrupt

    with _fated(SqliteConnector, "prepare", "bookings", die, monkeypatch), pytest.raises(KeyboardInterrupt):
        hotel.house.run_plan(plan, ok=False)
    restore = Restore.objects.get()
    assert hotel.states(restore) == {"assets": "new", "bookings": "applying", "crm": "old"}
    with sqlite3.connect(hotel.crm) as connection:
        connection.execute("UPDATE users SET name = 'newest' WHERE id = 3")
    ended = hotel.again(restore)
    assert (ended.state, ended.error["code"], ended.error["exit"]) == ("failed", "plan.stale", 10)
    assert "restore plan" in ended.error["hint"]
    now = hotel.now()
    assert {name: now[name] for name in ("assets", "bookings")} == {
        name: hotel.before[name] for name in ("assets", "bookings")
    }
    assert (3, "newest") in now["crm"]
    assert set(hotel.states(restore).values()) == {"old"}


def test_what_somebody_changed_meanwhile_is_left_to_people(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no guess over a source that was being committed and was written to since; a new restore is the way out."""

    def die(_prepared: Any) -> None:
        raise KeyboardInterrupt

    with _fated(SqliteConnector, "prepare", "crm", die, monkeypatch), pytest.raises(KeyboardInterrupt):
        hotel.house.restore(hotel.backup)
    restore = Restore.objects.get()
    with sqlite3.connect(hotel.crm) as connection:
        connection.execute("UPDATE users SET name = 'newest' WHERE id = 3")
    now = hotel.now()
    ended = hotel.again(restore)
    assert ended.error["code"] == "restore.incomplete"
    assert "restored: assets, bookings; to be looked at: crm" in ended.error["detail"]
    assert f"restore plan {restore.pk}" in ended.error["hint"]
    assert hotel.now() == now
    hotel.house.restore(hotel.backup)
    assert hotel.now() == hotel.wanted


def test_a_retry_saves_what_came_between(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what a tenant does between two attempts is saved before it is overwritten; refuse, write, retry, undo."""
    with _fated(FilesConnector, "prepare", "assets", _refuse(times=1), monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    (hotel.folder / "a").write_text("between")
    with sqlite3.connect(hotel.crm) as connection:
        connection.execute("INSERT INTO users VALUES (6000, 'between')")
    between = hotel.now()
    assert hotel.again(restore).state == "succeeded"
    assert hotel.now() == hotel.wanted
    hotel.house.undo(restore_get(restore.pk))
    assert hotel.now() == between


def test_an_undo_after_two_attempts_can_be_undone(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: each source goes back to what was saved before it was changed; commit the sources in two attempts, undo twice."""

    def die(_prepared: Any) -> None:
        raise KeyboardInterrupt

    with _fated(SqliteConnector, "prepare", "bookings", die, monkeypatch), pytest.raises(KeyboardInterrupt):
        hotel.house.restore(hotel.backup)
    restore = Restore.objects.get()
    assert hotel.states(restore)["assets"] == "new"
    assert hotel.again(restore).state == "succeeded"
    restore = restore_get(restore.pk)
    assert len(set(restore.sources.values_list("saved_id", flat=True))) == 2
    undo = hotel.house.undo(restore)
    assert hotel.now() == hotel.before
    hotel.house.undo(undo)
    assert hotel.now() == hotel.wanted


def test_images_are_not_left_by_attempts(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: each attempt has images of its own, and rows name those that count; refuse once, look into the store."""
    with _fated(FilesConnector, "prepare", "assets", _refuse(times=1), monkeypatch):
        restore = hotel.house.restore(hotel.backup, ok=False)
    first = set(restore.sources.exclude(image="").values_list("image", flat=True))
    hotel.again(restore)
    second = set(RestoreSource.objects.filter(restore=restore).exclude(image="").values_list("image", flat=True))
    assert not first & second
    with wiring.repository_open(hotel.backup.tenant) as repository:
        assert {name for name, _ in images_list(repository)} == first | second


def test_an_undo_over_several_sources_is_all_or_nothing(hotel: Hotel) -> None:
    """Goal: an undo that one source refuses changes none; write to one database after the restore."""
    restore = hotel.house.restore(hotel.backup)
    with sqlite3.connect(hotel.crm) as connection:
        connection.execute("UPDATE users SET name = 'newest' WHERE id = 3")
    now = hotel.now()
    undo = hotel.house.undo(restore, ok=False)
    assert (undo.state, undo.error_code) == ("failed", "plan.stale")
    assert hotel.now() == now
    assert RestoreSourceState.OLD in set(hotel.states(undo).values())
    assert undo.error_hint.endswith(f"restore undo {restore.pk} --plan")
    plan = hotel.house.undo_plan(restore)
    text = plan_text(plan_outputs.plan(plan))
    assert any(line.startswith("1 row of users changed since 20") for line in text)
    hotel.house.run_plan(plan)
    assert hotel.now() == hotel.before
