"""Selected modules of a SQLite file come back, with exactly what they need, and leave what others need."""

from pathlib import Path

import pytest

from engine.plans import Dependency
from tests.connectors.sqlite_plans import Operator
from tests.connectors.sqlite_samples import Bench, database, everything, query, run, tenant

SCHEMA = """
CREATE TABLE guest(id INTEGER PRIMARY KEY, tenant_id INT, name TEXT);
CREATE TABLE booking(code TEXT PRIMARY KEY, tenant_id INT, guest INT REFERENCES guest, above TEXT REFERENCES booking);
CREATE TABLE item(id INTEGER PRIMARY KEY, tenant_id INT, booking TEXT REFERENCES booking, what);
CREATE TABLE other(id INTEGER PRIMARY KEY, tenant_id INT, v);
INSERT INTO guest VALUES (1, 1, 'ann'), (2, 1, 'bob'), (3, 1, 'eve'), (9, 2, 'zoe');
INSERT INTO booking VALUES ('a', 1, 1, NULL), ('b', 1, 2, 'a'), ('c', 1, 3, 'b'), ('z', 2, 9, NULL);
INSERT INTO item VALUES (1, 1, 'a', 'x'), (2, 1, 'b', 'y'), (3, 1, 'c', 'z'), (9, 2, 'z', 'q');
INSERT INTO other VALUES (1, 1, 'kept'), (9, 2, 'theirs');
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture(params=["rows", "database"])
def operator(request: pytest.FixtureRequest, bench: Bench, tmp_path: Path) -> Operator:
    path = tmp_path / "app.db"
    run(path, SCHEMA)
    return Operator(bench, tenant(path, "1") if request.param == "rows" else database(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def test_what_a_selection_refers_to_comes_along(operator: Operator, path: Path) -> None:
    """Goal: references stay whole at any distance. Method: only items are chosen, bookings and guests are gone, too."""
    manifest = operator.bench.backup(operator.connector)
    run(
        path,
        "DELETE FROM item WHERE id IN (1, 3); DELETE FROM booking WHERE code IN ('b', 'c'); DELETE FROM guest WHERE id = 3;"
        "UPDATE guest SET name = 'newer' WHERE id = 1; UPDATE other SET v = 'newer' WHERE id = 1;",
    )
    report, image = operator.restore(manifest, mode="selective", modules=("item",))
    assert query(path, "SELECT id FROM item WHERE tenant_id = 1") == [(1,), (2,), (3,)]
    assert query(path, "SELECT code FROM booking WHERE tenant_id = 1 ORDER BY 1") == [(b"a",), (b"b",), (b"c",)]
    assert query(path, "SELECT name FROM guest WHERE tenant_id = 1 ORDER BY id") == [(b"newer",), (b"bob",), (b"eve",)]
    assert query(path, "SELECT v FROM other") == [(b"newer",), (b"theirs",)]
    changes = {each.name: each for each in report.tables}
    assert (changes["booking"].insert, changes["guest"].insert, changes["guest"].kept, changes["other"].kept) == (
        2,
        1,
        1,
        1,
    )
    shown = operator.undo_preview(image)
    assert sum(each.delete for each in shown.tables) == 5


def test_dependencies_are_explained(operator: Operator, path: Path) -> None:
    """Goal: what comes along, stays or is withheld is said with its module. Method: one of each."""
    manifest = operator.bench.backup(operator.connector)
    run(
        path,
        "DELETE FROM item WHERE id = 1; DELETE FROM booking WHERE code = 'a';"
        "INSERT INTO booking VALUES ('new', 1, 2, NULL); INSERT INTO item VALUES (20, 1, 'new', 'hangs on it');",
    )
    along = operator.preview(manifest, mode="selective", modules=("item",))
    assert [each.kind for each in along.dependencies] == ["along"]
    (found,) = along.dependencies
    assert (found.table, found.other, found.rows, found.module) == ("booking", "item", 1, "booking")
    stays = operator.preview(manifest, mode="selective", modules=("booking",))
    assert stays.dependencies == (Dependency("stays", "booking", "item", 1, "item"),)
    assert [sample.change for sample in stays.samples["booking"]] == ["insert", "stays"]
    both = operator.preview(manifest, mode="selective", modules=("booking", "item"))
    assert both.dependencies == ()


def test_what_refers_to_nothing_is_withheld(bench: Bench, tmp_path: Path) -> None:
    """Goal: no dangling row is made, nor what hangs on it. Method: a shared parent outside the backup is gone."""
    path = tmp_path / "app.db"
    run(
        path,
        """CREATE TABLE hotel(id INTEGER PRIMARY KEY);
        CREATE TABLE guest(id INTEGER PRIMARY KEY, tenant_id INT, hotel INT REFERENCES hotel);
        CREATE TABLE item(id INTEGER PRIMARY KEY, tenant_id INT, guest INT REFERENCES guest);
        INSERT INTO hotel VALUES (1), (2); INSERT INTO guest VALUES (1, 1, 1), (2, 1, 2); INSERT INTO item VALUES (1, 1, 1), (2, 1, 2)""",
    )
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM guest; DELETE FROM item; DELETE FROM hotel WHERE id = 2")
    report, _ = operator.restore(manifest, mode="selective", modules=("item",))
    assert query(path, "SELECT id FROM guest") == query(path, "SELECT id FROM item") == [(1,)]
    assert {each.name: each.withheld for each in report.tables} == {"guest": 1, "item": 1}
    shown = operator.preview(manifest, mode="merge")
    assert {(each.kind, each.table, each.other, each.rows) for each in shown.dependencies} == {
        ("withheld", "guest", "hotel", 1),
        ("withheld", "item", "guest", 1),
    }


def test_a_selection_of_nothing_does_nothing(operator: Operator, path: Path) -> None:
    """Goal: no module, no change. Method: everything differs."""
    manifest = operator.bench.backup(operator.connector)
    run(path, "DELETE FROM item; UPDATE guest SET name = 'x'")
    before = everything(path)
    report, _ = operator.restore(manifest, mode="selective", modules=())
    assert everything(path) == before
    assert sum(each.insert + each.update + each.delete for each in report.tables) == 0


def test_a_selection_into_a_new_file(operator: Operator, path: Path, tmp_path: Path) -> None:
    """Goal: another target gets the module and what it needs, no more. Method: a path that does not exist."""
    manifest = operator.bench.backup(operator.connector)
    target = tmp_path / "new.db"
    aimed = Operator(operator.bench, operator.connector.at({"path": str(target)}))
    shown = aimed.preview(manifest, mode="selective", modules=("booking",), in_place=False)
    assert not target.exists()
    report, _ = aimed.restore(manifest, mode="selective", modules=("booking",), in_place=False)
    assert report.digest == shown.digest
    assert query(target, "SELECT code FROM booking WHERE tenant_id = 1") == query(
        path, "SELECT code FROM booking WHERE tenant_id = 1"
    )
    assert query(target, "SELECT id FROM guest WHERE tenant_id = 1") == [(1,), (2,), (3,)]
    assert query(target, "SELECT name FROM sqlite_schema WHERE name IN ('item', 'other')") == []


def test_declared_keys_outlive_rowids(bench: Bench, tmp_path: Path) -> None:
    """Goal: a row is known by its declared key. Method: VACUUM gives new rowids, a row is changed, one is lost."""
    path = tmp_path / "own.db"
    run(
        path,
        "CREATE TABLE named(name TEXT PRIMARY KEY, v); INSERT INTO named VALUES ('a', 1), ('b', 2), ('c', 3), ('d', 4)",
    )
    operator = Operator(bench, database(path))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM named WHERE name = 'a'; UPDATE named SET v = 'newer' WHERE name = 'c'; VACUUM")
    report, _ = operator.restore(manifest, mode="merge")
    (change,) = report.tables
    assert (change.insert, change.update, change.kept, change.unchanged) == (1, 0, 1, 2)
    assert query(path, "SELECT * FROM named ORDER BY name") == [(b"a", 1), (b"b", 2), (b"c", b"newer"), (b"d", 4)]


def test_long_chains_are_withheld_whole(bench: Bench, tmp_path: Path) -> None:
    """Goal: what hangs on what is withheld goes at any depth. Method: a chain of 5,000 rows whose first key was given out again."""
    path = tmp_path / "shared.db"
    run(
        path,
        """CREATE TABLE node(id INTEGER PRIMARY KEY, tenant_id INT, above INT REFERENCES node);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
        INSERT INTO node SELECT i, 1, nullif(i - 1, 0) FROM n""",
    )
    operator = Operator(bench, tenant(path, "1"))
    manifest = bench.backup(operator.connector)
    run(path, "DELETE FROM node; INSERT INTO node VALUES (1, 2, NULL)")
    report, _ = operator.restore(manifest, mode="merge")
    assert [(each.insert, each.collisions, each.withheld) for each in report.tables] == [(0, 1, 4999)]
    assert query(path, "SELECT * FROM node") == [(1, 2, None)]
