"""Keys and unique values that were given out again: the backup's row and the live row are different things.

Rows of the same key are taken for different by the rules of docs/adr/0007 (`differ`). A row that would come back with
a unique value which another live row holds by the end collides too (`leave_taken`): PostgreSQL would refuse it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors._postgresql.connection import Connection, rows
from connectors._postgresql.difference import leave
from connectors._postgresql.quoting import ident
from connectors._postgresql.staging import Pair
from engine.plans import BIRTH_COLUMNS

COMPARABLE_COLUMNS_MIN = 3

_INDEXES = """
SELECT i.indrelid::oid::int8, coalesce(c.conname, x.relname),
       array_agg(pg_get_indexdef(i.indexrelid, k.n + 1, false) ORDER BY k.n),
       array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.n),
       coalesce(pg_get_expr(i.indpred, i.indrelid), ''), coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false),
       i.indexprs IS NULL AND i.indpred IS NULL AND i.indisunique,
       ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum > 0
              AND (a.attnum = ANY (i.indkey::int2[]) OR EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass
                   AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum AND ((d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid)
                   OR (d.classid = 'pg_constraint'::regclass AND d.objid = c.oid)))) ORDER BY a.attnum)
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
  LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.conrelid = i.indrelid AND c.contype IN ('p', 'u', 'x')
  CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k(n)
  JOIN pg_opclass p ON p.oid = i.indclass[k.n]
  JOIN pg_operator o ON o.oid = coalesce(c.conexclop[k.n + 1], (SELECT m.amopopr FROM pg_amop m
        WHERE m.amopfamily = p.opcfamily AND m.amopstrategy = 3
          AND m.amoplefttype = p.opcintype AND m.amoprighttype = p.opcintype))
  JOIN pg_namespace n ON n.oid = o.oprnamespace
 WHERE i.indrelid = ANY (ARRAY[{oids}]::oid[]) AND i.indisvalid AND (i.indisunique OR i.indisexclusion)
 GROUP BY i.indrelid, i.indexrelid, x.relname, c.conname, c.oid, i.indpred, i.indexprs, i.indisunique, i.indkey, i.*
 ORDER BY i.indrelid, x.relname
"""


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index or an exclusion constraint: no two rows may have all values equal by the operators."""

    name: str
    values: tuple[str, ...]
    """Columns (quoted) or expressions over unqualified columns."""
    operators: tuple[str, ...]
    predicate: str
    nulls_equal: bool
    plain: bool
    """Over columns alone and all rows."""
    columns: frozenset[str]
    """Every column that values and predicate read."""

    def clash(self, left: str, right: str) -> str:
        """Whether two rows, each offering v0, v1 …, must not both be there."""
        parts = []
        for n, operator in enumerate(self.operators):
            same = f"{left}.v{n} {operator} {right}.v{n}"
            parts.append(f"({same} OR ({left}.v{n} IS NULL AND {right}.v{n} IS NULL))" if self.nulls_equal else same)
        return " AND ".join(parts)

    def select(self, columns: str, source: str) -> str:
        """Rows of a source with what they are compared by."""
        values = "".join(f", ({text}) AS v{n}" for n, text in enumerate(self.values))
        where = f" WHERE {self.predicate}" if self.predicate else ""
        return f"SELECT {columns}{values} FROM {source} AS t{where}"


def read_uniques(connection: Connection, oids: Sequence[int]) -> dict[int, list[Unique]]:
    """Everything that keeps rows of these tables apart, primary keys too."""
    found: dict[int, list[Unique]] = {}
    if not oids:
        return found
    for oid, name, values, operators, predicate, nulls, plain, columns in rows(
        connection, _INDEXES.format(oids=", ".join(map(str, oids)))
    ):
        unique = Unique(name, tuple(values), tuple(operators), predicate, nulls, plain, frozenset(columns))
        found.setdefault(oid, []).append(unique)
    return found


def others(pair: Pair, uniques: Sequence[Unique]) -> list[Unique]:
    """Those beside the key by which rows are matched, as far as the backup has their columns."""
    key = frozenset(pair.key.columns) if pair.key is not None else None
    return [each for each in uniques if each.columns <= set(pair.columns) and not (each.plain and each.columns == key)]


def differ(
    pair: Pair, uniques: Sequence[Unique], one: str, other: str, *, columns: Sequence[str], constant: Sequence[str]
) -> str:
    """A condition by which two rows of the same key, offering `columns`, are different things.

    `constant` columns say nothing: they are the same in all rows of a tenant.
    """
    assert pair.key is not None, "only rows of the same key are asked about"
    conditions, known = [], []
    for birth in (name for name in BIRTH_COLUMNS if name in columns and name not in pair.key.columns):
        both = f"{one}.{ident(birth)} IS NOT NULL AND {other}.{ident(birth)} IS NOT NULL"
        conditions.append(f"({both} AND {_unequal(one, other, birth)})")
        known.append(f"({both})")
    keys = [each for each in others(pair, uniques) if each.plain and each.columns <= set(columns)]
    if keys:
        equal = [
            " AND ".join(f"{one}.{v} {o} {other}.{v}" for v, o in zip(each.values, each.operators, strict=True))
            for each in keys
        ]
        # A birth that both know decides: a guest with another e-mail address is still the guest.
        untold = [f"NOT ({' OR '.join(known)})"] if known else []
        conditions.append("(" + " AND ".join([*untold, *(f"({each}) IS FALSE" for each in equal)]) + ")")
    if not conditions:
        comparable = [name for name in columns if name not in pair.key.columns and name not in constant]
        if len(comparable) >= COMPARABLE_COLUMNS_MIN:
            conditions.append("(" + " AND ".join(_unequal(one, other, name) for name in comparable) + ")")
    return " OR ".join(conditions) or "false"


def _unequal(one: str, other: str, name: str) -> str:
    return f"ROW({one}.{ident(name)})::record *<> ROW({other}.{ident(name)})::record"


def leave_outsiders(connection: Connection, pair: Pair) -> int:
    """Leave out rows whose key belongs to a row outside the source."""
    if pair.key is None or not pair.scope.condition:
        return 0
    taken = f"d.change = 'I' AND EXISTS (SELECT FROM {pair.table.source} AS t WHERE {pair.on_diff('t')})"
    because = "'its key belongs to a row outside this source'"
    return leave(connection, pair, taken, what="collisions", because=because, another=True)


def leave_taken(connection: Connection, pair: Pair, uniques: Sequence[Unique]) -> int:
    """Leave out rows with a unique value that another live row holds by the end; return how many."""
    moved = 0
    for unique in others(pair, uniques):
        while count := _leave_taken(connection, pair, unique):
            moved += count
    return moved


def _leave_taken(connection: Connection, pair: Pair, unique: Unique) -> int:
    if pair.key is not None:
        names = ", ".join(f"t.{ident(name)}" for name in pair.key.columns)
        staged, live = names, names
        apart = f"NOT ({pair.on('a', 'b')})"
        goes = f"x.change IN ('U', 'D') AND {pair.on_stage('b', 'x')}"
    else:
        staged, live = f"t.{pair.mark}, t.{pair.ordinal}", "t.ctid, t.tableoid, t.xmin"
        # System columns of a subquery carry other names there.
        live = "t.ctid AS place, t.tableoid AS relation"
        apart = "true"
        goes = "x.change = 'D' AND b.place = x.place AND b.relation = x.relation"
    taken = (
        f"d.change IN ('I', 'U') AND EXISTS (SELECT FROM ({unique.select(staged, pair.stage)}) AS a"
        f" JOIN ({unique.select(live, pair.table.source)}) AS b ON {unique.clash('a', 'b')}"
        f" WHERE {pair.on_stage('a')} AND {apart} AND NOT EXISTS (SELECT FROM {pair.diff} AS x WHERE {goes}))"
    )
    because = f"'its value of {unique.name.replace(chr(39), chr(39) * 2)} belongs to another row'"
    return leave(connection, pair, taken, what="collisions", because=because)
