"""Proof that a restore touched nothing but what it planned.

The server counts every row that this transaction inserts, updates and deletes, in every table, whoever
asked for it (`pg_stat_xact_user_tables`): a cascade or a trigger that writes elsewhere shows up here.
Attempts that were rolled back to a savepoint stay in the server's counts, so they are measured and set aside.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.scope import Scope
from engine.errors import TargetError

_COUNTS = """
SELECT coalesce(pg_partition_root(s.relid), s.relid)::oid::int8, sum(n_tup_ins)::int8, sum(n_tup_upd)::int8, sum(n_tup_del)::int8
  FROM pg_stat_xact_user_tables s WHERE s.schemaname !~ '^pg_' GROUP BY 1 HAVING sum(n_tup_ins + n_tup_upd + n_tup_del) > 0
"""

Counts = Counter[tuple[int, str]]


class Attempt:
    """Work behind a savepoint that may be taken back."""

    undone = False

    def undo(self) -> None:
        self.undone = True


class Ledger:
    """Planned row changes by table, and the server's own count of them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._planned: Counts = Counter()
        self._attempts = 0
        _require_counting(connection)
        self._base = self._measure()

    def _measure(self) -> Counts:
        counts: Counts = Counter()
        for oid, inserted, updated, deleted in rows(self._connection, _COUNTS):
            counts[oid, "insert"], counts[oid, "update"], counts[oid, "delete"] = inserted, updated, deleted
        return counts

    def plan(self, oid: int, what: str, count: int) -> None:
        """Note rows that a statement of ours was meant to change."""
        self._planned[oid, what] += count

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Run the body behind a savepoint; when it calls `undo`, nothing of it counts."""
        # Each has a name of its own: an inner one that an error left open must not be what the outer returns to.
        self._attempts += 1
        name = f"lastro_attempt_{self._attempts}"
        run(self._connection, f"SAVEPOINT {name}")
        before, planned, attempt = self._measure(), self._planned.copy(), Attempt()
        yield attempt
        if attempt.undone:
            run(self._connection, f"ROLLBACK TO SAVEPOINT {name}")
            self._base += self._measure() - before
            self._planned = planned
        run(self._connection, f"RELEASE SAVEPOINT {name}")

    def settle(self, catalogue: Catalogue) -> dict[str, Any]:
        """Compare planned with counted; TargetError when anything else was touched."""
        counted = self._measure()
        counted.subtract(self._base)
        tables = sorted({oid for oid, _ in counted} | {oid for oid, _ in self._planned})
        report, wrong = {}, []
        for oid in tables:
            planned = {what: self._planned[oid, what] for what in ("insert", "update", "delete")}
            actual = {what: counted[oid, what] for what in ("insert", "update", "delete")}
            if not any(planned.values()) and not any(actual.values()):
                continue
            known = catalogue.tables.get(oid)
            name = known.display if known else str(value(self._connection, f"SELECT {oid}::regclass::text"))
            report[name] = {"planned": planned, "counted": actual}
            if not _agrees(planned, actual, may_move=known is not None and known.partitioned):
                wrong.append(f"{name} (planned {_words(planned)}, counted {_words(actual)})")
        if wrong:
            raise TargetError(
                "the restore would have changed more than planned: " + "; ".join(wrong),
                hint="nothing was changed; triggers or cascades write elsewhere: restore as a role that may set "
                "session_replication_role",
            )
        return report


def _agrees(planned: Mapping[str, int], actual: Mapping[str, int], *, may_move: bool) -> bool:
    # An update that moves a row to another partition is counted as a deletion and an insertion.
    moved = planned["update"] - actual["update"]
    if moved and not may_move:
        return False
    return moved >= 0 and all(actual[what] == planned[what] + moved for what in ("insert", "delete"))


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _require_counting(connection: Connection) -> None:
    if value(connection, "SHOW track_counts") == "on":
        return
    run(connection, "SAVEPOINT lastro_counts")
    try:
        run(connection, "SET LOCAL track_counts = on")
    except psycopg.errors.InsufficientPrivilege:
        run(connection, "ROLLBACK TO SAVEPOINT lastro_counts")
        raise TargetError(
            "the server does not count row changes, so that nobody could prove the neighbours untouched",
            hint="set track_counts = on",
        ) from None


@dataclass(frozen=True, slots=True)
class Outside:
    """Rows outside the source, table by table: how many and a digest that does not depend on their order."""

    count: int
    digest: str


def fingerprint_outside(
    connection: Connection, catalogue: Catalogue, scopes: Sequence[Scope], *, adopted: Mapping[int, str]
) -> dict[str, Outside]:
    """Read every row of every user table that does not belong to the source.

    `adopted` holds, by table, a condition for rows that belonged to nobody and are restored.
    """
    by_oid = {scope.table.oid: scope for scope in scopes}
    found = {}
    for oid, table in catalogue.tables.items():
        scope = by_oid.get(oid)
        if scope is not None and not scope.condition:
            continue
        ctes = scope.with_clause if scope else ""
        where = f" WHERE ({scope.condition}) IS NOT TRUE" if scope else ""
        where += f" AND NOT ({adopted[oid]})" if oid in adopted else ""
        text = "encode(sha256(textsend((t.*)::text)), 'hex')"
        half = "sum(('x' || substr(h, {}, 15))::bit(60)::int8::numeric)"
        count, first, second = rows(
            connection,
            f"{ctes}SELECT count(*), {half.format(1)}, {half.format(16)}"
            f" FROM (SELECT {text} AS h FROM {table.source} AS t{where}) AS t",
        )[0]
        found[table.display] = Outside(count, f"{first}:{second}")
    return found
