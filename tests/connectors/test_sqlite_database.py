"""A whole SQLite database through backup and restore: exact values, every kind of table, writers meanwhile."""

import gzip
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest

from engine import faults
from engine.errors import SchemaMismatch, SourceError, SourceUnreachable, TargetError, TargetOccupied, UsageError
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from tests.connectors.sqlite_samples import AWKWARD, Bench, database, everything, fill, query, run

SCHEMA = """
CREATE TABLE plain(id INTEGER PRIMARY KEY, v, w TEXT, n NUMERIC, r REAL);
CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT UNIQUE);
CREATE TABLE keyless(a, b);
CREATE TABLE named(name TEXT PRIMARY KEY, v BLOB);
CREATE TABLE pairs(a TEXT, b INT, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
CREATE TABLE mixed(k PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE "odd ""name"" é"("select" TEXT, "a b" INT, total INT GENERATED ALWAYS AS ("a b" * 2) STORED);
CREATE TABLE strictly(id INT PRIMARY KEY, v ANY) STRICT;
CREATE TABLE parent(id INTEGER PRIMARY KEY);
CREATE TABLE child(id INTEGER PRIMARY KEY, parent INT REFERENCES parent(id) ON DELETE CASCADE);
CREATE TABLE log(what TEXT);
CREATE INDEX plain_w ON plain(w) WHERE w IS NOT NULL;
CREATE VIEW seen AS SELECT id, w FROM plain;
CREATE TRIGGER noted AFTER INSERT ON plain BEGIN INSERT INTO log VALUES ('insert ' || new.id); END;
CREATE VIRTUAL TABLE words USING fts5(body);
PRAGMA user_version = 7;
PRAGMA application_id = 77;
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
        db.executemany('INSERT INTO "odd ""name"" é" VALUES (?, ?)', [("x", at) for at in range(9)])
        db.executemany("INSERT INTO strictly VALUES (?, ?)", [(at, value) for at, value in enumerate(AWKWARD)])
        db.executemany("INSERT INTO parent VALUES (?)", [(at,) for at in range(5)])
        db.executemany("INSERT INTO child(parent) VALUES (?)", [(at % 5,) for at in range(20)])
        db.executemany("INSERT INTO words VALUES (?)", [(f"word{at} common",) for at in range(30)])
        db.commit()
    return path


def damage(path: Path) -> None:
    """What an accident does: rows changed, added, gone; values swapped between unique rows."""
    run(
        path,
        """
        DELETE FROM plain WHERE id % 3 = 0; UPDATE plain SET v = 'damaged' WHERE id % 3 = 1;
        INSERT INTO plain(id, w) VALUES (9000, 'new');
        UPDATE counted SET v = 'x' WHERE id = 1; UPDATE counted SET v = 'c0' WHERE id = 2; UPDATE counted SET v = 'c1' WHERE id = 1;
        DELETE FROM keyless WHERE rowid % 2; DELETE FROM named; DELETE FROM mixed; INSERT INTO mixed VALUES ('later', 2);
        UPDATE pairs SET v = NULL; DELETE FROM parent WHERE id = 3; DELETE FROM words WHERE rowid < 9;
        INSERT INTO words VALUES ('intruder'); DROP INDEX plain_w; DROP VIEW seen; DROP TRIGGER noted; DROP TABLE strictly;
        """,
    )


def test_restored_to_a_new_file_everything_is_equal(bench: Bench, source: Path, tmp_path: Path) -> None:
    """Goal: a new file holds every row, type, rowid and definition.

    Method: all compared, integrity checked, FTS asked.
    """
    manifest = bench.backup(database(source))
    target = tmp_path / "copy.db"
    report = bench.restore(database(source), manifest, target={"path": str(target)})
    assert everything(target) == everything(source)
    assert query(target, "PRAGMA integrity_check") == [(b"ok",)]
    assert query(target, "PRAGMA user_version") + query(target, "PRAGMA application_id") == [(7,), (77,)]
    assert query(target, "SELECT count(*) FROM words WHERE words MATCH 'common'") == [(30,)]
    assert query(target, "SELECT seq FROM sqlite_sequence") == [(50,)]
    assert all(check.passed for check in report.checks)
    assert not [path for path in tmp_path.iterdir() if "lastro" in path.name]


def test_restored_in_place_after_damage(bench: Bench, source: Path) -> None:
    """Goal: in place everything is what it was, counts are exact, a second run changes nothing."""
    manifest = bench.backup(database(source))
    before = everything(source)
    plain = query(source, "SELECT id FROM plain")
    damage(source)
    report = bench.restore(database(source), manifest)
    assert everything(source) == before
    assert query(source, "SELECT count(*) FROM words WHERE words MATCH 'common'") == [(30,)]
    change = next(each for each in report.tables if each.name == "plain")
    assert (change.delete, change.insert, change.update) == (1, len(plain) // 3, (len(plain) + 2) // 3)
    assert change.unchanged == len(plain) - change.insert - change.update
    again = bench.restore(database(source), manifest)
    assert all((each.insert, each.update, each.delete) == (0, 0, 0) for each in again.tables)


def test_incrementals_restore_each_state(bench: Bench, source: Path, tmp_path: Path) -> None:
    """Goal: every backup of a chain restores its own state.

    Method: writes between backups, each restored elsewhere.
    """
    states = []
    for step in range(4):
        states.append((bench.backup(database(source)), everything(source)))
        run(
            source,
            f"UPDATE plain SET w = 'step{step}' WHERE id % 5 = {step}; INSERT INTO keyless VALUES ({step}, NULL);"
            f"DELETE FROM named WHERE name = 'n{step}'; INSERT INTO words VALUES ('step{step}');",
        )
    for number, (manifest, state) in enumerate(states):
        target = tmp_path / f"state{number}.db"
        bench.restore(database(source), manifest, target={"path": str(target)})
        assert everything(target) == state


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_backup_is_one_snapshot_while_another_process_writes(bench: Bench, tmp_path: Path, journal: str) -> None:
    """Goal: online backup. Method: a process moves money between two tables; the sum is constant in each backup."""
    path = tmp_path / "bank.db"
    run(
        path,
        f"PRAGMA journal_mode={journal}; CREATE TABLE a(id INTEGER PRIMARY KEY, n INT); CREATE TABLE b(id INTEGER PRIMARY KEY, n INT);"
        "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM s WHERE i < 4000) INSERT INTO a SELECT i, 10 FROM s;"
        "INSERT INTO b SELECT * FROM a;",
    )
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
            import sqlite3, sys, random, time
            db = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
            while True:
                i = random.randrange(1, 4001)
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE a SET n = n - 1 WHERE id = ?", (i,))
                db.execute("UPDATE b SET n = n + 1 WHERE id = ?", (i,))
                db.execute("COMMIT")
                print(i, flush=True)
                time.sleep(0.002)  # SQLite is not fair: without a pause a reader may never get its lock.
        """),
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert writer.stdout is not None
        sums = []
        for number in range(3):
            for _ in range(20):
                writer.stdout.readline()
            manifest = bench.backup(database(path))
            target = tmp_path / f"out{number}.db"
            bench.restore(database(path), manifest, target={"path": str(target)})
            sums.append(query(target, "SELECT (SELECT sum(n) FROM a) + (SELECT sum(n) FROM b)")[0][0])
        assert sums == [80_000] * 3
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def test_nothing_is_overwritten_unasked(bench: Bench, source: Path, tmp_path: Path) -> None:
    """Goal: an existing target is refused, and changed only with permission.

    Method: restore onto another database.
    """
    manifest = bench.backup(database(source))
    target = tmp_path / "other.db"
    run(
        target,
        "CREATE TABLE plain(id INTEGER PRIMARY KEY, v, w TEXT, n NUMERIC, r REAL); INSERT INTO plain(id) VALUES (1);",
    )
    before = target.read_bytes()
    with pytest.raises(TargetOccupied):
        bench.restore(database(source), manifest, target={"path": str(target)})
    assert target.read_bytes() == before
    bench.restore(database(source), manifest, target={"path": str(target)}, overwrite=True)
    assert everything(target) == everything(source)
    with pytest.raises(UsageError):
        database(source).at({"schema": "x"})


def test_schema_that_cannot_fit_is_refused_whole(bench: Bench, source: Path) -> None:
    """Goal: a key that is gone, or a new column without value, refuses; nothing changes. Method: alter, restore."""
    manifest = bench.backup(database(source))
    shutil.copy(source, source.with_suffix(".kept"))
    for script in (
        "ALTER TABLE counted RENAME COLUMN id TO renamed; UPDATE plain SET v = 1;",
        "CREATE TABLE n2(id INTEGER PRIMARY KEY, v TEXT UNIQUE, must INT NOT NULL); DROP TABLE counted; ALTER TABLE n2 RENAME TO counted;",
        "DROP TABLE named; CREATE VIEW named AS SELECT 1;",
    ):
        shutil.copy(source.with_suffix(".kept"), source)
        run(source, script)
        before = everything(source)
        with pytest.raises(SchemaMismatch):
            bench.restore(database(source), manifest)
        assert everything(source) == before


def test_new_column_keeps_its_values(bench: Bench, source: Path) -> None:
    """Goal: columns are matched by name; what the backup does not know stays.

    Method: add a column, damage, restore.
    """
    manifest = bench.backup(database(source))
    run(source, "ALTER TABLE plain ADD COLUMN later TEXT DEFAULT 'd'; UPDATE plain SET later = 'kept', w = 'bad';")
    bench.restore(database(source), manifest)
    assert query(source, "SELECT DISTINCT later FROM plain") == [(b"kept",)]
    assert query(source, "SELECT count(*) FROM plain WHERE w = 'bad'") == [(0,)]


def test_failure_at_the_end_leaves_the_target_as_it_was(bench: Bench, source: Path) -> None:
    """Goal: wholly old or wholly new. Method: a progress that cancels just before the commit."""
    manifest = bench.backup(database(source))
    damage(source)
    before = everything(source)

    class Cancelling(NullProgress):
        armed = False

        def phase(self, name: str) -> None:
            self.armed = name == "check"

        def check(self) -> None:
            if self.armed:
                raise TargetError("cancelled at the last moment")

    with pytest.raises(TargetError, match="last moment"):
        database(source).restore(bench.view(manifest), RestoreRequest("rst_2"), Cancelling())
    assert everything(source) == before


def test_killed_before_the_commit_the_target_is_as_it_was(
    bench: Bench, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: SIGKILL leaves the old state, and a rerun ends in the new one. Method: a forked child dies there."""
    manifest, state = bench.backup(database(source)), everything(source)
    damage(source)
    before = everything(source)
    new = tmp_path / "new.db"
    for target in (None, {"path": str(new)}):
        child = os.fork()
        if not child:
            monkeypatch.setattr(faults, "_wanted", "sqlite.before_commit")
            bench.restore(database(source), manifest, target=target)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert everything(source) == before
        assert not new.exists()
    for target in (None, {"path": str(new)}):
        bench.restore(database(source), manifest, target=target)
    assert everything(source) == everything(new) == state
    assert not [path for path in tmp_path.iterdir() if "lastro-rst" in path.name]


def test_unreadable_sources_end_in_typed_errors(bench: Bench, tmp_path: Path) -> None:
    """Goal: no traceback of sqlite3. Method: missing, no database, torn in the middle, locked."""
    with pytest.raises(SourceError, match="no such file"):
        database(tmp_path / "missing.db").test()
    (tmp_path / "text.db").write_bytes(b"not a database at all, but long enough to have a header " * 40)
    with pytest.raises(SourceError, match="no intact SQLite"):
        database(tmp_path / "text.db").test()
    torn = tmp_path / "torn.db"
    run(
        torn,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM s WHERE i < 9000) INSERT INTO t SELECT i, hex(randomblob(40)) FROM s;",
    )
    data = bytearray(torn.read_bytes())
    data[8192:-4096] = b"\xee" * (len(data) - 8192 - 4096)
    torn.write_bytes(data)
    with pytest.raises(SourceError):
        bench.backup(database(torn))
    locked = tmp_path / "locked.db"
    run(locked, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    with closing(sqlite3.connect(locked, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(SourceUnreachable) as caught:
            database(locked).test()
        assert caught.value.retryable
        assert time.monotonic() - started < 30


def test_source_file_is_not_written(bench: Bench, source: Path) -> None:
    """Goal: reading changes nothing. Method: bytes before and after, in rollback mode and in WAL."""
    for mode in ("delete", "wal"):
        run(source, f"PRAGMA journal_mode = {mode}")
        before = source.read_bytes()
        bench.backup(database(source))
        assert source.read_bytes() == before


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is not installed")
def test_export_is_read_by_the_shell(bench: Bench, source: Path, tmp_path: Path) -> None:
    """Goal: portable SQL. Method: the shell loads it, everything but subnormal reals is equal."""
    manifest = bench.backup(database(source))
    (name,) = database(source).export(bench.view(manifest), str(tmp_path), NullProgress())
    assert name == "main.sql.gz"
    loaded = tmp_path / "loaded.db"
    text = gzip.decompress((tmp_path / name).read_bytes())
    done = subprocess.run(["sqlite3", str(loaded)], input=text, capture_output=True, check=False)
    assert done.stderr == b""
    assert everything(loaded) == everything(source)
    assert query(loaded, "SELECT count(*) FROM words WHERE words MATCH 'common'") == [(30,)]


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_other_encodings(bench: Bench, tmp_path: Path, encoding: str) -> None:
    """Goal: UTF-16 databases are exact. Method: text keys beyond the first plane, restored to a file and in place."""
    path = tmp_path / "utf16.db"
    run(
        path,
        f"PRAGMA encoding = '{encoding}'; CREATE TABLE t(k TEXT PRIMARY KEY, v) WITHOUT ROWID;"
        "INSERT INTO t VALUES ('a', 1), ('é', 2), ('漢', 3), ('\U0001f600', 4), ('\uffee', 5), ('', 6);",
    )
    manifest = bench.backup(database(path))
    state = everything(path)
    bench.restore(database(path), manifest, target={"path": str(tmp_path / "new.db")})
    assert everything(tmp_path / "new.db") == state
    assert query(tmp_path / "new.db", "PRAGMA encoding") == [(encoding.encode(),)]
    run(path, "UPDATE t SET v = 9; DELETE FROM t WHERE k > 'b'; INSERT INTO t VALUES ('zz', 1);")
    bench.restore(database(path), manifest)
    assert everything(path) == state
