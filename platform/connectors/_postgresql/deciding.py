"""What a merge does with each row that differs, by `engine.plans.Policy`.

The difference of a merge carries three more columns, found in the same join:
- `side`: who changed the row since the base: 't' the tenant, 'b' the backup's side, 'x' both; '' without a base;
- `stranger`: the two rows are different things (see `colliding`);
- `newer`: the backup's clock is later.
What is not done is moved to the pair's table of left rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors._postgresql.catalogue import Table
from connectors._postgresql.colliding import Unique, differ, leave_outsiders
from connectors._postgresql.connection import Connection
from connectors._postgresql.difference import Extra, leave
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.errors import NameUnknown, UsageError
from engine.plans import CLOCK_COLUMNS, Policy

CLOCK_TYPES = {"date", "timestamp", "timestamptz"}
COUNTER_TYPES = {"int2", "int4", "int8", "numeric", "float4", "float8"}
"""What an application's own clock may be, too, such as a version; text sorts by its spelling."""


@dataclass(frozen=True, slots=True)
class Merging:
    """How one table is merged."""

    policy: Policy
    clock: str = ""
    three_way: bool = False
    base: Pair | None = None
    """The base's rows, staged; None in a three-way merge: the base has no such table, every row is new."""


def clock_of(pair: Pair, clocks: Mapping[str, str]) -> str:
    """The column that says when a row changed: as given, or found by name; "" when there is none."""
    given = clocks.get(pair.view.name, clocks.get(pair.table.name, ""))
    if given:
        if given not in pair.columns:
            raise NameUnknown(
                f"{pair.table.display} has no column {given!r} to tell newer rows by",
                hint="name a column that the table and the backup both have",
            )
        base = pair.table.column(given).base
        if base not in CLOCK_TYPES | COUNTER_TYPES:
            raise UsageError(
                f"column {given} of {pair.table.display} is {base}, which does not tell which row is newer",
                hint="name a column of dates, times or numbers",
            )
        return given
    return next((n for n in CLOCK_COLUMNS if n in pair.columns and _is_clock(pair.table, n)), "")


def _is_clock(table: Table, name: str) -> bool:
    return table.column(name).base in CLOCK_TYPES


def merge_columns(pair: Pair, merging: Merging, uniques: Sequence[Unique], *, constant: Sequence[str]) -> Extra:
    """The extra columns of a merge's difference, and the join with the base."""
    base = merging.base
    if pair.key is None:
        joins = f" LEFT JOIN {base.stage} AS b ON coalesce(s.{pair.mark}, t.mark) = b.{base.mark}" if base else ""
        joins += f" AND coalesce(s.{pair.ordinal}, t.ordinal) = b.{base.ordinal}" if base else ""
        known = f"b.{base.mark} IS NOT NULL" if base else "false"
        side = f"CASE WHEN (t.mark IS NULL) = ({known}) THEN 't' ELSE 'b' END" if merging.three_way else "''"
        return Extra(f", {side} AS side, false AS stranger, false AS newer", joins)
    first = ident(pair.key.columns[0])
    stranger = differ(pair, uniques, "t", "s", columns=pair.columns, constant=constant)
    joins, again, given = "", "false", "false"
    if base is not None:
        shared = [name for name in pair.columns if name in base.columns]
        equal = zip(pair.key.columns, pair.key.equals, strict=True)
        on = " AND ".join(f"coalesce(t.{ident(n)}, s.{ident(n)}) {op} b.{ident(n)}" for n, op in equal)
        joins = f" LEFT JOIN {base.stage} AS b ON {on}"
        again = differ(pair, uniques, "t", "b", columns=shared, constant=constant)
        given = differ(pair, uniques, "s", "b", columns=shared, constant=constant)
        stranger = f"{stranger} OR (b.{first} IS NOT NULL AND ({again}))"
    both = f"t.{first} IS NOT NULL AND s.{first} IS NOT NULL"
    newer = f"s.{ident(merging.clock)} > t.{ident(merging.clock)}" if merging.clock else "false"
    columns = (
        f", {_side(pair, merging, again, given)} AS side, {both} AND ({stranger}) IS TRUE AS stranger,"
        f" {both} AND ({newer}) IS TRUE AS newer"
    )
    return Extra(columns, joins)


def _side(pair: Pair, merging: Merging, again: str, given: str) -> str:
    """Whose change it is. `again`, `given`: the live, the staged row is another thing than the base's was.

    Such a row is new on its side, and what became of the base's row is no matter of it.
    """
    assert pair.key is not None, "rows without a key are never changed"
    if not merging.three_way:
        return "''"
    first = ident(pair.key.columns[0])
    no_live, no_staged = f"t.{first} IS NULL", f"s.{first} IS NULL"
    if merging.base is None:
        return f"CASE WHEN {no_live} THEN 'b' WHEN {no_staged} THEN 't' ELSE 'x' END"
    shared = [name for name in pair.columns if name in merging.base.columns]
    same = {
        side: " ROW({})::record *= ROW({})::record".format(
            *(", ".join(f"{alias}.{ident(name)}" for name in shared) for alias in ("b", side))
        )
        for side in "ts"
    }
    return (
        f"CASE WHEN b.{first} IS NULL THEN CASE WHEN {no_live} THEN 'b' WHEN {no_staged} THEN 't' ELSE 'x' END"
        f" WHEN {no_live} THEN CASE WHEN {same['s']} THEN 't' WHEN {given} THEN 'b' ELSE 'x' END"
        f" WHEN {no_staged} THEN CASE WHEN {same['t']} THEN 'b' WHEN {again} THEN 't' ELSE 'x' END"
        f" WHEN {same['t']} THEN 'b' WHEN {same['s']} THEN 't' ELSE 'x' END"
    )


def decide(connection: Connection, pair: Pair, merging: Merging) -> None:
    """Leave what the policy does not do; collisions first, whatever the policy."""
    leave(connection, pair, "d.stranger", what="collisions", because="'its key was given to another row'", another=True)
    leave_outsiders(connection, pair)
    stays = ["d.side = 't'"]
    if not merging.three_way:
        stays.append("d.change = 'D'")
    elif merging.policy != "take_backup":
        stays.append("d.side = 'x' AND d.change = 'D'")
    contested = "d.change = 'U' AND d.side <> 'b'"
    if merging.policy == "only_missing":
        stays.append(contested)
    elif merging.policy == "newest_wins":
        stays.append(f"{contested} AND NOT d.newer")
    because = (
        "CASE WHEN d.side = 't' AND d.change = 'I' THEN 'the tenant deleted it' WHEN d.side = 't' THEN 'only the tenant changed it'"
        f" WHEN d.change = 'D' THEN 'only the tenant has it' ELSE '{merging.policy}' END"
    )
    leave(connection, pair, " OR ".join(f"({each})" for each in stays), what="kept", because=because)
