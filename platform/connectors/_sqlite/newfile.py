"""A restore into a file that does not exist: built under another name, and given its own at once.

A full restore streams straight into the new tables. A merge, a selection and a backup from which rows were withheld are
planned like any other restore, into a database without tables.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any

from connectors._sqlite.applying import Definitions, transaction_begin, transaction_commit
from connectors._sqlite.catalog import Catalog, catalog_read, quote
from connectors._sqlite.changes import insert_lines
from connectors._sqlite.connect import connect, target_errors
from connectors._sqlite.inplace import InPlace, digest_check
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.matching import match
from connectors._sqlite.plan import functions_register, rows_select
from connectors._sqlite.planner import Planner, preview_of
from connectors._sqlite.prepared import IMAGE_VERSION, FileIdentity
from connectors._sqlite.read import Layout
from connectors._sqlite.samples import text_of, values_of
from connectors._sqlite.stored import StoredSchema
from engine.errors import TargetError, TargetOccupied, TargetUnreachable
from engine.plans import ChangeDigest, Drift, Preview, RowSample
from engine.ports import Check, ImageSink, RestoreReport, RestoreRequest, SourceView, TableChange, TableView
from engine.progress import Progress
from engine.table_runs import table_digest

BASELESS = "merged without the base, because the target does not exist"


def streams(view: SourceView, request: RestoreRequest) -> bool:
    """Whether all rows of the backup come back as they are."""
    return request.mode == "full" and all(each.sha256 for each in view.tables)


# ---------------------------------------------------------------- preview


def preview_new(view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
    """Everything is inserted; nothing is written anywhere but in temporary tables."""
    if not streams(view, request):
        with closing(_scratch(view)) as connection:
            plan = Planner(connection, view, Layout(), replace(request, base=None), progress).plan()
            shown = preview_of(plan, request)
            warnings = (*shown.warnings, *([BASELESS] if request.base is not None else []))
            return replace(shown, warnings=warnings)
    digest = ChangeDigest()
    samples: dict[str, tuple[RowSample, ...]] = {}
    progress.phase("compare")
    for table in view.tables:
        digest.section(table.name, [each.name for each in table.columns])
        for rows in table.rows():
            progress.check()
            progress.advance(bytes=sum(map(len, rows)), items=len(rows))
            digest.lines(insert_lines(table, rows))
            if table.name not in samples and request.samples > 0:
                samples[table.name] = _samples(table, rows[: request.samples])
    return Preview(
        digest=digest.hexdigest(),
        tables=tuple(TableChange(each.name, insert=each.row_count) for each in view.tables),
        samples=samples,
        drift=tuple(Drift(each.name, "table", None, "made anew, with its indexes") for each in view.tables),
        staged_bytes=sum(each.byte_count for each in view.tables),
    )


def _scratch(view: SourceView) -> sqlite3.Connection:
    """An empty database in memory; its temporary tables lie in files."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = bytearray
    connection.execute(f"PRAGMA encoding = {quote(str(StoredSchema.of(view).pragmas['encoding']))}")
    connection.execute("BEGIN")
    return connection


def _samples(table: TableView, rows: list[bytes]) -> tuple[RowSample, ...]:
    names = [each.name for each in table.columns]
    keys = names[: len(table.key.kinds) - table.key.synthetic]
    found = []
    for row in rows:
        after = {name: text_of(value) for name, value in zip(names, values_of(row)[table.key.synthetic :], strict=True)}
        found.append(RowSample("insert", {name: after[name] for name in keys}, None, after))
    return tuple(found)


# ---------------------------------------------------------------- restore


class PreparedFile:
    """engine.ports.PreparedRestore: a finished file that has not got its name yet."""

    def __init__(self, staged: str, path: str, report: RestoreReport) -> None:
        self.report, self._staged, self._path = report, staged, path
        found = FileIdentity.of(staged)
        self.token: Mapping[str, Any] = {"path": path, "device": found.device, "inode": found.inode}

    def image(self, sink: ImageSink) -> None:
        """Only says that the file was made: there was nothing before."""
        sink.table(
            {
                "name": "",
                "columns": [],
                "key": [],
                "rows": "schema",
                "kind": "sqlite",
                "version": IMAGE_VERSION,
                "made_file": True,
            }
        )

    def commit(self) -> None:
        """Raises TargetOccupied when a file of that name appeared meanwhile."""
        with target_errors(self._path):
            publish(self._staged, self._path)


@contextmanager
def prepare_new(
    path: str, view: SourceView, request: RestoreRequest, progress: Progress, *, timeout: float
) -> Iterator[PreparedFile]:
    """Build the file beside its place. Raises TargetError and its children."""
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise TargetUnreachable(f"there is no folder {folder}", hint="create it first")
    left = [path + suffix for suffix in ("-wal", "-journal") if os.path.exists(path + suffix)]
    if left and not request.in_place and not request.overwrite:
        raise TargetOccupied(f"{left[0]} exists", hint="choose another path, or confirm that it may be removed")
    staged = f"{path}.lastro-{request.label}"
    remove(staged)
    try:
        with target_errors(path):
            report = _build(staged, view, request, progress, timeout=timeout)
            prepared = PreparedFile(staged, path, report)
        yield prepared
    finally:
        remove(staged)


def _build(
    staged: str, view: SourceView, request: RestoreRequest, progress: Progress, *, timeout: float
) -> RestoreReport:
    pragmas = StoredSchema.of(view).pragmas
    with closing(connect(staged, "rwc", timeout=timeout)) as connection:
        os.chmod(staged, 0o600)
        for name in ("page_size", "encoding", "auto_vacuum"):
            value = str(pragmas[name])
            connection.execute(f"PRAGMA {name} = {quote(value)}")
        report = _fill(connection, staged, view, request, progress)
        for name in ("application_id", "user_version"):
            connection.execute(f"PRAGMA {name} = {int(pragmas[name])}")
        if pragmas["journal_mode"] == "wal":
            connection.execute("PRAGMA journal_mode = WAL")
    return report


def _fill(
    connection: sqlite3.Connection, staged: str, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    if streams(view, request):
        return Stream(connection, view, request, progress).run()
    work = InPlace(connection, FileIdentity.of(staged), view, Layout(), replace(request, base=None), progress)
    prepared = work.run()
    prepared.commit()
    warnings = (*prepared.report.warnings, *([BASELESS] if request.base is not None else []))
    return replace(prepared.report, warnings=warnings)


class Stream:
    """All rows of a backup straight into new tables, in one transaction."""

    def __init__(
        self, connection: sqlite3.Connection, view: SourceView, request: RestoreRequest, progress: Progress
    ) -> None:
        self._connection, self._view, self._request, self._progress = connection, view, request, progress
        self._database = view.facts["layout"] == "database"
        self._stored = StoredSchema.of(view)
        self._definitions = Definitions(connection)

    def run(self) -> RestoreReport:
        """Fill, check and commit. Raises StalePlan, SchemaMismatch, TargetError, sqlite3.Error."""
        transaction_begin(self._connection)
        self._progress.phase("compare schema")
        self._tables_create()
        catalog = catalog_read(self._connection)
        functions_register(self._connection, catalog.pragmas["encoding"])
        self._progress.phase("apply")
        digest = ChangeDigest()
        for table in self._view.tables:
            self._fill(catalog, table, digest)
        digest_check(digest.hexdigest(), self._request)
        self._sequences()
        self._objects_create()
        self._progress.phase("check")
        checks = self._verify(catalog) if self._request.validate else ()
        warnings = self._references()
        self._progress.check()
        transaction_commit(self._connection)
        return RestoreReport(
            tables=tuple(TableChange(each.name, insert=each.row_count) for each in self._view.tables),
            checks=checks,
            warnings=tuple(warnings),
            digest=digest.hexdigest(),
        )

    def _tables_create(self) -> None:
        """Virtual tables first: they make their own shadow tables."""
        wanted = {each.name for each in self._view.tables}
        definitions = self._stored.of_type("table")
        definitions.sort(key=lambda each: self._stored.sorts.get(each["name"]) != "virtual")
        for each in definitions:
            if (self._database or each["name"] in wanted) and each["name"] not in self._definitions.names():
                self._definitions.create(each)
        for name in wanted:
            self._connection.execute(f"DELETE FROM main.{quote(name)}")

    def _fill(self, catalog: Catalog, table: TableView, digest: ChangeDigest) -> None:
        found = catalog.tables[table.name]
        with_rowid = table.facts["mode"] == "rowid"
        names = [each.name for each in table.columns]
        columns = [*([found.rowid or ""] if with_rowid else []), *map(quote, names)]
        into = f"main.{quote(found.name)} ({', '.join(columns)})"
        digest.section(table.name, names)
        for rows in table.rows():
            self._progress.check()
            digest.lines(insert_lines(table, rows))
            insert_all(self._connection, into, tuples_of(rows, skip=0 if with_rowid else table.key.synthetic))
            self._progress.advance(bytes=sum(map(len, rows)), items=len(rows))

    def _sequences(self) -> None:
        names = {each["name"] for each in self._definitions.created}
        for name, value in self._stored.sequences.items():
            if name in names:
                self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
                self._connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", (name, value))

    def _objects_create(self) -> None:
        wanted, existing = {each.name for each in self._view.tables}, self._definitions.names()
        for each in self._stored.of_type("index", "view", *(["trigger"] if self._database else [])):
            if each["name"] not in existing and (self._database or each["table"] in wanted):
                self._definitions.create(each)

    def _verify(self, catalog: Catalog) -> tuple[Check, ...]:
        digests, counts = {}, {}
        for table in self._view.tables:
            found = match(
                self._connection, catalog, catalog.tables[table.name], table,
                where=None, by_identity=False, exists=True, base=None,
            )  # fmt: skip
            lines = (rows for rows, _ in rows_select(self._connection, RLock(), found.plan))
            digests[table.name], counts[table.name], _ = table_digest(lines, table.key)
            if (digests[table.name], counts[table.name]) != (table.sha256, table.row_count):
                raise TargetError(
                    f"table {table.name} is not what the backup holds after the restore; nothing was kept"
                )
        names = self._definitions.names()
        missing = [each["name"] for each in self._stored.objects if self._database and each["name"] not in names]
        return (
            Check("checksum_verification", True, {each.name: each.sha256 for each in self._view.tables}, digests),
            Check("data_integrity", True, {each.name: each.row_count for each in self._view.tables}, counts),
            Check("schema_compatibility", not missing, expected=[], actual=missing),
        )

    def _references(self) -> list[str]:
        """Broken references are kept as they were, and said."""
        tables, count = [], 0
        for table in self._view.tables:
            with contextlib.suppress(sqlite3.OperationalError):  # A key that fits no parent is never enforced either.
                broken = self._connection.execute(f"PRAGMA main.foreign_key_check({quote(table.name)})").fetchall()
                count += len(broken)
                tables += [table.name] if broken else []
        if not count:
            return []
        return [f"{count} restored rows refer to rows that do not exist, in {', '.join(sorted(tables))}"]


# ---------------------------------------------------------------- the file


def remove(path: str) -> None:
    """Remove a database and what SQLite keeps beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def publish(staged: str, path: str) -> None:
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
        remove(path)
    try:
        os.link(staged, path)
    except FileExistsError:
        raise TargetOccupied(f"{path} appeared during the restore", hint="choose another path") from None
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
