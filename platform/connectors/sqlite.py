"""SQLite files: a database of the tenant's own, or its rows in shared tables; read while others write.

Reading uses one read transaction on one connection, because two connections cannot see the same snapshot.
In WAL mode writers go on meanwhile. In the rollback-journal modes a reader makes writers wait, so that
the file is first copied by the backup API, in one step, into a private temporary file next to no one's
way, and the copy is read; when there is no room for it the file itself is read and that is said.
The source file is never written to; opening a WAL file may create its `-shm` and `-wal` companions.

Not kept: sqlite_stat tables (run ANALYZE), free pages, the journal mode of a file restored in place.
Virtual tables (FTS5 and others) are kept as their definition and the rows of their shadow tables.
"""

import contextlib
import gzip
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from connectors import registry
from connectors._sqlite.catalog import catalog_read, quote
from connectors._sqlite.connect import cache_enlarge, connect, source_errors, target_errors
from connectors._sqlite.dump import dump
from connectors._sqlite.read import Layout, SqliteView
from connectors._sqlite.restore import SqliteRestore, StoredSchema
from connectors._sqlite.scope import Scope, scope_find
from engine.adapters import setting
from engine.errors import SourceError, SourceUnsupported, TargetOccupied, TargetUnreachable, UsageError
from engine.ports import Probe, RestoreReport, RestoreRequest, SourceReader, SourceView
from engine.progress import Progress

GZIP_LEVEL = 5
DUMP_PIECE_CHARACTERS = 1 << 18
LOCK_RETRY_SECONDS = (0.001, 0.01)


@dataclass(frozen=True, slots=True)
class SqliteConfig:
    """Where the file lies and which of its rows are the tenant's."""

    path: str = setting(label="Database file", help="The SQLite file on this host.")
    layout: str = setting(
        label="Layout",
        help="database: the whole file is the tenant's. rows: the tenant's rows in tables shared by all tenants.",
        default="database",
        choices=("database", "rows"),
    )
    tenant_column: str = setting(
        label="Tenant column",
        help="Column that names the tenant; tables without it are reached through foreign keys (layout rows).",
        default="",
    )
    tenant_value: str = setting(
        label="Tenant value", help="This tenant's value of the column (layout rows).", default=""
    )
    busy_seconds: int = setting(label="Wait for locks", help="Seconds to wait for other programs' locks.", default=30)

    @property
    def scope(self) -> Layout:
        """Raises UsageError when the settings do not fit together."""
        if self.busy_seconds < 0:
            raise UsageError("busy_seconds must not be negative")
        if self.layout == "database":
            return Layout()
        if not self.tenant_column or not self.tenant_value:
            raise UsageError(
                "layout=rows needs tenant_column and tenant_value",
                hint="for example: --set tenant_column=tenant_id --set tenant_value=42",
            )
        if "\0" in self.tenant_value or "\0" in self.tenant_column:
            raise UsageError("tenant_column and tenant_value must not hold NUL")
        return Layout(self.tenant_column, self.tenant_value)


@registry.register
class SqliteConnector:
    """Reads and restores SQLite files."""

    kind: ClassVar[str] = "sqlite"
    label: ClassVar[str] = "SQLite"
    categories: ClassVar[tuple[str, ...]] = ("database",)
    target_keys: ClassVar[tuple[str, ...]] = ("path",)
    Config: ClassVar[type] = SqliteConfig

    def __init__(self, config: SqliteConfig) -> None:
        self._config = config

    # ------------------------------------------------ reading

    def test(self) -> Probe:
        """Open the file, find tables and scope. Raises SourceError, UsageError."""
        layout = self._config.scope
        with self._snapshot() as connection, source_errors(self._config.path):
            catalog = catalog_read(connection)
            details: dict[str, Any] = {
                "tables": [each.name for each in catalog.plain],
                "journal_mode": catalog.pragmas["journal_mode"],
                "sqlite_version": sqlite3.sqlite_version,
            }
            warnings = []
            if catalog.pragmas["journal_mode"] != "wal":
                warnings.append(
                    "the file is not in WAL mode: writers wait while it is copied (PRAGMA journal_mode=WAL)"
                )
            if layout.whole:
                return Probe(f"SQLite database with {len(catalog.plain)} tables", details, tuple(warnings))
            scope = scope_find(connection, catalog, layout.tenant_column, layout.tenant_value)
            if not scope.where:
                raise SourceUnsupported(
                    f"cannot find the tenant: no table has a column {layout.tenant_column}",
                    hint="try another tenant_column, or layout=database",
                )
            roots = [name for name in scope.where if name not in scope.through]
            bare = [name for name in roots if not _leads_index(connection, name, layout.tenant_column)]
            warnings += [f"table {name} has no index that begins with {layout.tenant_column}" for name in bare]
            details["scope"] = _scope_shown(scope)
            details["not_included"] = [each.name for each in catalog.plain if each.name not in scope.where]
            return Probe(f"{len(scope.where)} tables hold rows of the tenant", details, tuple(warnings))

    @contextmanager
    def open(self, progress: Progress) -> Iterator[SourceReader]:
        """Fix a snapshot. Raises SourceError, UsageError."""
        layout = self._config.scope
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._reading(progress))
            with source_errors(self._config.path):
                view = SqliteView(connection, self._config.path, layout, progress)
            yield view

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection inside a read transaction that has begun."""
        path = self._config.path
        if not os.path.isfile(path):
            raise SourceError(f"cannot open {path}: there is no such file", hint="try the full path of the SQLite file")
        with source_errors(path):
            connection = connect(path, "ro", timeout=0)
        try:
            with source_errors(path):
                _begin_reading(connection, self._config.busy_seconds)
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _reading(self, progress: Progress) -> Iterator[sqlite3.Connection]:
        """The snapshot itself in WAL mode, else a private copy of it."""
        path = self._config.path
        with self._snapshot() as connection, contextlib.ExitStack() as stack:
            with source_errors(path):
                journal = connection.execute("PRAGMA main.journal_mode").fetchone()[0].decode()
                room = shutil.disk_usage(tempfile.gettempdir()).free
                if journal == "wal" or 2 * os.path.getsize(path) > room:
                    if journal != "wal":
                        progress.warn("sqlite.no_copy", f"no room to copy {path}: writers wait until it is read")
                    copied = None
                else:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lastro-sqlite-"))
                    copied = stack.enter_context(contextlib.closing(_copy(connection, folder)))
            if copied is not None:
                connection.close()
            yield copied or connection

    # ------------------------------------------------ restoring

    def at(self, target: Mapping[str, str]) -> Self:
        """The same on `path`. Raises UsageError for any other key."""
        unknown = set(target) - set(self.target_keys)
        if unknown:
            raise UsageError(f"unknown target key {min(unknown)!r}", hint="known: path")
        return type(self)(replace(self._config, path=target.get("path", self._config.path)))

    def restore(self, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
        """Make the file what the view holds: a diff in one transaction, or a new file that appears at once.

        Raises TargetError and its children, SchemaMismatch among them; the target is then as it was.
        """
        layout = self._layout_of(view)
        path = self._config.path
        with target_errors(path):
            exists = os.path.exists(path) and os.path.getsize(path) > 0
            if not exists:
                return self._restore_new(view, layout, request, progress)
            if not request.in_place and not request.overwrite:
                raise TargetOccupied(f"{path} exists", hint="choose another path, or confirm that it may be changed")
            with contextlib.closing(connect(path, "rw", timeout=self._config.busy_seconds)) as connection:
                cache_enlarge(connection)
                return SqliteRestore(connection, view, layout, request, progress, fresh=False).run()

    def _layout_of(self, view: SourceView) -> Layout:
        layout = self._config.scope
        stored = view.facts["layout"]
        if stored != self._config.layout:
            raise UsageError(f"the backup has layout {stored}, the source {self._config.layout}")
        for name, now in (("tenant_column", layout.tenant_column), ("tenant_value", layout.tenant_value)):
            was = view.facts.get(name, now)
            if was != now:
                raise UsageError(
                    f"the backup was made with {name}={was!r}, the source now says {now!r}",
                    hint="set the source back; a restore would put one tenant's rows over another's",
                )
        return layout

    def _restore_new(
        self, view: SourceView, layout: Layout, request: RestoreRequest, progress: Progress
    ) -> RestoreReport:
        path = os.path.abspath(self._config.path)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise TargetUnreachable(f"there is no folder {folder}", hint="create it first")
        left = [path + suffix for suffix in ("-wal", "-journal") if os.path.exists(path + suffix)]
        if left and not request.in_place and not request.overwrite:
            raise TargetOccupied(f"{left[0]} exists", hint="choose another path, or confirm that it may be removed")
        staged = f"{path}.lastro-{request.label}"
        _remove(staged)
        pragmas = StoredSchema.of(view).pragmas
        try:
            with contextlib.closing(connect(staged, "rwc", timeout=self._config.busy_seconds)) as connection:
                os.chmod(staged, 0o600)
                for name in ("page_size", "encoding", "auto_vacuum"):
                    value = str(pragmas[name])
                    connection.execute(f"PRAGMA {name} = {quote(value)}")
                report = SqliteRestore(connection, view, layout, request, progress, fresh=True).run()
                for name in ("application_id", "user_version"):
                    connection.execute(f"PRAGMA {name} = {int(pragmas[name])}")
                if pragmas["journal_mode"] == "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
            _publish(staged, path)
            return report
        finally:
            _remove(staged)

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write `<source>.sql.gz`, readable by `gunzip -c … | sqlite3 new.db`."""
        name = f"{view.name}.sql.gz"
        target = os.path.join(folder, name)
        with target_errors(target), gzip.open(target, "wb", compresslevel=GZIP_LEVEL) as out:
            pending: list[str] = []
            size = 0
            for piece in dump(view):
                pending.append(piece)
                size += len(piece)
                if size >= DUMP_PIECE_CHARACTERS:
                    progress.check()
                    out.write("".join(pending).encode())
                    pending, size = [], 0
            out.write("".join(pending).encode())
        return [name]

    def open_package(self, path: str, progress: Progress) -> contextlib.AbstractContextManager[SourceReader]:
        raise SourceUnsupported("SQLite sources have no package format", hint="restore the file, then back it up")


def _begin_reading(connection: sqlite3.Connection, seconds: float) -> None:
    """Begin a read transaction, trying at short random intervals until the time is up.

    SQLite's own busy handler soon sleeps a tenth of a second at a time, and starves beside a busy writer.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            cache_enlarge(connection)
            return
        except sqlite3.OperationalError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(*LOCK_RETRY_SECONDS))  # noqa: S311 - jitter, no secret.


def _copy(connection: sqlite3.Connection, folder: str) -> sqlite3.Connection:
    """A consistent copy of the database, open in a read transaction."""
    path = os.path.join(folder, "copy.db")
    with contextlib.closing(connect(path, "rwc", timeout=0)) as copy:
        connection.backup(copy, pages=-1)
    copied = connect(path, "ro", timeout=0)
    copied.execute("BEGIN")
    return copied


def _leads_index(connection: sqlite3.Connection, table: str, column: str) -> bool:
    for row in connection.execute(f"PRAGMA main.index_list({quote(table)})").fetchall():
        first = connection.execute(f"PRAGMA main.index_info({quote(row[1].decode())})").fetchone()
        if first is not None and first[2] is not None and first[2].decode().lower() == column.lower():
            return True
    return False


def _scope_shown(scope: Scope) -> dict[str, str]:
    return {
        name: f"through {', '.join(scope.through[name])}" if name in scope.through else "tenant column"
        for name in scope.where
    }


def _remove(path: str) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def _publish(staged: str, path: str) -> None:
    """Give a finished file its name, unless another took it meanwhile; durable when this returns."""
    descriptor = os.open(staged, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if os.path.exists(path) and os.path.getsize(path) == 0:
        os.unlink(path)
    # SQLite would replay a lost database's log or journal into this one; it drops them itself beside an empty file.
    if not os.path.lexists(path):
        _remove(path)
    try:
        os.link(staged, path)
    except FileExistsError:
        raise TargetOccupied(f"{path} appeared during the restore", hint="choose another path") from None
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
