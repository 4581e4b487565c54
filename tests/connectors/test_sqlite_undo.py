"""A restore of a SQLite file is taken back exactly, from the rows that it changed."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from engine.errors import SourceUnsupported, StalePlan
from engine.progress import NullProgress
from tests.connectors.sqlite_plans import Operator
from tests.connectors.sqlite_samples import Bench, database, everything, fill, query, run, tenant

SCHEMA = """
CREATE TABLE plain(id INTEGER PRIMARY KEY, v, w TEXT);
CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT UNIQUE);
CREATE TABLE keyless(a, b);
CREATE TABLE named(name TEXT PRIMARY KEY, v BLOB);
CREATE TABLE pairs(a TEXT, b INT, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
CREATE TABLE mixed(k PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE log(what TEXT);
CREATE INDEX plain_w ON plain(w);
CREATE TRIGGER noted AFTER INSERT ON plain BEGIN INSERT INTO log VALUES ('insert ' || new.id); END;
"""
DAMAGE = """
DELETE FROM plain WHERE id % 3 = 0; UPDATE plain SET v = 'damaged' WHERE id % 3 = 1; DELETE FROM log;
INSERT INTO plain(id, v, w) VALUES (9000, CAST(x'ff00' AS TEXT), 'new'), (9001, 9e999, x'00ff');
UPDATE counted SET v = 'x' WHERE id = 1; UPDATE counted SET v = 'c0' WHERE id = 2; UPDATE counted SET v = 'c1' WHERE id = 1;
INSERT INTO counted(v) VALUES ('later');
DELETE FROM keyless WHERE rowid % 2; DELETE FROM named WHERE v > x'20'; DELETE FROM mixed; INSERT INTO mixed VALUES ('later', 2);
UPDATE pairs SET v = NULL WHERE b % 2; INSERT INTO pairs VALUES ('new', 1, 1);
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.db"
    run(path, SCHEMA)
    with closing(sqlite3.connect(path)) as db:
        fill(db)
        db.commit()
    return path


@pytest.mark.parametrize("mode", ["full", "merge"])
def test_an_undo_puts_back_exactly_what_was_there(bench: Bench, source: Path, mode: str) -> None:
    """Goal: undo, and undo of undo, equal dumps. Method: awkward values in every kind of table, damage, there and back."""
    operator = Operator(bench, database(source))
    manifest = bench.backup(operator.connector)
    run(source, DAMAGE)
    damaged = everything(source)
    policies = dict.fromkeys(("plain", "pairs", "counted"), "take_backup")
    _, image = operator.restore(manifest, mode=mode, policies=policies)
    restored = everything(source)
    assert restored != damaged
    report, second = operator.undo(image)
    assert everything(source) == damaged
    assert all(check.passed for check in report.checks)
    _, third = operator.undo(second)
    assert everything(source) == restored
    operator.undo(third)
    assert everything(source) == damaged


def test_rows_that_changed_since_are_asked_about(bench: Bench, source: Path) -> None:
    """Goal: newer work is not lost unasked. Method: a restored row is changed, the undo refuses, its preview is confirmed."""
    operator = Operator(bench, database(source))
    manifest = bench.backup(operator.connector)
    run(source, DAMAGE)
    damaged = everything(source)
    _, image = operator.restore(manifest)
    run(
        source,
        "UPDATE plain SET v = 'newer' WHERE id = 1; INSERT INTO named VALUES ('n89', 'new') ON CONFLICT DO UPDATE SET v = 'new'",
    )
    live = everything(source)
    with pytest.raises(StalePlan):
        operator.undo(image)
    assert everything(source) == live
    shown = operator.undo_preview(image)
    assert sum(each.conflicts for each in shown.tables) == 2
    assert {sample.change for sample in shown.samples["plain"][:1]} == {"conflict"}
    run(source, "UPDATE plain SET v = 'newest' WHERE id = 1")
    with pytest.raises(StalePlan):
        operator.undo(image, shown.digest)
    operator.undo(image, operator.undo_preview(image).digest)
    assert everything(source) == damaged


def test_rows_elsewhere_do_not_stand_in_the_way(bench: Bench, source: Path) -> None:
    """Goal: only the restore's own rows count. Method: other rows of the same tables change after the restore."""
    operator = Operator(bench, database(source))
    run(source, "INSERT INTO plain(id, w) VALUES (500, 'untouched')")
    manifest = bench.backup(operator.connector)
    run(source, "DELETE FROM plain WHERE id < 5")
    _, image = operator.restore(manifest)
    run(source, "UPDATE plain SET w = 'later' WHERE id = 500; INSERT INTO plain(id, w) VALUES (501, 'later')")
    operator.undo(image)
    assert query(source, "SELECT id FROM plain WHERE id < 5") == []
    assert query(source, "SELECT id, w FROM plain WHERE id >= 500") == [(500, b"later"), (501, b"later")]


def test_tables_that_a_restore_made_go_again(bench: Bench, source: Path) -> None:
    """Goal: what the restore created is undone, too. Method: a table, an index and a trigger are lost before it."""
    operator = Operator(bench, database(source))
    manifest = bench.backup(operator.connector)
    whole = everything(source)
    run(source, "DROP TABLE named; DROP INDEX plain_w; DROP TRIGGER noted; DROP TABLE pairs")
    damaged = everything(source)
    _, image = operator.restore(manifest)
    assert everything(source) == whole
    _, back = operator.undo(image)
    assert everything(source) == damaged
    operator.undo(back)
    assert everything(source) == whole


def test_a_file_that_a_restore_made_is_not_taken_back(bench: Bench, source: Path) -> None:
    """Goal: a clear refusal. Method: the file is lost, restored, and the undo asked for."""
    operator = Operator(bench, database(source))
    manifest = bench.backup(operator.connector)
    before = everything(source)
    source.unlink()
    _, image = operator.restore(manifest)
    assert everything(source) == before
    with pytest.raises(SourceUnsupported, match="made the whole file"):
        operator.undo(image)


def test_settle_tells_what_became_of_a_commit(bench: Bench, source: Path) -> None:
    """Goal: a lost answer is found out. Method: tokens of a committed, an abandoned and an overwritten restore."""
    operator = Operator(bench, database(source))
    manifest = bench.backup(operator.connector)
    run(source, "DELETE FROM plain WHERE id = 2; UPDATE plain SET w = 'x' WHERE id = 3")
    connector, view = operator.connector, bench.view(manifest)
    with connector.prepare(view, operator.request(), NullProgress()) as abandoned:
        pass
    assert connector.settle(abandoned.token) is False
    with connector.prepare(view, operator.request(), NullProgress()) as prepared:
        prepared.commit()
    assert connector.settle(prepared.token) is True
    run(source, "UPDATE plain SET w = 'later' WHERE id = 3")
    assert connector.settle(prepared.token) is None


def test_another_tenants_row_is_never_overwritten_by_an_undo(bench: Bench, tmp_path: Path) -> None:
    """Goal: neighbours are safe from a confirmed undo. Method: a key that the restore freed is taken by another tenant."""
    path = tmp_path / "shared.db"
    run(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, tenant_id INT, v); INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b')")
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    run(path, "INSERT INTO t VALUES (3, 1, 'later')")
    _, image = operator.restore(manifest)
    run(path, "INSERT INTO t VALUES (3, 2, 'theirs')")
    live = everything(path)
    with pytest.raises(Exception, match="another tenant"):
        operator.undo_preview(image)
    with pytest.raises(Exception, match="another tenant"):
        operator.undo(image)
    assert everything(path) == live


def test_rowids_that_were_given_out_again_do_not_hinder_an_undo(bench: Bench, tmp_path: Path) -> None:
    """Goal: neighbours' and newer rows are no change of restored ones. Method: they take the rowids that a restore freed."""
    path = tmp_path / "shared.db"
    run(
        path,
        "CREATE TABLE bills(tenant_id INT, number INT, v, PRIMARY KEY(tenant_id, number)); CREATE TABLE log(tenant_id INT, v);"
        "INSERT INTO bills VALUES (1, 1, 'a'), (2, 1, 'b'); INSERT INTO log VALUES (1, 'a'), (2, 'b'), (1, 'lost');",
    )
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM log WHERE v = 'lost'")
    run(
        path,
        "INSERT INTO bills VALUES (1, 7, 'later'), (1, 8, NULL); INSERT INTO log VALUES (1, 'x'), (1, 'x'), (1, NULL)",
    )
    before = {name: query(path, f"SELECT * FROM {name} WHERE tenant_id = 1 ORDER BY 1, 2") for name in ("bills", "log")}
    _, image = operator.restore(manifest)
    run(path, "DELETE FROM log WHERE v = 'lost'")
    for at in range(6):
        run(path, f"INSERT INTO bills VALUES (2, {at + 10}, 'theirs'); INSERT INTO log VALUES (2, 'theirs')")
        if at == 0:
            shown = operator.undo_preview(image)
            assert [each.conflicts for each in shown.tables] == [0, 0]
            assert [(each.insert, each.update, each.delete) for each in shown.tables] == [(2, 0, 0), (3, 0, 0)]
    theirs = [query(path, f"SELECT * FROM {name} WHERE tenant_id = 2 ORDER BY 1, 2") for name in ("bills", "log")]
    run(path, "INSERT INTO bills VALUES (1, 9, 'newest')")
    _, back = operator.undo(image, shown.digest)
    assert query(path, "SELECT * FROM bills WHERE tenant_id = 1 ORDER BY 1, 2") == [*before["bills"], (1, 9, b"newest")]
    assert query(path, "SELECT * FROM log WHERE tenant_id = 1 ORDER BY 1, 2") == before["log"]
    operator.undo(back)
    assert query(path, "SELECT * FROM bills WHERE tenant_id = 1 ORDER BY 1, 2") == [(1, 1, b"a"), (1, 9, b"newest")]
    assert query(path, "SELECT * FROM log WHERE tenant_id = 1") == [(1, b"a")]
    assert theirs == [
        query(path, f"SELECT * FROM {name} WHERE tenant_id = 2 ORDER BY 1, 2") for name in ("bills", "log")
    ]
