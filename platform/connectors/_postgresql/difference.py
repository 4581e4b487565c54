"""What a restore has to change: one join of the live rows in scope with the backup's rows.

Rows are compared by their record image (`*<>`), which tells 1.0 from 1.00 and -0 from 0 where `=` does not.
Every row that is to change is written into a temporary table (`Pair.diff`) with its `xmin`, so that the statements
which apply the difference touch exactly the row versions that were compared. What is then decided not to be done
moves from there to a second table (`Pair.left`), which also says why; see `deciding` and `dependencies`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connectors._postgresql.catalogue import ForeignKey
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.errors import TargetError
from engine.ports import TableChange

LEFT_KINDS = ("kept", "collisions", "withheld", "stays")


@dataclass(frozen=True, slots=True)
class Extra:
    """What a mode wants to know about each row that differs, found in the same join: `t` is live, `s` staged."""

    columns: str
    """`, expression AS name …`"""
    joins: str = ""
    ctes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    pair: Pair
    change: TableChange
    referenced: tuple[str, ...]
    """Columns other tables refer to; their old values lie in the diff table as r0, r1 …"""
    adopted: int = 0
    """Rows that belonged to nobody and become this source's again."""

    @property
    def any(self) -> bool:
        return bool(self.change.insert or self.change.update or self.change.delete)

    @property
    def left(self) -> int:
        """Rows that differ and are not changed."""
        return self.change.kept + self.change.collisions + self.change.withheld + self.change.stays


def referenced_columns(pair: Pair, links: Sequence[ForeignKey]) -> tuple[str, ...]:
    """Columns of the pair's table that foreign keys refer to."""
    return tuple(sorted({c for link in links if link.parent == pair.table.oid for c in link.parent_columns}))


def compute(
    connection: Connection,
    pair: Pair,
    links: Sequence[ForeignKey],
    *,
    extra: Extra | None = None,
    strangers_refused: bool = True,
) -> int:
    """Write the pair's diff table and an empty one for what is left; return how many rows are adopted.

    Raises TargetError when keys of the backup belong to rows outside this source, unless that is left to the caller.
    """
    referenced = referenced_columns(pair, links)
    query = _keyed(pair, referenced, extra) if pair.key is not None else _marked(pair, referenced, extra)
    _write(connection, pair, query)
    adopted = _outside(connection, pair)
    if adopted:
        # Rows that lost their owner (ON DELETE SET NULL) are nobody's now, and were this tenant's at the backup.
        run(connection, f"DROP TABLE {pair.diff}")
        _write(connection, pair, _keyed(pair, referenced, extra, adopt=True))
        taken = _outside(connection, pair)
        if taken and strangers_refused:
            raise TargetError(
                f"{taken} rows of the backup have keys in {pair.table.display} that now belong to rows outside this source",
                hint="nothing was changed; restore into another schema and merge by hand, or give those rows other keys",
            )
        adopted -= taken
    make_left(connection, pair)
    return adopted


def make_left(connection: Connection, pair: Pair) -> None:
    """Create the table of what is not done, with the columns of the diff table."""
    run(
        connection,
        f"CREATE TEMPORARY TABLE {pair.left} ON COMMIT DROP AS SELECT d.*, ''::text AS what, ''::text AS because, false AS another"
        f" FROM {pair.diff} AS d WITH NO DATA",
    )


def compute_nothing(connection: Connection, pair: Pair, links: Sequence[ForeignKey]) -> None:
    """Write empty tables for a pair of which only rows that come along are changed, with the table that they come for."""
    referenced = referenced_columns(pair, links)
    extra = Extra(", 0::int8 AS origin")
    query = _keyed(pair, referenced, extra) if pair.key is not None else _marked(pair, referenced, extra)
    run(connection, f"CREATE TEMPORARY TABLE {pair.diff} ON COMMIT DROP AS {query} WITH NO DATA")
    make_left(connection, pair)


def count(
    connection: Connection, pair: Pair, links: Sequence[ForeignKey], *, adopted: int, whole: bool, sided: bool
) -> Difference:
    """Count what the diff table holds by now and what was left.

    `whole`: all rows of the table were compared; `sided`: the diff has the column `side` (see `deciding`).
    """
    done = dict(rows(connection, f"SELECT change, count(*) FROM {pair.diff} GROUP BY change"))
    insert, update, delete = (int(done.get(change, 0)) for change in "IUD")
    left: dict[str, int] = {}
    both = 0
    for what, change, number in rows(
        connection, f"SELECT what, change, count(*) FROM {pair.left} GROUP BY what, change"
    ):
        left[what] = left.get(what, 0) + int(number)
        both += int(number) if change != "D" else 0
    conflicts = 0
    if sided:
        conflicts = value(
            connection,
            f"SELECT (SELECT count(*) FROM {pair.diff} WHERE side = 'x')"
            f" + (SELECT count(*) FROM {pair.left} WHERE side = 'x' AND what <> 'collisions')",
        )
    total = value(connection, f"SELECT count(*) FROM {pair.stage}") if whole else insert + update + both
    change = TableChange(
        pair.view.name,
        insert,
        update,
        delete,
        int(total) - insert - update - both,
        conflicts=int(conflicts),
        **dict[str, Any]((kind, left.get(kind, 0)) for kind in LEFT_KINDS),
    )
    return Difference(pair, change, referenced_columns(pair, links), adopted)


def leave(
    connection: Connection,
    pair: Pair,
    condition: str,
    *,
    what: str,
    because: str = "''",
    another: bool = False,
    recursive: str = "",
) -> int:
    """Move rows `d` of the diff table to those that are left, and say how many; `because` is an expression.

    `another`: the live row of the same key is another thing, to which nothing of the backup may refer.
    `recursive`: a query of a WITH RECURSIVE that the condition reads.
    """
    assert what in LEFT_KINDS, what
    recursive = f"RECURSIVE {recursive}, " if recursive else ""
    moved = run(
        connection,
        f"WITH {recursive}gone AS (DELETE FROM {pair.diff} AS d WHERE {condition} RETURNING d.*)"
        f" INSERT INTO {pair.left} SELECT d.*, '{what}', {because}, {another} FROM gone AS d",
    )
    return moved.rowcount


def _write(connection: Connection, pair: Pair, query: str) -> None:
    run(connection, f"CREATE TEMPORARY TABLE {pair.diff} ON COMMIT DROP AS {query}")
    run(connection, f"ANALYZE {pair.diff}")


def remaining(connection: Connection, pair: Pair) -> int:
    """Count rows in scope that still differ from the backup, in either direction."""
    query = _keyed(pair, (), None) if pair.key is not None else _marked(pair, (), None)
    return int(value(connection, f"SELECT count(*) FROM ({query}) AS rest"))


def _keyed(pair: Pair, referenced: Sequence[str], extra: Extra | None, *, adopt: bool = False) -> str:
    assert pair.key is not None, "this form is for tables with a key"
    table, scope = pair.table, pair.scope
    keys = pair.key.columns
    live_names = dict.fromkeys([*keys, *pair.columns, *referenced])
    live = ", ".join(f"t.{ident(name)}" for name in live_names)
    left, right = (", ".join(f"{side}.{ident(name)}" for name in pair.columns) for side in "ts")
    chosen = [f"coalesce(t.{ident(name)}, s.{ident(name)}) AS k{n}" for n, name in enumerate(keys)]
    chosen += [f"t.{ident(name)} AS r{n}" for n, name in enumerate(referenced)]
    first = ident(keys[0])
    select = f"SELECT t.xmin AS {pair.mark}, {live} FROM {table.source} AS t"
    with_queries = [*scope.ctes, *(extra.ctes if extra else ())]
    rows_of_source = f"{select}{scope.where}"
    if pair.touched:
        rows_of_source = f"{select} WHERE EXISTS (SELECT FROM ({pair.touched}) AS k WHERE {pair.on('t', 'k')})"
    elif adopt:
        with_queries = list(dict.fromkeys([*with_queries, *scope.others_ctes]))
        rows_of_source += (
            f" UNION ALL {select} JOIN {pair.stage} AS s ON {pair.on('t', 's')}"
            f" WHERE ({scope.condition}) IS NOT TRUE AND ({scope.others}) IS NOT TRUE"
        )
    ctes = ", ".join([*with_queries, f"lastro_live AS ({rows_of_source})"])
    return (
        f"WITH {ctes} SELECT CASE WHEN s.{first} IS NULL THEN 'D' WHEN t.{first} IS NULL THEN 'I' ELSE 'U' END AS change,"
        f" t.{pair.mark} AS version, {', '.join(chosen)}{extra.columns if extra else ''}"
        f" FROM lastro_live AS t FULL JOIN {pair.stage} AS s ON {pair.on('t', 's')}{extra.joins if extra else ''}"
        f" WHERE t.{first} IS NULL OR s.{first} IS NULL OR ROW({left})::record *<> ROW({right})::record"
    )


def _marked(pair: Pair, referenced: Sequence[str], extra: Extra | None) -> str:
    table, scope = pair.table, pair.scope
    old = "".join(f", t.{ident(name)} AS r{n}" for n, name in enumerate(referenced))
    inner = (
        f"SELECT t.xmin AS version, t.tableoid AS relation, t.ctid AS place, {pair.text.hash_of_row()} AS mark{old}"
        f" FROM {table.source} AS t{scope.where}"
    )
    numbered = f"SELECT t.*, row_number() OVER (PARTITION BY t.mark) AS ordinal FROM ({inner}) AS t"
    if pair.touched:
        numbered = f"SELECT t.* FROM ({numbered}) AS t WHERE (t.mark, t.ordinal) IN ({pair.touched})"
    ctes = ", ".join([*scope.ctes, *(extra.ctes if extra else ()), f"lastro_live AS ({numbered})"])
    kept = "".join(f", t.r{n}" for n in range(len(referenced)))
    return (
        f"WITH {ctes} SELECT CASE WHEN t.mark IS NULL THEN 'I' ELSE 'D' END AS change, t.version, t.relation, t.place,"
        f" coalesce(s.{pair.mark}, t.mark) AS k0, coalesce(s.{pair.ordinal}, t.ordinal) AS k1{kept}{extra.columns if extra else ''}"
        f" FROM lastro_live AS t FULL JOIN {pair.stage} AS s"
        f" ON t.mark = s.{pair.mark} AND t.ordinal = s.{pair.ordinal}{extra.joins if extra else ''}"
        f" WHERE t.mark IS NULL OR s.{pair.mark} IS NULL"
    )


def _outside(connection: Connection, pair: Pair) -> int:
    """Count rows to insert whose key a row outside the scope has taken."""
    if pair.key is None or not pair.scope.condition:
        return 0
    on = pair.on_diff("t")
    return int(
        value(
            connection,
            f"SELECT count(*) FROM {pair.diff} AS d JOIN {pair.table.source} AS t ON {on} WHERE d.change = 'I'",
        )
    )


def adopted_rows(pair: Pair) -> str:
    """A condition on `t` that holds for the rows which the difference updates."""
    assert pair.key is not None, "only rows with a key are adopted"
    on = pair.on_diff("t")
    return f"EXISTS (SELECT FROM {pair.diff} AS d WHERE d.change = 'U' AND {on})"
