"""What a restore must not do to anybody else's rows, where SQLite itself would not notice."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from connectors._sqlite import inplace
from engine.errors import TargetError, TargetOccupied, UsageError
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from tests.connectors.sqlite_samples import Bench, database, everything, query, run, tenant


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


UNIQUE = "id INTEGER PRIMARY KEY, tenant_id INT, v TEXT UNIQUE ON CONFLICT REPLACE"
IGNORED = "id INT PRIMARY KEY, tenant_id INT, v TEXT, UNIQUE (v) ON CONFLICT IGNORE"
ROWID = "id INTEGER PRIMARY KEY ON CONFLICT REPLACE, tenant_id INT, v TEXT"
PRIMARY = "id INT, tenant_id INT, v TEXT, PRIMARY KEY (id) ON CONFLICT REPLACE"
KEY_TAKEN, VALUE_TAKEN = "(1, 2, 'new')", "(4, 2, 'a')"


@pytest.mark.parametrize(
    ("columns", "taken"),
    [(UNIQUE, VALUE_TAKEN), (IGNORED, VALUE_TAKEN), (ROWID, KEY_TAKEN), (PRIMARY, KEY_TAKEN)],
)
@pytest.mark.parametrize("later", ["", "ALTER TABLE door ADD COLUMN later DEFAULT 1;"])
def test_conflict_clauses_of_the_schema_do_not_count(
    bench: Bench, tmp_path: Path, columns: str, taken: str, later: str
) -> None:
    """Goal: ON CONFLICT REPLACE never deletes another tenant's row. Method: key or value were taken since the backup."""
    path = tmp_path / "shared.db"
    run(path, f"CREATE TABLE door({columns}); INSERT INTO door VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c')")
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    run(path, f"DELETE FROM door WHERE id = 1; INSERT INTO door VALUES {taken}; {later}")
    live = everything(path)
    with pytest.raises(TargetError):
        bench.restore(connector, manifest)
    assert everything(path) == live


def test_settings_of_another_tenant_are_refused(bench: Bench, tmp_path: Path) -> None:
    """Goal: one tenant's backup never empties another. Method: a backup without rows, settings that name a neighbour."""
    path = tmp_path / "shared.db"
    run(path, "CREATE TABLE door(id INTEGER PRIMARY KEY, tenant_id INT); INSERT INTO door VALUES (1, 2), (2, 2)")
    manifest = bench.backup(tenant(path, "1"))
    with pytest.raises((UsageError, TargetError)):
        bench.restore(tenant(path, "2"), manifest)
    with pytest.raises(UsageError):
        bench.restore(tenant(path, "1", "id"), manifest)
    assert query(path, "SELECT count(*) FROM door") == [(2,)]


BETWEEN = """
CREATE TABLE account(id INTEGER PRIMARY KEY, tenant_id INT);
CREATE TABLE transfer(id INTEGER PRIMARY KEY, payer INT REFERENCES account, payee INT REFERENCES account, sum INT);
CREATE TABLE entry(transfer INT REFERENCES transfer, n INT, above INT, PRIMARY KEY (transfer, n)) WITHOUT ROWID;
CREATE TABLE box(id INTEGER PRIMARY KEY, account INT REFERENCES account, inside INT REFERENCES box);
INSERT INTO account VALUES (1, 1), (2, 2), (3, 1);
INSERT INTO transfer VALUES (1, 1, 3, 10), (2, 1, 2, 20), (3, 2, NULL, 30), (4, 3, NULL, 40);
INSERT INTO entry VALUES (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 0);
INSERT INTO box VALUES (1, 1, NULL), (2, NULL, 1), (3, 2, NULL), (4, NULL, 3), (5, 1, 3), (6, NULL, 5);
"""


def test_rows_between_two_tenants_belong_to_neither(bench: Bench, tmp_path: Path) -> None:
    """Goal: what another tenant sees too is not restored. Method: rows with one parent of each, and what hangs on them."""
    path = tmp_path / "shared.db"
    run(path, BETWEEN)
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    assert {table.name: table.row_count for table in bench.view(manifest).tables} == {
        "account": 2,
        "transfer": 2,
        "entry": 2,
        "box": 2,
    }
    run(
        path,
        "UPDATE transfer SET sum = 0; DELETE FROM entry WHERE transfer IN (1, 2); INSERT INTO transfer VALUES (5, 2, 1, 50);"
        "INSERT INTO entry VALUES (5, 1, 0); DELETE FROM box WHERE id = 2; UPDATE box SET account = NULL WHERE id = 5",
    )
    bench.restore(connector, manifest, prove=True)
    assert query(path, "SELECT id, sum FROM transfer ORDER BY id") == [(1, 10), (2, 0), (3, 0), (4, 40), (5, 0 + 50)]
    assert query(path, "SELECT transfer FROM entry ORDER BY 1") == [(1,), (3,), (4,), (5,)]
    assert query(path, "SELECT id, account FROM box ORDER BY id") == [
        (1, 1), (2, None), (3, 2), (4, None), (5, None), (6, None),
    ]  # fmt: skip


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_what_a_lost_file_left_behind_is_not_replayed(bench: Bench, tmp_path: Path, journal: str) -> None:
    """Goal: a restored file holds the backup alone. Method: the database is gone, its journal or log is still there."""
    path = tmp_path / "own.db"
    run(
        path,
        f"PRAGMA journal_mode = {journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'kept')",
    )
    manifest = bench.backup(database(path))
    before = everything(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 5")
        writer.execute("BEGIN")
        writer.execute("UPDATE t SET v = 'later'")
        writer.executemany("INSERT INTO t(v) VALUES (?)", [(str(at) * 900,) for at in range(200)])
        if journal == "wal":
            writer.execute("COMMIT")
        for name in (f"{path}-wal", f"{path}-journal"):
            if Path(name).exists():
                shutil.copy(name, name + ".copy")
    path.unlink()
    left = [Path(f"{path}{suffix}") for suffix in ("-wal", "-journal") if Path(f"{path}{suffix}.copy").exists()]
    assert left
    for name in left:
        shutil.move(f"{name}.copy", name)
    with pytest.raises(TargetOccupied):
        bench.restore(database(tmp_path / "x.db"), manifest, target={"path": str(path)})
    bench.restore(database(path), manifest)
    assert everything(path) == before
    assert query(path, "PRAGMA integrity_check") == [(bytearray(b"ok"),)]


def test_references_are_checked_table_by_table(bench: Bench, tmp_path: Path) -> None:
    """Goal: one foreign key that cannot be checked does not hide the others. Method: a broken one beside a real one."""
    path = tmp_path / "shared.db"
    run(
        path,
        """CREATE TABLE door(id INTEGER PRIMARY KEY, tenant_id INT, code TEXT);
        CREATE TABLE odd(code TEXT REFERENCES door(code));
        CREATE TABLE theirs(tenant_id INT, door INT, n INT, PRIMARY KEY (tenant_id, n), FOREIGN KEY (door) REFERENCES door)
            WITHOUT ROWID;
        INSERT INTO door VALUES (1, 1, 'a'); INSERT INTO theirs VALUES (2, 99, 1)""",
    )
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    run(path, "INSERT INTO door VALUES (2, 1, 'b'); INSERT INTO theirs VALUES (2, 2, 2)")
    live = everything(path)
    with pytest.raises(TargetError, match="theirs"):
        bench.restore(connector, manifest)
    assert everything(path) == live


def test_a_write_that_nobody_planned_shows_in_the_count(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: the proof is a measurement, not a repetition of the plan. Method: a trigger that nothing silences."""
    path = tmp_path / "shared.db"
    run(
        path,
        "CREATE TABLE door(id INTEGER PRIMARY KEY, tenant_id INT, v); CREATE TABLE till(id INTEGER PRIMARY KEY, sum INT);"
        "INSERT INTO door VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c'); INSERT INTO till VALUES (1, 100)",
    )
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    run(path, "DELETE FROM door WHERE id = 1; UPDATE door SET v = 'x' WHERE id = 2")
    live = everything(path)
    begin = inplace.transaction_begin

    def slyly(connection: sqlite3.Connection) -> None:
        begin(connection)
        connection.execute("CREATE TEMP TRIGGER sly AFTER INSERT ON main.door BEGIN UPDATE till SET sum = sum - 1; END")

    with monkeypatch.context() as patched:
        patched.setattr(inplace, "transaction_begin", slyly)
        with pytest.raises(TargetError, match="door: planned 1 delete, 2 insert, counted 1 delete, 4 insert"):
            bench.restore(connector, manifest)
    assert everything(path) == live
    report = bench.restore(connector, manifest)
    assert report.neighbours == {
        "tables": {"door": {"planned": {"delete": 1, "insert": 2}, "counted": {"delete": 1, "insert": 2}}}
    }


def test_what_stays_says_why(bench: Bench, tmp_path: Path) -> None:
    """Goal: a preview tells for each row that is kept on whose account. Method: every kind of it, with and without a base."""
    path = tmp_path / "own.db"
    run(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, updated_at); CREATE TABLE u(id INTEGER PRIMARY KEY, v)")
    run(path, "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1); INSERT INTO u VALUES (1, 'a')")
    manifest = bench.backup(database(path))
    run(
        path,
        "UPDATE t SET v = 'x', updated_at = 2 WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (9, 'n', 3)",
    )

    def why(**wish: Any) -> dict[str | None, str]:
        request = RestoreRequest(label="p", **wish)
        preview = database(path).preview(bench.view(manifest), request, NullProgress())
        return {row.key["id"]: row.because for row in preview.samples["t"] if row.change == "kept"}

    assert why(mode="merge") == {"1": "only_missing", "9": "only the tenant has it"}
    assert why(mode="merge", policies={"t": "newest_wins"}) == {"1": "newest_wins", "9": "only the tenant has it"}
    three_way = {"1": "only the tenant changed it", "2": "the tenant deleted it", "9": "only the tenant has it"}
    assert why(mode="merge", base=bench.view(manifest)) == three_way
    chosen = why(mode="selective", modules=("u",))
    assert set(chosen.values()) == {"its module was not chosen"}
