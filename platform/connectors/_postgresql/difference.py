"""What a restore has to change: one join of the live rows in scope with the backup's rows.

Rows are compared by their record image (`*<>`), which tells 1.0 from 1.00 and -0 from 0 where `=` does not.
Every row that is to change is written into a temporary table with its `xmin`, so that the statements which
apply the difference touch exactly the row versions that were compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors._postgresql.catalogue import ForeignKey
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.errors import TargetError
from engine.ports import TableChange


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


def compute(connection: Connection, pair: Pair, links: Sequence[ForeignKey]) -> Difference:
    """Write the pair's diff table and count it."""
    referenced = tuple(sorted({c for link in links if link.parent == pair.table.oid for c in link.parent_columns}))
    query = _keyed(pair, referenced) if pair.key is not None else _marked(pair, referenced)
    _write(connection, pair, query)
    adopted = _collisions(connection, pair)
    if adopted:
        # Rows that lost their owner (ON DELETE SET NULL) are nobody's now, and were this tenant's at the backup.
        run(connection, f"DROP TABLE {pair.diff}")
        _write(connection, pair, _keyed(pair, referenced, adopt=True))
        taken = _collisions(connection, pair)
        if taken:
            raise TargetError(
                f"{taken} rows of the backup have keys in {pair.table.display} that now belong to rows outside this source",
                hint="nothing was changed; restore into another schema and merge by hand, or give those rows other keys",
            )
    counts = dict(rows(connection, f"SELECT change, count(*) FROM {pair.diff} GROUP BY change"))
    total = value(connection, f"SELECT count(*) FROM {pair.stage}")
    insert, update, delete = (int(counts.get(change, 0)) for change in "IUD")
    change = TableChange(pair.view.name, insert, update, delete, total - insert - update)
    return Difference(pair, change, referenced, adopted)


def _write(connection: Connection, pair: Pair, query: str) -> None:
    run(connection, f"CREATE TEMPORARY TABLE {pair.diff} ON COMMIT DROP AS {query}")
    run(connection, f"ANALYZE {pair.diff}")


def remaining(connection: Connection, pair: Pair) -> int:
    """Count rows in scope that still differ from the backup, in either direction."""
    query = _keyed(pair, ()) if pair.key is not None else _marked(pair, ())
    return int(value(connection, f"SELECT count(*) FROM ({query}) AS rest"))


def _keyed(pair: Pair, referenced: Sequence[str], *, adopt: bool = False) -> str:
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
    with_queries = list(scope.ctes)
    rows_of_source = f"{select}{scope.where}"
    if adopt:
        with_queries = list(dict.fromkeys([*scope.ctes, *scope.others_ctes]))
        rows_of_source += (
            f" UNION ALL {select} JOIN {pair.stage} AS s ON {pair.on('t', 's')}"
            f" WHERE ({scope.condition}) IS NOT TRUE AND ({scope.others}) IS NOT TRUE"
        )
    ctes = ", ".join([*with_queries, f"lastro_live AS ({rows_of_source})"])
    return (
        f"WITH {ctes} SELECT CASE WHEN s.{first} IS NULL THEN 'D' WHEN t.{first} IS NULL THEN 'I' ELSE 'U' END AS change,"
        f" t.{pair.mark} AS version, {', '.join(chosen)} FROM lastro_live AS t FULL JOIN {pair.stage} AS s ON {pair.on('t', 's')}"
        f" WHERE t.{first} IS NULL OR s.{first} IS NULL OR ROW({left})::record *<> ROW({right})::record"
    )


def _marked(pair: Pair, referenced: Sequence[str]) -> str:
    table, scope = pair.table, pair.scope
    old = "".join(f", t.{ident(name)} AS r{n}" for n, name in enumerate(referenced))
    inner = (
        f"SELECT t.xmin AS version, t.tableoid AS relation, t.ctid AS place, {pair.text.hash_of_row()} AS mark{old}"
        f" FROM {table.source} AS t{scope.where}"
    )
    ctes = ", ".join(
        [
            *scope.ctes,
            f"lastro_live AS (SELECT t.*, row_number() OVER (PARTITION BY t.mark) AS ordinal FROM ({inner}) AS t)",
        ]
    )
    kept = "".join(f", t.r{n}" for n in range(len(referenced)))
    return (
        f"WITH {ctes} SELECT CASE WHEN t.mark IS NULL THEN 'I' ELSE 'D' END AS change, t.version, t.relation, t.place,"
        f" s.{pair.mark} AS k0, s.{pair.ordinal} AS k1{kept} FROM lastro_live AS t FULL JOIN {pair.stage} AS s"
        f" ON t.mark = s.{pair.mark} AND t.ordinal = s.{pair.ordinal} WHERE t.mark IS NULL OR s.{pair.mark} IS NULL"
    )


def _collisions(connection: Connection, pair: Pair) -> int:
    """Count rows to insert whose key a row outside the scope has taken."""
    if pair.key is None:
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
