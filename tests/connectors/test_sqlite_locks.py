"""How long a restore keeps other writers of a SQLite file waiting, and what it does about what they write meanwhile."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from connectors._sqlite.inplace import READINGS_MAX
from engine.errors import StalePlan
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from tests.connectors.sqlite_samples import Bench, everything, query, run, tenant


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


class Meanwhile(NullProgress):
    """Does something while a restore compares; says how often it could."""

    def __init__(self, do: Callable[[sqlite3.Connection], object], path: Path, *, times: int) -> None:
        self._do, self._path, self._times = do, path, times
        self.done = self.refused = 0

    def phase(self, name: str) -> None:
        if name != "references" or self.done + self.refused >= self._times:
            return
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as other:
            try:
                self._do(other)
                self.done += 1
            except sqlite3.OperationalError:
                self.refused += 1  # It is locked.


def _shared(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("CREATE TABLE room(id INTEGER PRIMARY KEY, tenant_id INT, v TEXT)")
        connection.executemany("INSERT INTO room VALUES (?, ?, ?)", [(n, n % 2, f"r{n}") for n in range(1, 401)])
        connection.commit()


def _neighbour(other: sqlite3.Connection) -> None:
    other.execute("INSERT INTO room(tenant_id, v) VALUES (0, 'newer')")


@pytest.mark.parametrize(("journal", "times", "done"), [("wal", 1, 1), ("wal", 9, READINGS_MAX), ("delete", 9, 0)])
def test_others_write_while_rows_are_compared(
    bench: Bench, tmp_path: Path, journal: str, times: int, done: int
) -> None:
    """Goal: only the writing itself locks a file with a write-ahead log. Method: a neighbour writes in each comparison."""
    path = tmp_path / "shared.db"
    _shared(path, journal)
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    before = query(path, "SELECT * FROM room WHERE tenant_id = 1 ORDER BY id")
    run(
        path,
        "DELETE FROM room WHERE tenant_id = 1 AND id < 100; UPDATE room SET v = 'x' WHERE tenant_id = 1 AND id < 200",
    )
    writer = Meanwhile(_neighbour, path, times=times)
    connector.restore(bench.view(manifest), RestoreRequest(label="r"), writer)
    assert writer.done == done
    assert query(path, "SELECT * FROM room WHERE tenant_id = 1 ORDER BY id") == before
    assert query(path, "SELECT count(*) FROM room WHERE v = 'newer'") == [(done,)]


def test_the_tenants_own_writes_meanwhile_are_not_overlooked(bench: Bench, tmp_path: Path) -> None:
    """Goal: comparing early decides nothing by itself. Method: the tenant writes meanwhile, with and without a plan."""
    path = tmp_path / "shared.db"
    _shared(path, "wal")
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    before = everything(path)
    run(path, "DELETE FROM room WHERE id = 1")
    view = bench.view(manifest)
    seen = connector.preview(view, RestoreRequest(label="p"), NullProgress())
    own = Meanwhile(lambda other: other.execute("UPDATE room SET v = 'mine' WHERE id = 3"), path, times=1)
    with pytest.raises(StalePlan):
        connector.restore(view, RestoreRequest(label="r", digest=seen.digest), own)
    assert (own.done, query(path, "SELECT v FROM room WHERE id IN (1, 3)")) == (1, [(bytearray(b"mine"),)])
    again = Meanwhile(lambda other: other.execute("UPDATE room SET v = 'again' WHERE id = 5"), path, times=1)
    connector.restore(view, RestoreRequest(label="r"), again)
    assert (again.done, everything(path)) == (1, before)
