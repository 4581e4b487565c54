"""SQLite files: a database of the tenant's own, or its rows in shared tables; read while others write.

Reading uses one read transaction on one connection, because two connections cannot see the same snapshot.
In WAL mode writers go on meanwhile. In the rollback-journal modes a reader makes writers wait, so that
the file is first copied by the backup API, in one step, into a private temporary file next to no one's
way, and the copy is read; when there is no room for it the file itself is read and that is said.
The source file is never written to; opening a WAL file may create its `-shm` and `-wal` companions.

Not kept: sqlite_stat tables (run ANALYZE), free pages, the journal mode of a file restored in place.
Virtual tables (FTS5 and others) are kept as their definition and the rows of their shadow tables; a merge leaves them
alone, because the two sides' search indexes cannot be mixed row by row.

A restore holds the file's write lock from its first comparison to its commit. A preview runs the same code in a read transaction.
In a merge and a selection rows are known by their declared key, without one by their content, never by a mere rowid.
A clock column may be declared as anything: numbers are compared with numbers, ISO 8601 text with such text (UTC where it
names no zone), and where that cannot be done the tenant's row stays.
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
from connectors._scratch import FolderScratch
from connectors._sqlite.catalog import catalog_read, quote
from connectors._sqlite.connect import cache_enlarge, connect, source_errors, target_errors
from connectors._sqlite.dump import dump
from connectors._sqlite.inplace import InPlace
from connectors._sqlite.lines import field_shown, key_field
from connectors._sqlite.newfile import prepare_new, preview_new
from connectors._sqlite.planner import Planner, preview_of
from connectors._sqlite.prepared import FileIdentity, probe
from connectors._sqlite.read import Layout, SqliteView
from connectors._sqlite.scope import Scope, scope_find
from connectors._sqlite.undo import Undo
from engine.adapters import setting
from engine.errors import SourceError, SourceUnreachable, SourceUnsupported, TargetOccupied, UsageError
from engine.plans import Preview
from engine.ports import (
    ImageView,
    KeyKind,
    PreparedRestore,
    Probe,
    RestoreReport,
    RestoreRequest,
    ScratchSite,
    SourceReader,
    SourceView,
)
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
class SqliteConnector(FolderScratch):
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
                plural = "s" * (len(catalog.plain) != 1)
                return Probe(f"SQLite database with {len(catalog.plain)} table{plural}", details, tuple(warnings))
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
        with self.prepare(view, request, progress) as prepared:
            prepared.commit()
            report: RestoreReport = prepared.report
            return report

    def preview(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
        """Say what `restore` would do. Writers go on in WAL mode; in the others a private copy is read."""
        layout = self._layout_of(view)
        with target_errors(self._config.path):
            if not self._exists():
                return preview_new(view, request, progress)
            self._permitted(request)
            with self._reading(progress) as connection:
                return preview_of(Planner(connection, view, layout, request, progress).plan(), request)

    @contextmanager
    def prepare(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Iterator[PreparedRestore]:
        """Hold the write lock of the file until the commit, or a finished file that has not got its name."""
        layout, path = self._layout_of(view), self._config.path
        if not self._exists():
            with prepare_new(path, view, request, progress, timeout=self._config.busy_seconds) as made:
                yield made
            return
        self._permitted(request)
        with self._writing() as (connection, file):
            with target_errors(path):
                prepared = InPlace(connection, file, view, layout, request, progress).run()
            yield prepared

    @contextmanager
    def prepare_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Iterator[PreparedRestore]:
        """Put back what a change image holds. Raises StalePlan, SourceUnsupported, SchemaMismatch, TargetError."""
        with self._writing() as (connection, file):
            with target_errors(self._config.path):
                prepared = Undo(connection, image, self._config.scope, request, progress).prepare(file)
            yield prepared

    def preview_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
        """What `prepare_undo` would do."""
        with target_errors(self._config.path), self._reading(progress) as connection:
            return Undo(connection, image, self._config.scope, request, progress).preview()

    def settle(self, token: Mapping[str, Any]) -> bool | None:
        """Look whether the rows that the token names are as they were or as they were to be.

        None when somebody changed them meanwhile, or when the file cannot be read. A file that was made is known by its inode.
        """
        path = token["path"]
        try:
            found = FileIdentity.of(path)
        except FileNotFoundError:
            return False if "inode" in token else None
        except OSError:
            return None
        if "inode" in token:
            return (found.device, found.inode) == (token["device"], token["inode"])
        try:
            with contextlib.closing(connect(path, "rw", timeout=self._config.busy_seconds)) as connection:
                return probe(connection, token)
        except sqlite3.Error:
            return None

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

    def _exists(self) -> bool:
        path = self._config.path
        return os.path.exists(path) and os.path.getsize(path) > 0

    def _permitted(self, request: RestoreRequest) -> None:
        if not request.in_place and not request.overwrite:
            raise TargetOccupied(
                f"{self._config.path} exists", hint="choose another path, or confirm that it may be changed"
            )

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, FileIdentity]]:
        """A connection that may write; what was not committed is rolled back."""
        path = self._config.path
        with target_errors(path):
            file = FileIdentity.of(path)
            connection = connect(path, "rw", timeout=self._config.busy_seconds)
        with contextlib.closing(connection):
            with target_errors(path):
                cache_enlarge(connection)
            try:
                yield connection, file
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @staticmethod
    def field_shown(field: bytes) -> str | None:
        """A value as SQLite's shell prints it; blobs as `x'…'`."""
        return field_shown(field)

    @staticmethod
    def key_field(kind: KeyKind, text: str) -> bytes:
        """What looks like an integer in an integer's place, text otherwise. Raises ValueError."""
        return key_field(kind, text)

    def scratch_ask(self, name: str, site: ScratchSite, question: str, *, seconds: int) -> str:
        """Ask the restored file, which is opened read-only."""
        from connectors._sqlite.scratch import ask

        return ask(self._scratch_path(name, site), question, seconds=seconds)

    def question_try(self, question: str, *, seconds: int) -> str | None:
        """Ask the live file, opened read-only; where it is shared by tenants, only see whether SQLite understands."""
        from connectors._sqlite.scratch import ask, compiled

        path = self._config.path
        if not os.path.exists(path):
            raise SourceUnreachable(f"there is no {path}", hint="is its disk mounted?")
        if self._config.layout == "rows":
            compiled(path, question)
            return None
        return ask(path, question, seconds=seconds)

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
        copy.execute("PRAGMA synchronous = OFF")  # Nobody reads it after a crash.
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
