"""A commit of a SQLite file that fails, or whose answer is lost."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.sqlite import SqliteConnector
from engine.errors import CommitUnknown, TargetError
from engine.ports import RestoreRequest, SourceView
from engine.progress import NullProgress
from tests.connectors.sqlite_samples import Bench, database, everything, query, run


@contextmanager
def _no_file_grows(path: Path) -> Iterator[None]:
    """The disk takes nothing more: writing behind the present end of a file fails, as when it is full or broken."""
    size = max(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _damaged(bench: Bench, path: Path, journal: str) -> tuple[SqliteConnector, SourceView]:
    """A file that lacks much of what its backup holds, and grows when that comes back."""
    rows = ", ".join(f"({n}, 'some text that takes room {n * 7919}')" for n in range(1, 3001))
    run(
        path, f"PRAGMA journal_mode = {journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES {rows}"
    )
    connector = database(path)
    view = bench.view(bench.backup(connector))
    run(path, "DELETE FROM t WHERE id > 10; UPDATE t SET v = 'damaged' WHERE id = 3; VACUUM")
    if journal == "wal":
        run(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    return connector, view


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_disk_that_fails_at_the_commit_leaves_the_file_as_it_was(tmp_path: Path, journal: str) -> None:
    """Goal: neither half of a restore nor a doubt. Method: a real limit on the size of files, set right before the commit."""
    path, bench = tmp_path / "own.db", Bench(tmp_path / "bench")
    connector, view = _damaged(bench, path, journal)
    before = everything(path)
    with connector.prepare(view, RestoreRequest(label="r"), NullProgress()) as prepared:
        with _no_file_grows(path), pytest.raises(TargetError) as refused:
            prepared.commit()
        assert not isinstance(refused.value, CommitUnknown)
    assert (everything(path), connector.settle(prepared.token)) == (before, False)
    assert query(path, "PRAGMA integrity_check") == [(bytearray(b"ok"),)]
    connector.restore(view, RestoreRequest(label="r"), NullProgress())
    assert query(path, "SELECT count(*) FROM t") == [(3000,)]


class _Losing:
    """A connection whose answer to COMMIT is lost, after or before it was carried out."""

    def __init__(self, connection: sqlite3.Connection, then: Callable[[sqlite3.Connection], object]) -> None:
        self._connection, self._then = connection, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql != "COMMIT":
            return self._connection.execute(sql, *values)
        self._then(self._connection)
        raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize(
    ("meanwhile", "ends"),
    [("", "done"), ("UPDATE t SET v = 'by somebody' WHERE id = 3", "unknown"), (None, "failed")],
)
def test_a_lost_answer_is_settled_by_the_rows(tmp_path: Path, meanwhile: str | None, ends: str) -> None:
    """Goal: what can be told is told, and nothing else claimed. Method: an answer lost after and before the commit took place."""
    path, bench = tmp_path / "own.db", Bench(tmp_path / "bench")
    connector, view = _damaged(bench, path, "wal")
    before = everything(path)

    def fate(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK" if meanwhile is None else "COMMIT")
        if meanwhile:
            run(path, meanwhile)

    with connector.prepare(view, RestoreRequest(label="r"), NullProgress()) as prepared:
        real: Any = prepared
        real.connection = _Losing(real.connection, fate)
        if ends == "done":
            prepared.commit()
        else:
            with pytest.raises(CommitUnknown if ends == "unknown" else TargetError) as refused:
                prepared.commit()
            assert isinstance(refused.value, CommitUnknown) == (ends == "unknown")
    assert connector.settle(prepared.token) is {"done": True, "unknown": None, "failed": False}[ends]
    assert (everything(path) == before) == (ends == "failed")
