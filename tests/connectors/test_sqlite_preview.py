"""A preview of a SQLite restore says what will happen, changes nothing, and binds what is applied."""

import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine import faults
from engine.errors import SchemaMismatch, StalePlan, TargetError, TargetOccupied, TargetUnreachable, UsageError
from engine.ports import TableView
from engine.progress import NullProgress
from tests.connectors.sqlite_plans import Operator
from tests.connectors.sqlite_samples import Bench, database, everything, query, run, tenant

SCHEMA = """
CREATE TABLE guest(id INTEGER PRIMARY KEY, tenant_id INT, email TEXT UNIQUE, note, updated_at TEXT);
CREATE TABLE item(id INTEGER PRIMARY KEY, tenant_id INT, guest INT REFERENCES guest, what TEXT);
CREATE INDEX item_guest ON item(guest);
CREATE TRIGGER noted AFTER DELETE ON guest BEGIN SELECT raise(ABORT, 'never'); END;
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    run(path, SCHEMA)
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            "INSERT INTO guest VALUES (?, ?, ?, ?, ?)",
            [(at, 1 + at % 2, f"g{at}@x", "n" * at, f"2026-01-{1 + at % 28:02}") for at in range(60)],
        )
        db.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", [(at, 1 + at % 2, at % 60, "w") for at in range(120)])
        db.commit()
    return path


DAMAGE = (
    "DROP TRIGGER noted; DELETE FROM item WHERE id < 20; UPDATE guest SET note = x'00ff' WHERE id % 10 = 0;"
    "INSERT INTO guest VALUES (900, 1, 'new@x', NULL, NULL);"
)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_preview_changes_nothing_and_stops_nobody(bench: Bench, path: Path, journal: str) -> None:
    """Goal: no lock, no write. Method: a writer works inside the preview; the bytes of the file are compared."""
    run(path, f"PRAGMA journal_mode = {journal}")
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(path, DAMAGE + "DROP TABLE item")
    before = path.read_bytes()
    operator.preview(manifest)
    assert path.read_bytes() == before
    written = []

    class Writing(NullProgress):
        def check(self) -> None:
            if not written:
                with closing(sqlite3.connect(path, timeout=0)) as writer:
                    written.append(writer.execute("UPDATE guest SET note = 'meanwhile' WHERE id = 1").rowcount)
                    writer.commit()

    shown = operator.connector.preview(bench.view(manifest), operator.request(), Writing())
    assert written == [1]
    assert {each.name: each.insert for each in shown.tables} == {"guest": 0, "item": 120}
    with pytest.raises(StalePlan):
        operator.connector.restore(bench.view(manifest), operator.request(digest=shown.digest), NullProgress())
    operator.restore(manifest)


def test_samples_and_facts(bench: Bench, path: Path) -> None:
    """Goal: the telling rows first, with their fields and cut values. Method: every kind of change at once."""
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(path, DAMAGE + f"UPDATE guest SET note = '{'z' * 500}' WHERE id = 7")
    shown = operator.preview(manifest)
    changes = [each.change for each in shown.samples["guest"]]
    assert changes == ["delete"] + ["update"] * 7
    first = shown.samples["guest"][0]
    assert first.key == {"id": "900"} and first.after is None and first.before is not None
    assert first.before["email"] == "new@x" and first.before["note"] is None
    seventh = next(each for each in shown.samples["guest"] if each.key == {"id": "7"})
    assert seventh.fields == ("note",)
    assert seventh.before is not None and seventh.before["note"] == "z" * 200
    blob = next(each for each in shown.samples["guest"] if each.key == {"id": "10"})
    assert blob.before is not None and blob.before["note"] == "x'00ff'"
    assert len(shown.samples["item"]) == 20
    assert {each.name: (each.insert, each.update, each.delete) for each in shown.tables} == {
        "guest": (0, 7, 1), "item": (20, 0, 0),
    }  # fmt: skip
    assert shown.staged_bytes > 0
    assert operator.preview(manifest, samples=2).samples["item"] == shown.samples["item"][:2]


def test_a_lost_file_and_another_place(bench: Bench, path: Path, tmp_path: Path) -> None:
    """Goal: everything is an insertion, in every mode that takes all. Method: preview, restore, compare; merges too."""
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    for number, settings in enumerate(({}, {"mode": "merge"})):
        target = tmp_path / f"new{number}.db"
        elsewhere = Operator(bench, operator.connector.at({"path": str(target)}))
        shown = elsewhere.preview(manifest, in_place=False, **settings)
        assert not target.exists()
        assert {each.name: each.insert for each in shown.tables} == {"guest": 30, "item": 60}
        assert len(shown.samples["guest"]) == 20
        elsewhere.restore(manifest, in_place=False, **settings)
        assert query(target, "SELECT count(*) FROM item") == [(60,)]
        with pytest.raises(TargetOccupied):
            elsewhere.preview(manifest, in_place=False, **settings)


def test_a_lost_file_has_the_digest_of_emptied_tables(bench: Bench, path: Path) -> None:
    """Goal: streaming and planning agree. Method: the same rows come back into nothing, and into empty tables."""
    run(
        path,
        r"""CREATE TABLE keyless(a, b); INSERT INTO keyless VALUES ('tab	', x'0a'), (1.5, NULL), ('\n', CAST(x'ff0a' AS TEXT));
        CREATE TABLE pairs(a TEXT, b INT, v, PRIMARY KEY(a, b)) WITHOUT ROWID; INSERT INTO pairs VALUES ('x', 1, 2), ('x', 2, 3);
        CREATE TABLE named(name TEXT PRIMARY KEY, v); INSERT INTO named VALUES ('n', 1)""",
    )
    for connector in (database(path), tenant(path, "1")):
        operator = Operator(bench, connector)
        manifest = bench.backup(connector, full=True)
        kept = path.read_bytes()
        tables = ("guest", "item", "keyless", "pairs", "named")
        run(path, "DROP TRIGGER noted;" + "".join(f"DELETE FROM {name};" for name in tables))
        emptied = operator.preview(manifest)
        path.unlink()
        lost = operator.preview(manifest)
        assert lost.digest == emptied.digest
        assert {each.name: each.insert for each in lost.tables} == {each.name: each.insert for each in emptied.tables}
        path.write_bytes(kept)


def test_what_a_restore_refuses_its_preview_refuses(bench: Bench, path: Path) -> None:
    """Goal: no surprise after the approval. Method: a key and a unique value taken, a parent gone, a table gone."""
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    kept = path.read_bytes()
    for script, message in (
        ("UPDATE guest SET tenant_id = 2 WHERE id = 2", "collides"),
        ("UPDATE guest SET email = 'g2@x' WHERE id = 3; ", "collides"),
        ("INSERT INTO item VALUES (999, 2, 4, 'theirs')", ""),
        (
            "INSERT INTO guest VALUES (901, 1, NULL, 1, 1); INSERT INTO item VALUES (999, 2, 901, 'theirs')",
            "refer to rows",
        ),
        ("DROP TABLE item", "missing"),
    ):
        path.write_bytes(kept)
        run(path, "DROP TRIGGER noted; UPDATE guest SET email = NULL WHERE id = 2;" + script)
        before = everything(path)
        for attempt in (operator.preview, operator.restore):
            if message:
                with pytest.raises(TargetError, match=message):
                    attempt(manifest)
        assert everything(path) == before
    path.write_bytes(kept)
    run(path, "UPDATE guest SET email = NULL WHERE id = 2; UPDATE guest SET email = 'g2@x' WHERE id = 3")
    report, _ = operator.restore(manifest, mode="merge", policies={"guest": "take_backup"})
    assert {each.name: each.collisions for each in report.tables} == {"guest": 1, "item": 0}
    assert query(path, "SELECT email FROM guest WHERE id IN (2, 3) ORDER BY id") == [(None,), (b"g2@x",)]


SPECIAL = """
CREATE TABLE door(id INTEGER PRIMARY KEY, tenant_id INT, email TEXT, gone INT, note);
CREATE UNIQUE INDEX one_living ON door(lower(email) COLLATE NOCASE DESC, tenant_id / 10) WHERE gone IS NULL -- says (who, ';
;
INSERT INTO door VALUES (1, 1, 'A@x', NULL, 'n'), (2, 1, 'b@x', NULL, 'n'), (3, 1, 'c@x', NULL, 'n'), (4, 2, 'z', NULL, 'n');
"""


def test_unique_expressions_and_conditions_collide_as_well(bench: Bench, tmp_path: Path) -> None:
    """Goal: what SQLite would refuse is known before. Method: a partial index of an expression; a value taken, another dead."""
    path = tmp_path / "own.db"
    run(path, SPECIAL)
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM door WHERE id < 3; INSERT INTO door VALUES (8, 2, 'a@X', NULL, 't'), (9, 2, 'B@x', 1, 't')")
    for attempt in (operator.preview, operator.restore):
        with pytest.raises(TargetError, match="collides"):
            attempt(manifest)
    report, _ = operator.restore(manifest, mode="merge")
    assert [(each.insert, each.collisions) for each in report.tables] == [(1, 1)]
    assert query(path, "SELECT id FROM door") == [(2,), (3,), (4,), (8,), (9,)]


def test_search_indexes_are_not_merged(bench: Bench, tmp_path: Path) -> None:
    """Goal: a full-text index stays whole. Method: both sides add words, a merge, a full restore, an integrity check each."""
    path = tmp_path / "own.db"
    run(path, "CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES ('alpha'), ('beta')")
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM words WHERE rowid = 1; INSERT INTO words VALUES ('gamma'), ('delta')")
    live = everything(path)
    assert any("cannot be merged" in each for each in operator.preview(manifest, mode="merge").warnings)
    operator.restore(manifest, mode="merge", policies={"words": "take_backup"})
    assert everything(path) == live
    _, image = operator.restore(manifest, mode="selective", modules=("words",))
    run(path, "INSERT INTO words(words) VALUES ('integrity-check')")
    assert query(path, "SELECT rowid FROM words WHERE words MATCH 'alpha OR beta'") == [(1,), (2,)]
    operator.undo(image)
    assert everything(path) == live
    run(path, "DROP TABLE words")
    operator.restore(manifest)
    assert query(path, "SELECT rowid FROM words WHERE words MATCH 'alpha OR beta'") == [(1,), (2,)]


def test_newer_schemas(bench: Bench, path: Path) -> None:
    """Goal: columns by name, defaults for new ones, removed ones said. Method: alter everything, preview, restore, undo."""
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(
        path,
        """DROP TRIGGER noted; ALTER TABLE guest DROP COLUMN note; ALTER TABLE guest ADD COLUMN vip INT NOT NULL DEFAULT 5;
        UPDATE guest SET vip = 7, updated_at = 'x'; DELETE FROM guest WHERE id > 50; ALTER TABLE item RENAME COLUMN what TO title;
        DELETE FROM item WHERE id < 3; CREATE TABLE later(id INTEGER PRIMARY KEY); DROP INDEX item_guest""",
    )
    live = everything(path)
    shown = operator.preview(manifest)
    said = {each.where: each.action for each in shown.drift}
    assert said["guest.note"].startswith("left out") and "default" in said["guest.vip"]
    assert said["item.what"].startswith("left out") and said["later"].startswith("left alone")
    report, image = operator.restore(manifest)
    assert query(path, "SELECT vip, count(*) FROM guest GROUP BY vip") == [(5, 9), (7, 51)]
    assert query(path, "SELECT count(*) FROM guest WHERE updated_at = 'x'") == [(0,)]
    assert query(path, "SELECT id, title FROM item WHERE id < 4") == [(0, None), (1, None), (2, None), (3, b"w")]
    assert all(check.passed for check in report.checks)
    operator.undo(image)
    assert everything(path) == live
    run(path, "ALTER TABLE item RENAME COLUMN id TO number")
    with pytest.raises(SchemaMismatch, match="key"):
        operator.preview(manifest)


def test_values_that_a_column_now_refuses(bench: Bench, tmp_path: Path) -> None:
    """Goal: a refusal with its reason instead of changed values. Method: NOT NULL, STRICT and another affinity."""
    path = tmp_path / "own.db"
    run(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, NULL), (2, '07'), (3, 'x')")
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    for definition, message in (
        ("v TEXT NOT NULL DEFAULT ''", "asks for"),
        ("v INT", "does not hold what was decided|collides|is not what"),
    ):
        run(path, f"DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, {definition})")
        before = everything(path)
        with pytest.raises(TargetError, match=message):
            operator.restore(manifest)
        assert everything(path) == before
    for definition in ("v INT) STRICT", "v TEXT CHECK (v <> 'x'))"):
        run(path, f"DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, {definition}")
        before = everything(path)
        with pytest.raises(SchemaMismatch, match="does not take"):
            operator.restore(manifest)
        assert everything(path) == before


def test_clocks(bench: Bench, path: Path) -> None:
    """Goal: newest_wins by a column found or given; without one the tenant's rows stay, which is said."""
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(
        path,
        "UPDATE guest SET note = 'older', updated_at = '2025-12-31T23:59:59+00:00' WHERE id = 1;"
        "UPDATE guest SET note = 'newer', updated_at = '2026-03-01' WHERE id = 2; UPDATE item SET what = 'changed' WHERE id = 1",
    )
    policies = {"guest": "newest_wins", "item": "newest_wins"}
    shown = operator.preview(manifest, mode="merge", policies=policies)
    assert shown.facts["clocks"] == {"guest": "updated_at"}
    assert any("item has no clock column" in each for each in shown.warnings)
    operator.restore(manifest, mode="merge", policies=policies)
    assert query(path, "SELECT note FROM guest WHERE id IN (1, 2) ORDER BY id") == [(b"n",), (b"newer",)]
    assert query(path, "SELECT what FROM item WHERE id = 1") == [(b"changed",)]
    with pytest.raises(UsageError, match="no column"):
        operator.preview(manifest, mode="merge", policies=policies, clocks={"guest": "nope"})
    with pytest.raises(UsageError, match="neither times nor numbers"):
        operator.preview(manifest, mode="merge", policies=policies, clocks={"guest": "note"})


@dataclass
class Withholding:
    """A view from which the erasure ledger withholds rows."""

    view: TableView
    keys: frozenset[bytes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)

    @property
    def sha256(self) -> str:
        return ""

    @property
    def row_count(self) -> int:
        return self.view.row_count - len(self.keys)

    def rows(self) -> Iterator[list[bytes]]:
        for batch in self.view.rows():
            yield [row for row in batch if self.view.key.text(row) not in self.keys]


@pytest.mark.parametrize("mode", ["full", "merge"])
@pytest.mark.parametrize("lost", [True, False])
def test_what_refers_to_an_erased_row_is_withheld(bench: Bench, path: Path, mode: str, *, lost: bool) -> None:
    """Goal: an erased subject and what hangs on it stay away. Method: a view without it, into a file lost or damaged."""
    connector = database(path)
    operator = Operator(bench, connector)
    manifest = bench.backup(connector)
    if lost:
        path.unlink()
    else:
        run(path, "DROP TRIGGER noted; DELETE FROM item; DELETE FROM guest WHERE id = 5")
    stored = bench.view(manifest)
    tables = [Withholding(each, frozenset([b"5"])) if each.name == "guest" else each for each in stored.tables]
    view: Any = replace(stored, tables=tuple(tables))
    request = operator.request(mode=mode)
    shown = connector.preview(view, request, NullProgress())
    report = connector.restore(view, operator.request(mode=mode, digest=shown.digest), NullProgress())
    assert report.tables == shown.tables
    assert {each.name: each.withheld for each in report.tables} == {"guest": 0, "item": 2}
    assert [(each.kind, each.table, each.other, each.rows) for each in shown.dependencies] == [
        ("withheld", "item", "guest", 2)
    ]
    assert query(path, "SELECT count(*) FROM guest WHERE id = 5") == [(0,)]
    assert query(path, "SELECT count(*), min(guest = 5) FROM item") == [(118, 0)]


# ---------------------------------------------------------------- faults


def test_a_file_replaced_under_the_connection_is_not_touched(bench: Bench, path: Path, tmp_path: Path) -> None:
    """Goal: no success is claimed for a file that is no longer there. Method: another file takes the name before the commit."""
    connector = database(path)
    operator = Operator(bench, connector)
    manifest = bench.backup(connector)
    run(path, DAMAGE)
    other = tmp_path / "other.db"
    run(other, "CREATE TABLE strange(a)")
    before = everything(other)
    with connector.prepare(bench.view(manifest), operator.request(), NullProgress()) as prepared:
        os.replace(other, path)
        with pytest.raises(TargetError, match="replaced"):
            prepared.commit()
    assert everything(path) == before
    assert connector.settle(prepared.token) is not True


def test_a_locked_file_is_waited_for_and_left(bench: Bench, path: Path) -> None:
    """Goal: a bounded wait and a retryable error. Method: another program holds the write lock, then a reader's."""
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(path, DAMAGE)
    before = everything(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        operator.preview(manifest)
        with pytest.raises(TargetUnreachable):
            operator.connector.restore(bench.view(manifest), operator.request(), NullProgress())
        holder.execute("ROLLBACK")
        holder.execute("BEGIN")
        holder.execute("SELECT count(*) FROM guest").fetchone()
        with pytest.raises(TargetUnreachable):
            operator.connector.restore(bench.view(manifest), operator.request(), NullProgress())
    assert everything(path) == before
    operator.restore(manifest)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_full_disk_leaves_the_target_as_it_was(bench: Bench, tmp_path: Path, journal: str) -> None:
    """Goal: wholly old. Method: no file may grow beyond a bound that the restore needs to pass."""
    path = tmp_path / "big.db"
    run(path, f"PRAGMA journal_mode = {journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    with closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO t(v) VALUES (?)", [(os.urandom(1000),) for _ in range(6000)])
        db.commit()
    connector = database(path)
    manifest = bench.backup(connector)
    run(path, "DELETE FROM t WHERE id > 10; VACUUM")
    before = everything(path)
    view, request = bench.view(manifest), Operator(bench, connector).request()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        try:
            connector.restore(view, request, NullProgress())
        except TargetError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert everything(path) == before
    connector.restore(view, request, NullProgress())
    assert query(path, "SELECT count(*) FROM t") == [(6000,)]


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize(("point", "done"), [("sqlite.before_commit", False), ("sqlite.after_commit", True)])
def test_killed_around_the_commit(
    bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch, journal: str, point: str, *, done: bool
) -> None:
    """Goal: wholly old or wholly new, and the token tells which. Method: a child dies before and after the commit."""
    run(path, f"PRAGMA journal_mode = {journal}")
    connector = database(path)
    operator = Operator(bench, connector)
    manifest = bench.backup(connector)
    whole = everything(path)
    run(path, DAMAGE)
    damaged = everything(path)
    view, request = bench.view(manifest), operator.request()
    with connector.prepare(view, request, NullProgress()) as prepared:
        token = prepared.token
    child = os.fork()
    if not child:
        monkeypatch.setattr(faults, "_wanted", point)
        connector.restore(view, request, NullProgress())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert connector.settle(token) is done
    assert everything(path) == (whole if done else damaged)
    operator.restore(manifest)
    assert everything(path) == whole
