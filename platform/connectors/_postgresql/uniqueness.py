"""Deferrable constraints checked by hand, because the triggers that check them are off while a restore writes.

PostgreSQL enforces a deferrable PRIMARY KEY, UNIQUE or EXCLUDE constraint by a trigger of its own, which
`session_replication_role = replica` silences along with the users' triggers: without this check a value that
another tenant has taken since the backup would stand there twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from connectors._postgresql.connection import Connection, rows, value
from connectors._postgresql.difference import Difference
from connectors._postgresql.staging import Pair
from engine.errors import TargetError

_DEFERRABLE = """
SELECT coalesce(pg_partition_root(c.conrelid), c.conrelid)::oid::int8, c.conname,
       CASE WHEN r.relkind = 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', s.nspname, r.relname),
       array_agg(pg_get_indexdef(i.indexrelid, k.n + 1, false) ORDER BY k.n),
       array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.n),
       coalesce(pg_get_expr(i.indpred, i.indrelid), 'true'),
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false)
  FROM pg_constraint c JOIN pg_index i ON i.indexrelid = c.conindid
  JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace s ON s.oid = r.relnamespace
  CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k(n)
  JOIN pg_opclass p ON p.oid = i.indclass[k.n]
  JOIN pg_operator o ON o.oid = coalesce(c.conexclop[k.n + 1], (SELECT m.amopopr FROM pg_amop m
        WHERE m.amopfamily = p.opcfamily AND m.amopstrategy = 3
          AND m.amoplefttype = p.opcintype AND m.amoprighttype = p.opcintype))
  JOIN pg_namespace n ON n.oid = o.oprnamespace
 WHERE c.contype IN ('p', 'u', 'x') AND c.condeferrable AND c.conparentid = 0
 GROUP BY c.oid, c.conname, c.conrelid, r.relkind, s.nspname, r.relname, i.indexrelid, i.indrelid, i.indpred, i.*
"""


@dataclass(frozen=True, slots=True)
class _Constraint:
    name: str
    source: str
    values: tuple[str, ...]
    operators: tuple[str, ...]
    predicate: str
    nulls_equal: bool

    def rows(self, condition: str) -> str:
        """The compared values of rows `t` under a condition, with the place where each lies."""
        values = "".join(f", ({text}) AS v{n}" for n, text in enumerate(self.values))
        return (
            f"SELECT t.ctid AS place, t.tableoid AS relation{values} FROM {self.source} AS t"
            f" WHERE ({self.predicate}) AND ({condition})"
        )

    def clash(self, left: str, right: str) -> str:
        """Whether two rows must not both be there."""
        parts = []
        for n, operator in enumerate(self.operators):
            same = f"{left}.v{n} {operator} {right}.v{n}"
            parts.append(f"({same} OR ({left}.v{n} IS NULL AND {right}.v{n} IS NULL))" if self.nulls_equal else same)
        return " AND ".join(parts)


def check_uniqueness(connection: Connection, differences: Iterable[Difference]) -> int:
    """Check every deferrable constraint that written rows may break; return how many. TargetError for a broken one."""
    constraints: dict[int, list[_Constraint]] = {}
    for oid, name, source, values, operators, predicate, nulls_equal in rows(connection, _DEFERRABLE):
        found = _Constraint(name, source, tuple(values), tuple(operators), predicate, nulls_equal)
        constraints.setdefault(oid, []).append(found)
    checked = 0
    for difference in differences:
        if not (difference.change.insert or difference.change.update):
            continue
        for constraint in constraints.get(difference.pair.table.oid, ()):
            _check(connection, constraint, difference.pair)
            checked += 1
    return checked


def _check(connection: Connection, constraint: _Constraint, pair: Pair) -> None:
    if pair.key is None or pair.straight:
        # Written rows without a key cannot be told from the others; they are all the source's own. Or there are no others.
        ctes, written = pair.scope.with_clause, pair.scope.condition or "true"
    else:
        ctes, written = "", f"EXISTS (SELECT FROM {pair.diff} AS d WHERE d.change <> 'D' AND {pair.on_diff('t')})"
    count = value(
        connection,
        f"{ctes}SELECT count(*) FROM ({constraint.rows(written)}) AS a JOIN ({constraint.rows('true')}) AS b"
        f" ON {constraint.clash('a', 'b')} AND (a.place, a.relation) <> (b.place, b.relation)",
    )
    if count:
        raise TargetError(
            f"restored rows of {pair.table.display} would break {constraint.name}: their values are taken",
            hint="nothing was changed; restore into another schema and merge by hand, or give the other rows other values",
        )
