"""The backup's rows beside the live ones: temporary tables with the target's column types.

Columns are matched by name. What the backup has and the target lacks is loaded as text and left there;
what the target has and the backup lacks keeps its value in rows that stay and takes its default in rows that come back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from connectors._postgresql.catalogue import Key, Table
from connectors._postgresql.connection import Connection, run, translate
from connectors._postgresql.converting import convert, refuses_value
from connectors._postgresql.quoting import ident, idents
from connectors._postgresql.rowtext import RowText, fresh_name
from connectors._postgresql.scope import Scope
from connectors._postgresql.silencing import as_the_application_unless_superuser
from engine.errors import SchemaMismatch
from engine.ports import Column, KeySpec
from engine.progress import Progress


class StoredRows(Protocol):
    """What staging needs of a table of a backup, or of a section of a change image."""

    name: str
    module: str
    columns: tuple[Column, ...]
    key: KeySpec
    sha256: str
    facts: Mapping[str, Any]

    @property
    def row_count(self) -> int: ...

    @property
    def byte_count(self) -> int: ...

    def rows(self) -> Iterator[list[bytes]]:
        """Row lines in batches."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A table of the backup and the table of the target that it goes into."""

    number: int
    view: StoredRows
    scope: Scope
    key: Key | None
    """By which rows are matched; None: by the digest of the whole row."""
    columns: tuple[str, ...]
    """Columns that both have, in the backup's order."""
    removed: tuple[str, ...]
    added: tuple[str, ...]
    mark: str
    ordinal: str
    touched: str = ""
    """A query for the keys (or marks and ordinals) that an undo is limited to; "": every row of the scope."""
    straight: bool = False
    """Its rows go straight into the target, which has none (see `straight`): nothing is staged or compared."""

    @property
    def plain(self) -> tuple[str, ...]:
        """All columns of the target that can be written, in the target's order."""
        return tuple(column.name for column in self.table.columns if not column.generated)

    @property
    def changed(self) -> tuple[tuple[str, str, str], ...]:
        """(column, type at the backup, type now) of columns that both have with different types."""
        was = {column.name: column.type for column in self.view.columns}
        now = {column.name: column.type for column in self.table.columns}
        return tuple((name, was[name], now[name]) for name in self.columns if was[name] != now[name])

    @property
    def table(self) -> Table:
        return self.scope.table

    @property
    def stage(self) -> str:
        return f"lastro_stage_{self.number}"

    @property
    def restored(self) -> str:
        """A FROM item with the backup's rows: where they are staged, or where they went straight."""
        scope, columns = self.scope, idents(self.columns, of="t")
        live = f"({scope.with_clause}SELECT {columns} FROM {self.table.source} AS t{scope.where}) AS restored"
        return live if self.straight else self.stage

    @property
    def diff(self) -> str:
        return f"lastro_diff_{self.number}"

    @property
    def left(self) -> str:
        """Rows that differ and are not changed, and why."""
        return f"lastro_left_{self.number}"

    @property
    def before(self) -> str:
        """Live rows as they were before they were updated or deleted."""
        return f"lastro_before_{self.number}"

    @property
    def made(self) -> str:
        """Inserted rows of a table without a key, as the target holds them."""
        return f"lastro_made_{self.number}"

    @property
    def text(self) -> RowText:
        """The rows' text over the columns that both have, for the digest of rows without a key."""
        return RowText(self.table, tuple(self.table.column(name) for name in self.columns), self.view.key, True)

    def on(self, left: str, right: str) -> str:
        """Join two row sources that carry the key's columns."""
        assert self.key is not None, "only a table with a key is joined by it"
        pairs = zip(self.key.columns, self.key.equals, strict=True)
        return " AND ".join(f"{left}.{ident(name)} {equals} {right}.{ident(name)}" for name, equals in pairs)

    def on_diff(self, side: str) -> str:
        """Join a row source that carries the key's columns with the diff table `d`."""
        assert self.key is not None, "only a table with a key is joined by it"
        pairs = enumerate(zip(self.key.columns, self.key.equals, strict=True))
        return " AND ".join(f"{side}.{ident(name)} {equals} d.k{n}" for n, (name, equals) in pairs)

    def on_stage(self, side: str, diff: str = "d") -> str:
        """Join the staged rows with a diff row."""
        if self.key is None:
            return f"{side}.{self.mark} = {diff}.k0 AND {side}.{self.ordinal} = {diff}.k1"
        pairs = enumerate(zip(self.key.columns, self.key.equals, strict=True))
        return " AND ".join(f"{side}.{ident(name)} {equals} {diff}.k{n}" for n, (name, equals) in pairs)

    def same_row(self, live: str = "t", diff: str = "d") -> str:
        """The live row is the very version that the diff row has seen; the source must offer xmin, ctid and tableoid."""
        if self.key is None:
            return f"{live}.ctid = {diff}.place AND {live}.tableoid = {diff}.relation AND {live}.xmin = {diff}.version"
        return f"{self.on_stage(live, diff)} AND {live}.xmin = {diff}.version"


def lost_partitions(view: StoredRows, table: Table) -> list[tuple[str, str, str]]:
    """(schema, name, bound) of partitions that the table had at the backup and no longer has."""
    present = {(schema, name) for schema, name, _ in table.partitions}
    known = (tuple(each) for each in view.facts.get("partitions", ()))
    return [(each[0], each[1], each[2]) for each in known if (each[0], each[1]) not in present]


def pair_up(view: StoredRows, scope: Scope, number: int) -> Pair:
    """Match columns and key; SchemaMismatch with the reason when the rows cannot go there."""
    table = scope.table
    kept = {column.name for column in view.columns if not column.generated}
    plain = {column.name: column for column in table.columns if not column.generated}
    both = tuple(column.name for column in view.columns if column.name in kept and column.name in plain)
    added = tuple(name for name in plain if name not in kept)
    wanted = tuple(view.facts.get("key") or ())
    usable = [key for key in table.keys if set(key.columns) <= set(both)]
    same = [key for key in usable if set(key.columns) == set(wanted)]
    key = None if view.key.synthetic else next(iter(same or usable), None)
    if not both and table.columns and view.columns:
        raise SchemaMismatch(
            f"{table.display} has no column in common with the backup", hint="restore into another schema"
        )
    taken = {column.name for column in view.columns} | {column.name for column in table.columns}
    return Pair(
        number=number,
        view=view,
        scope=scope,
        key=key,
        columns=both,
        removed=tuple(column.name for column in view.columns if column.name not in plain),
        added=added,
        mark=fresh_name("lastro_hash", taken),
        ordinal=fresh_name("lastro_ordinal", taken),
    )


def same_text(pair: Pair) -> bool:
    """Whether the target prints rows with the columns and types of the backup, so that digests can be equal."""
    if pair.removed:
        return False
    types = {column.name: column.type for column in pair.table.columns}
    return all(types.get(column.name) == column.type for column in pair.view.columns)


def check_required(pair: Pair) -> None:
    """Raise SchemaMismatch when rows cannot be inserted because a new column needs a value."""
    for name in pair.added:
        column = pair.table.column(name)
        if column.not_null and column.default is None and not column.identity:
            raise SchemaMismatch(
                f"{pair.table.display} has a new column {name!r} that must not be null and has no default",
                hint="give the column a default, restore, and drop the default again",
            )


def load_stage(connection: Connection, pair: Pair, progress: Progress) -> None:
    """Create the pair's temporary table and copy the backup's rows into it."""
    raw = pair.stage if pair.key is not None else f"{pair.stage}_raw"
    leading = [
        fresh_name(f"lastro_key_{n}", set(pair.columns) | set(pair.removed)) for n in range(pair.view.key.synthetic)
    ]
    names = leading + [column.name for column in pair.view.columns]
    changed = pair.changed
    loaded = f"{raw}_text" if changed else raw
    shared = set(pair.columns) - {name for name, _, _ in changed}
    chosen = ", ".join(f"t.{ident(name)}" if name in shared else f"NULL::text AS {ident(name)}" for name in names)
    run(
        connection,
        f"CREATE TEMPORARY TABLE {loaded} ON COMMIT DROP AS SELECT {chosen} FROM {pair.table.source} AS t WITH NO DATA",
    )
    with as_the_application_unless_superuser(connection):  # Domains of its columns have checks, too.
        copy_in(connection, loaded, names, pair.view, progress)
    if changed:
        convert(connection, pair.view.name, changed, names, loaded=loaded, into=raw)
    if pair.key is None:
        _mark_rows(connection, pair, raw)
    run(connection, f"ANALYZE {pair.stage}")


def bare_lines(view: StoredRows) -> Iterator[list[bytes]]:
    """The view's rows as the source had them, without what was made up for their key."""
    made_up = view.key.synthetic
    for lines in view.rows():
        yield [line.split(b"\t", made_up)[made_up] for line in lines] if made_up else lines


def copy_in(
    connection: Connection,
    quoted_table: str,
    columns: Sequence[str],
    view: StoredRows,
    progress: Progress,
    *,
    bare: bool = False,
) -> int:
    """COPY every row of the view into a table and say how many; SchemaMismatch naming the table when a value does not fit.

    `bare`: without what was made up for a key.
    """
    if not columns:  # COPY has no words for that.
        count = sum(len(lines) for lines in view.rows())
        return run(connection, f"INSERT INTO {quoted_table} SELECT FROM generate_series(1, {count})").rowcount
    try:
        with connection.cursor() as cursor:
            with cursor.copy(f"COPY {quoted_table} ({idents(columns)}) FROM STDIN".encode()) as copy:
                for lines in bare_lines(view) if bare else view.rows():
                    block = b"\n".join(lines) + b"\n" if lines else b""
                    copy.write(block)
                    progress.advance(bytes=len(block), items=len(lines))
                    progress.check()
            return cursor.rowcount
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if isinstance(error, psycopg.IntegrityError) and not refuses_value(error):
            raise
        raise SchemaMismatch(
            f"{view.name}: {translate(error, 'target').message}",
            hint="a column's type changed since the backup; restore into another schema and convert there",
        ) from None


def _mark_rows(connection: Connection, pair: Pair, raw: str) -> None:
    """Add digest and ordinal, taken over the columns that both sides have."""
    columns = "".join(f", t.{ident(name)}" for name in pair.columns)
    run(
        connection,
        f"CREATE TEMPORARY TABLE {pair.stage} ON COMMIT DROP AS SELECT t.*, row_number() OVER (PARTITION BY t.{pair.mark})"
        f" AS {pair.ordinal} FROM (SELECT {pair.text.hash_of_row()} AS {pair.mark}{columns} FROM {raw} AS t) AS t",
    )
    run(connection, f"DROP TABLE {raw}")
