"""Rows straight into tables that are new: COPY without a difference, and the digests read back."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import psycopg

from connectors._postgresql.catalogue import Catalogue, Table
from connectors._postgresql.connection import Connection, begin_text, run, session_settings, translate, value
from connectors._postgresql.part import PIPED_BYTES_MIN, SERIAL, copy_lines
from connectors._postgresql.piped import Psql
from connectors._postgresql.quoting import ident, idents, literal
from connectors._postgresql.reader import is_utf8
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Scope
from connectors._postgresql.wire import readable, wire_keyed
from engine.errors import SchemaMismatch, TargetError
from engine.ports import Check, TableChange, TableView
from engine.progress import Progress
from engine.table_runs import keyed_digest, table_digest
from engine.table_view import TableView as StoredTable

CONNECTIONS = 2


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a table of the backup goes."""

    view: TableView
    schema: str
    name: str

    @property
    def quoted(self) -> str:
        return ident(self.schema, self.name)


def load_table(connection: Connection, destination: Destination, progress: Progress, *, fresh: bool) -> None:
    """COPY all rows of a view into its table; `fresh` tables are frozen while they are written."""
    view = destination.view
    columns = [column.name for column in view.columns if not column.generated]
    if not columns:
        run(connection, f"INSERT INTO {destination.quoted} SELECT FROM generate_series(1, {view.row_count})")
        return
    freeze = " WITH (FREEZE)" if fresh else ""
    try:
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {destination.quoted} ({idents(columns)}) FROM STDIN{freeze}".encode()) as copy,
        ):
            for block, count in _blocks_of(view):
                progress.check()
                copy.write(block)
                copy.write(b"\n")
                progress.advance(bytes=len(block) + 1, items=count)
    except psycopg.DataError as error:
        raise SchemaMismatch(f"{view.name}: {translate(error, 'target').message}") from None


def _blocks_of(view: TableView) -> Iterator[tuple[bytes, int]]:
    """Rows as COPY takes them, joined by newlines, and how many: without made-up fields and generated columns."""
    synthetic, keep = view.key.synthetic, [not column.generated for column in view.columns]
    if isinstance(view, StoredTable) and not synthetic and all(keep):
        yield from view.texts()
        return
    for lines in view.rows():
        if synthetic:
            lines = [line.split(b"\t", synthetic)[synthetic] for line in lines]
        if not all(keep):
            lines = [
                b"\t".join([field for field, kept in zip(line.split(b"\t"), keep, strict=True) if kept])
                for line in lines
            ]
        if lines:
            yield b"\n".join(lines), len(lines)


def load_frozen(connection: Connection, destination: Destination, progress: Progress) -> None:
    """Load a table of its own transaction: emptied first, so that rows are written frozen and without old WAL."""
    kind = value(connection, f"SELECT relkind FROM pg_class WHERE oid = {literal(destination.quoted)}::regclass")
    run(connection, "BEGIN")
    run(connection, f"TRUNCATE {'' if kind == 'p' else 'ONLY '}{destination.quoted}")
    load_table(connection, destination, progress, fresh=kind == "r")
    run(connection, "COMMIT")


Job = tuple[int, Callable[[Connection], None]]


def spread(connections: Sequence[Connection], work: Sequence[Job], progress: Progress) -> None:
    """Run (weight, work) on the connections, the heaviest first; the first error stops what has not begun."""
    pending = [job for _, job in sorted(work, key=lambda pair: -pair[0])]

    def drain(connection: Connection) -> None:
        while pending:
            progress.check()
            try:
                job = pending.pop(0)
            except IndexError:
                return
            try:
                job(connection)
            except BaseException:
                pending.clear()
                raise

    with ThreadPoolExecutor(len(connections), thread_name_prefix="postgres") as pool:
        for future in [pool.submit(drain, connection) for connection in connections]:
            future.result()


def digest_of(
    connection: Connection, table: Table, view: TableView, *, psql: Psql | None = None, as_loaded: bool = False
) -> str:
    """The digest of a whole table read back; a row count where its columns are no longer the backup's.

    `as_loaded` says that nothing but the view's rows was ever in the table: they lie in key order as they were written,
    and reading them as they lie takes two thirds of the server's time. A digest that is not the backup's is never
    taken from that. With `psql` a large table is read through it where the connection is encrypted, in a transaction
    of its own.
    """
    types = {column.name: column.type for column in table.columns}
    if any(types.get(column.name) != column.type for column in view.columns):
        return count_of(connection, table)
    text = RowText(table, tuple(table.column(c.name) for c in view.columns), view.key, is_utf8(connection))
    read = partial(_digest, connection, view, psql)
    scope = Scope(table, "", (), "restored")
    if as_loaded and not view.key.synthetic and not table.partitioned:
        found = read(text.select(scope, version=False, leading=False, ordered=False))
        if found == getattr(view, "sha256", None):
            return found
    return read(text.select(scope, version=False, leading=False))


def _digest(connection: Connection, view: TableView, psql: Psql | None, query: str) -> str:
    if readable(connection):
        # Workers would deliver the rows of several places at once.
        run(connection, f"SET {SERIAL}")
        fields = len(view.key.kinds)
        alone = fields == view.key.synthetic + len(view.columns)
        with contextlib.closing(wire_keyed(connection, query, key_fields=fields, alone=alone)) as batches:
            return keyed_digest(batches)[0]
    if psql and view.byte_count >= PIPED_BYTES_MIN and psql.takes(query):
        begun = begin_text("READ COMMITTED", read_only=True, more=session_settings(connection))
        lines = psql.lines([begun, f"SET LOCAL {SERIAL}"], query)
    else:
        lines = copy_lines(connection, query)
    with contextlib.closing(lines):
        return table_digest(lines, view.key)[0]


def count_of(connection: Connection, table: Table) -> str:
    """How many rows a table holds, in the words of a check."""
    return f"{value(connection, f'SELECT count(*) FROM {table.source}')} rows"


class Comparison:
    """Every restored table read back, its digest beside the backup's; `jobs` may run on several connections.

    Without `validate` rows are counted only: what went in was checked against the backup's chunks on the way.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        destinations: Sequence[Destination],
        *,
        validate: bool,
        psql: Psql | None = None,
        as_loaded: bool = False,
    ) -> None:
        """`psql` may be given when what was loaded is committed; `as_loaded`: see digest_of."""
        self._catalogue, self._validate = catalogue, validate
        self._digest_of = partial(digest_of, psql=psql, as_loaded=as_loaded)
        self._destinations = destinations
        self._actual: dict[str, str] = {}
        self._expected: dict[str, str] = {}

    def jobs(self) -> list[Job]:
        """One job a table, weighed by its bytes."""
        return [(each.view.byte_count, partial(self._compare, each)) for each in self._destinations]

    def _compare(self, destination: Destination, connection: Connection) -> None:
        table = self._catalogue.find(destination.schema, destination.name)
        if table is None:
            raise TargetError(f"{destination.quoted} is not there after the restore")
        view = destination.view
        wanted = getattr(view, "sha256", None)
        digested = self._validate and wanted
        found = self._digest_of(connection, table, view) if digested else count_of(connection, table)
        self._actual[view.name] = found
        self._expected[view.name] = f"{view.row_count} rows" if found.endswith(" rows") or not wanted else wanted

    def check(self) -> Check:
        """The outcome once all jobs are done. Raises TargetError when a digest differs."""
        wrong = sorted(name for name, wanted in self._expected.items() if self._actual[name] != wanted)
        if wrong:
            raise TargetError(
                f"after the restore {', '.join(wrong[:5])} do not have the backup's digest",
                hint="verify the backup, and look for event triggers that rewrite rows",
            )
        return Check("checksum_verification", True, dict(self._expected), dict(self._actual))


def changes_of(destinations: Sequence[Destination]) -> tuple[TableChange, ...]:
    """Everything was inserted."""
    return tuple(TableChange(each.view.name, insert=each.view.row_count) for each in destinations)


def set_sequences(connection: Connection, values: Sequence[Mapping[str, object]], *, rename: Mapping[str, str]) -> None:
    """Set sequences of a rebuilt schema to the values of the backup."""
    for sequence in values:
        if sequence["last_value"] is None:
            continue
        schema = rename.get(str(sequence["schema"]), str(sequence["schema"]))
        name = literal(ident(schema, str(sequence["name"])))
        found = value(connection, f"SELECT to_regclass({name}) IS NOT NULL")
        if found:
            called = sequence.get("is_called", True)
            run(connection, f"SELECT setval({name}::regclass, {int(str(sequence['last_value']))}, {called})")
