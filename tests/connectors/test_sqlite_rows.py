"""A tenant's rows in shared SQLite tables: the scope is closed over foreign keys, others are never touched."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SchemaMismatch, SourceUnsupported, TargetError, UsageError
from tests.connectors.sqlite_samples import Bench, everything, query, run, tenant

SCHEMA = """
CREATE TABLE hotel(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE guest(id INTEGER PRIMARY KEY, tenant_id INT NOT NULL REFERENCES hotel(id), email TEXT UNIQUE, note);
CREATE TABLE booking(code TEXT, year INT, tenant_id TEXT, guest INT REFERENCES guest, boss INT, PRIMARY KEY(code, year));
CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, code TEXT, year INT, what, parent INT REFERENCES item(id),
    FOREIGN KEY(code, year) REFERENCES booking(code, year));
CREATE TABLE tag(item INT REFERENCES item(id), label TEXT, PRIMARY KEY(item, label)) WITHOUT ROWID;
CREATE TABLE loose(TENANT_ID, what TEXT);
CREATE TABLE stray(id INTEGER PRIMARY KEY, what TEXT);
CREATE TABLE log(what TEXT);
CREATE TRIGGER noted AFTER UPDATE ON guest BEGIN INSERT INTO log VALUES ('guest ' || new.id); END;
"""
TABLES = ("guest", "booking", "item", "tag", "loose")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def source(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "shared.db"
    run(path, SCHEMA)
    with closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO hotel VALUES (?, ?)", [(at, f"h{at}") for at in (1, 2, 3)])
        db.executemany(
            "INSERT INTO guest VALUES (?, ?, ?, ?)",
            [(at, 1 + at % 3, f"g{at}@x", rng.choice([None, 1.5, b"\0", "\t"])) for at in range(300)],
        )
        db.executemany(
            "INSERT INTO booking VALUES (?, ?, ?, ?, 0)",
            [(f"b{at}", 2000 + at % 9, str(1 + at % 3), at) for at in range(300)],
        )
        for at in range(300):
            first = db.execute(
                "INSERT INTO item(code, year, what) VALUES (?, ?, ?)", (f"b{at}", 2000 + at % 9, f"tab\t{at}")
            ).lastrowid
            second = db.execute("INSERT INTO item(what, parent) VALUES ('below', ?)", (first,)).lastrowid
            third = db.execute("INSERT INTO item(what, parent) VALUES ('deeper', ?)", (second,)).lastrowid
            db.execute("INSERT INTO tag VALUES (?, 'l')", (third,))
        db.executemany(
            "INSERT INTO loose VALUES (?, ?)",
            [(1 + at % 3 if at % 2 else str(1 + at % 3), f"same {at % 5}") for at in range(90)],
        )
        db.execute("INSERT INTO loose VALUES (NULL, 'nobody')")
        db.execute("INSERT INTO item(what) VALUES ('nobody')")
        db.executemany("INSERT INTO stray(what) VALUES (?)", [("x",)] * 9)
        db.commit()
    return path


ITEMS = """WITH RECURSIVE mine(id) AS (
    SELECT i.id FROM item i JOIN booking b ON b.code = i.code AND b.year = i.year WHERE b.tenant_id = '{t}'
    UNION SELECT i.id FROM item i JOIN mine ON i.parent = mine.id) """


def rows_of(path: Path, who: int) -> dict[str, Any]:
    """A tenant's rows by queries of the test's own."""
    items = ITEMS.format(t=who)
    return {
        "guest": query(path, f"SELECT * FROM guest WHERE tenant_id = {who} ORDER BY id"),
        "booking": query(path, f"SELECT * FROM booking WHERE tenant_id = '{who}' ORDER BY code, year"),
        "item": query(path, items + "SELECT * FROM item WHERE id IN mine ORDER BY id"),
        "tag": query(path, items + "SELECT * FROM tag WHERE item IN mine ORDER BY item"),
        "loose": query(
            path, f"SELECT * FROM loose WHERE tenant_id IN ('{who}', {who}) ORDER BY typeof(tenant_id), what"
        ),
    }


def others_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {f"{who}": rows_of(path, who) for who in (1, 3)}
    for name in ("hotel", "stray", "log"):
        found[name] = query(path, f"SELECT * FROM {name}")
    found["nobody"] = query(path, "SELECT * FROM item WHERE what = 'nobody'") + query(
        path, "SELECT * FROM loose WHERE tenant_id IS NULL"
    )
    return found


def test_the_scope_is_exactly_the_tenant(bench: Bench, source: Path) -> None:
    """Goal: closure over composite, self and chained foreign keys. Method: counts against the test's own queries."""
    manifest = bench.backup(tenant(source, "2"))
    found = {table.name: table.row_count for table in bench.view(manifest).tables}
    assert found == {name: len(rows) for name, rows in rows_of(source, 2).items()}
    probe = tenant(source, "2").test()
    assert probe.details["not_included"] == ["hotel", "stray", "log"]
    assert probe.details["scope"]["tag"] == "through item"
    assert any("guest has no index" in warning for warning in probe.warnings)


def test_restored_in_place_others_are_untouched(bench: Bench, source: Path) -> None:
    """Goal: the tenant is what it was at each backup, others are what they are now, triggers do not fire."""
    connector = tenant(source, "2")
    full, at_full = bench.backup(connector), rows_of(source, 2)
    run(
        source,
        "UPDATE booking SET boss = 7 WHERE tenant_id = '2' AND year = 2003; DELETE FROM tag WHERE item % 7 = 0;"
        "INSERT INTO loose VALUES (2, 'added'), (2, 'added');",
    )
    second, at_second = bench.backup(connector), rows_of(source, 2)
    run(
        source,
        "DELETE FROM booking WHERE tenant_id = '2' AND year % 2; UPDATE guest SET note = 'lost' WHERE tenant_id = 2;"
        "DELETE FROM loose WHERE tenant_id = 2; UPDATE guest SET note = 'theirs' WHERE tenant_id = 3;"
        "DELETE FROM item WHERE id % 5 = 0 AND code IN (SELECT code FROM booking WHERE tenant_id = '2');"
        "INSERT INTO guest VALUES (5000, 2, 'new@x', 1); INSERT INTO guest VALUES (5001, 1, 'other@x', 1);"
        "DELETE FROM log;",
    )
    others = others_of(source)
    report = bench.restore(connector, second, prove=True)
    assert rows_of(source, 2) == at_second
    assert others_of(source) == others
    assert report.neighbours is not None
    counted = report.neighbours["tables"]
    assert counted and all(each["planned"] == each["counted"] for each in counted.values())
    planned = {
        table.name: {"delete": table.delete + table.update, "insert": table.insert + table.update}
        for table in report.tables
    }
    assert {name: each["counted"] for name, each in counted.items()} == {
        k: v for k, v in planned.items() if any(v.values())
    }
    assert set(report.neighbours["fingerprints"]) == {*TABLES, "hotel", "stray", "log"}
    assert sum(each.delete for each in report.tables if each.name == "guest") == 1
    bench.restore(connector, full)
    assert rows_of(source, 2) == at_full
    assert others_of(source) == others
    assert query(source, "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'") == [(1,)]


def test_a_key_taken_by_another_tenant_refuses(bench: Bench, source: Path) -> None:
    """Goal: another tenant's row is never replaced.

    Method: its insert takes the key, or the unique value, of a lost row.
    """
    connector = tenant(source, "2")
    manifest = bench.backup(connector)
    (lost, email), *_ = query(source, "SELECT id, email FROM guest WHERE tenant_id = 2 LIMIT 1")
    for values in (f"({lost}, 3, 'thief@x', 0)", f"(7000, 3, '{email.decode()}', 0)"):
        run(source, f"DELETE FROM guest WHERE id = {lost}; INSERT INTO guest VALUES {values};")
        before = everything(source)
        with pytest.raises(TargetError, match="collides"):
            bench.restore(connector, manifest)
        assert everything(source) == before
        run(source, "DELETE FROM guest WHERE tenant_id = 3 AND id IN (7000) OR email = 'thief@x'")


def test_rows_that_lost_their_parent_are_the_tenants_again(bench: Bench, source: Path) -> None:
    """Goal: orphans neither collide nor stay.

    Method: an item added later, then all bookings gone; others' items remain.
    """
    connector = tenant(source, "2")
    manifest, state = bench.backup(connector), rows_of(source, 2)
    run(
        source,
        "INSERT INTO item(code, year, what) SELECT code, year, 'later' FROM booking WHERE tenant_id = '2';"
        "DELETE FROM booking WHERE tenant_id = '2'; UPDATE item SET what = 'damaged' WHERE id % 4 = 0 AND code IS NULL"
        "  AND id IN (SELECT id FROM item WHERE parent IN (SELECT id FROM item WHERE code NOT IN (SELECT code FROM booking)));"
        "DELETE FROM item WHERE id % 9 = 0 AND code IS NOT NULL AND code NOT IN (SELECT code FROM booking);",
    )
    others = others_of(source)
    bench.restore(connector, manifest, prove=True)
    assert rows_of(source, 2) == state
    assert others_of(source) == others
    assert query(source, "SELECT count(*) FROM item WHERE what = 'later'") == [(0,)]


def test_a_missing_shared_parent_refuses(bench: Bench, source: Path) -> None:
    """Goal: no dangling reference is made in shared tables. Method: the shared parent is gone, then back."""
    connector = tenant(source, "2")
    manifest, state = bench.backup(connector), rows_of(source, 2)
    run(source, "DELETE FROM guest WHERE tenant_id = 2; DELETE FROM hotel WHERE id = 2;")
    with pytest.raises(TargetError, match="refer to rows that do not exist"):
        bench.restore(connector, manifest)
    run(source, "INSERT INTO hotel VALUES (2, 'back')")
    bench.restore(connector, manifest)
    assert rows_of(source, 2) == state


def test_restored_to_a_file_of_its_own(bench: Bench, source: Path, tmp_path: Path) -> None:
    """Goal: an alternative target holds the tenant alone. Method: all its rows there, nobody else's."""
    connector = tenant(source, "2")
    manifest = bench.backup(connector)
    target = tmp_path / "tenant2.db"
    report = bench.restore(connector, manifest, target={"path": str(target)})
    assert {name: query(target, f"SELECT count(*) FROM {name}")[0][0] for name in TABLES} == {
        name: len(rows) for name, rows in rows_of(source, 2).items()
    }
    assert rows_of(target, 2) == rows_of(source, 2)
    assert any("refer to rows that do not exist" in warning for warning in report.warnings)


def test_schema_changes_that_cannot_be_right_are_refused(bench: Bench, source: Path) -> None:
    """Goal: shared tables are never created or guessed. Method: drop a table, drop the tenant column."""
    connector = tenant(source, "2")
    manifest = bench.backup(connector)
    run(source, "DROP TABLE tag")
    with pytest.raises(SchemaMismatch, match="tag is missing"):
        bench.restore(connector, manifest)
    run(source, "CREATE TABLE tag(item INT, label TEXT, PRIMARY KEY(item, label)) WITHOUT ROWID")
    with pytest.raises(SchemaMismatch, match="no longer reached"):
        bench.restore(connector, manifest)


def test_settings_are_checked(source: Path) -> None:
    """Goal: settings that cannot be right are refused with a hint.

    Method: no value, unknown column, hostile value.
    """
    with pytest.raises(UsageError, match="tenant_column"):
        tenant(source, "").test()
    with pytest.raises(SourceUnsupported, match="no table has a column"):
        tenant(source, "2", column="nope").test()
    hostile = tenant(source, "2' OR '1'='1")
    assert hostile.test().details["scope"]
    with hostile.open(None) as reader:  # type: ignore[arg-type]
        assert [row for part in reader.tables() for batch in part.rows() for row in batch] == []
