"""The statements that turn the live rows into the backup's: deletions, updates, insertions.

Each touches only row versions that the difference has seen (`xmin` must still be the same), and each must
touch exactly as many rows as planned; anything else is a concurrent change, and the attempt is rolled back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg

from connectors._postgresql.catalogue import ForeignKey
from connectors._postgresql.connection import Connection, run
from connectors._postgresql.difference import Difference
from connectors._postgresql.neighbours import Ledger
from connectors._postgresql.quoting import ident, idents
from connectors._postgresql.staging import Pair, copy_in, lost_partitions
from engine.errors import SchemaMismatch
from engine.progress import Progress


class ConcurrentChange(Exception):
    """Rows changed between comparison and application; the transaction is to be tried again."""


@dataclass
class Applier:
    """Applies differences inside the caller's transaction; parents first in `differences`."""

    connection: Connection
    differences: Sequence[Difference]
    ledger: Ledger
    progress: Progress
    replaced: set[int] = field(default_factory=set)

    def apply(self, *, deletions_last: bool) -> None:
        """Delete children first, update, insert parents first; or the other way round for enforced foreign keys."""
        if deletions_last:
            self._insert_all()
            self._update_all()
            self._delete_all()
        else:
            self._delete_all()
            self._update_all()
            self._insert_all()

    def _delete_all(self) -> None:
        for difference in reversed(self.differences):
            if difference.change.delete:
                self._delete(difference)

    def _update_all(self) -> None:
        for difference in self.differences:
            if difference.change.update:
                self._update(difference)

    def _insert_all(self) -> None:
        for difference in self.differences:
            if difference.change.insert:
                self._insert(difference)

    def _expect(self, difference: Difference, statement: str, count: int, *, what: str) -> None:
        try:
            touched = run(self.connection, statement).rowcount
        except psycopg.errors.CheckViolation as error:
            if error.diag.constraint_name or not error.diag.table_name:
                raise
            raise _nowhere_to_go(difference.pair, error.diag.message_primary or "") from None
        if touched != count:
            raise ConcurrentChange(f"{difference.pair.table.display}: {what} {touched} rows instead of {count}")
        self.ledger.plan(difference.pair.table.oid, what, count)

    def _delete(self, difference: Difference) -> None:
        pair = difference.pair
        self._expect(
            difference,
            f"DELETE FROM {pair.table.source} AS t USING {pair.diff} AS d WHERE d.change = 'D' AND {pair.same_row()}",
            difference.change.delete,
            what="delete",
        )

    def _insert(self, difference: Difference) -> None:
        pair = difference.pair
        if pair.straight:
            self._insert_straight(difference)
            return
        if pair.key is None and pair.plain:
            self._insert_and_keep(difference)
            return
        self._expect(
            difference,
            f"INSERT INTO {pair.table.quoted} ({idents(pair.columns)}) OVERRIDING SYSTEM VALUE"
            f" SELECT {idents(pair.columns, of='s')} FROM {pair.stage} AS s JOIN {pair.diff} AS d ON {pair.on_stage('s')}"
            " WHERE d.change = 'I'"
            if pair.columns
            else f"INSERT INTO {pair.table.quoted} SELECT FROM {pair.diff} AS d WHERE d.change = 'I'",
            difference.change.insert,
            what="insert",
        )

    def _insert_straight(self, difference: Difference) -> None:
        """COPY gives identity columns the values that it is given, and OVERRIDING SYSTEM VALUE is not asked of it."""
        pair, count = difference.pair, difference.change.insert
        columns = [column.name for column in pair.view.columns]
        touched = copy_in(self.connection, pair.table.quoted, columns, pair.view, self.progress, bare=True)
        if touched != count:
            raise ConcurrentChange(f"{pair.table.display}: insert {touched} rows instead of {count}")
        self.ledger.plan(pair.table.oid, "insert", count)

    def _insert_and_keep(self, difference: Difference) -> None:
        """Insert rows that have no key, and keep what became of them: nothing would find them again."""
        pair = difference.pair
        plain = idents(pair.plain, of="t")
        run(
            self.connection,
            f"CREATE TEMPORARY TABLE {pair.made} ON COMMIT DROP AS SELECT {plain} FROM {pair.table.source} AS t WITH NO DATA",
        )
        self._expect(
            difference,
            f"WITH made AS (INSERT INTO {pair.table.quoted} ({idents(pair.columns)}) OVERRIDING SYSTEM VALUE"
            f" SELECT {idents(pair.columns, of='s')} FROM {pair.stage} AS s JOIN {pair.diff} AS d ON {pair.on_stage('s')}"
            f" WHERE d.change = 'I' RETURNING {idents(pair.plain)})"
            f" INSERT INTO {pair.made} SELECT {idents(pair.plain)} FROM made",
            difference.change.insert,
            what="insert",
        )

    def _update(self, difference: Difference) -> None:
        """Update in place; where values of a unique index trade places between rows, replace the rows."""
        pair = difference.pair
        settable = [name for name in pair.columns if pair.table.column(name).identity != "a"]
        if _has_fixed_column(pair):
            # GENERATED ALWAYS AS IDENTITY cannot be set by an UPDATE, only by an INSERT.
            self._replace(difference)
            return
        with self.ledger.attempt() as attempt:
            try:
                assignments = ", ".join(f"{ident(name)} = s.{ident(name)}" for name in settable)
                self._expect(
                    difference,
                    f"UPDATE {pair.table.source} AS t SET {assignments} FROM {pair.stage} AS s JOIN {pair.diff} AS d"
                    f" ON {pair.on_diff('s')} WHERE d.change = 'U' AND {pair.same_row()}",
                    difference.change.update,
                    what="update",
                )
            except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation):
                attempt.undo()
        if attempt.undone:
            self._replace(difference)

    def _replace(self, difference: Difference) -> None:
        """Delete the rows that change and insert them again, with what the backup does not know carried over."""
        pair = difference.pair
        kept = f"lastro_kept_{pair.number}"
        assert pair.key is not None, "rows without a key are never updated"
        carried = [*pair.key.columns, *(name for name in pair.added if name not in pair.key.columns)]
        run(
            self.connection,
            f"CREATE TEMPORARY TABLE {kept} ON COMMIT DROP AS SELECT {idents(carried, of='t')} FROM {pair.table.source} AS t"
            f" JOIN {pair.diff} AS d ON {pair.same_row()} WHERE d.change = 'U'",
        )
        self._expect(
            difference,
            f"DELETE FROM {pair.table.source} AS t USING {pair.diff} AS d WHERE d.change = 'U' AND {pair.same_row()}",
            difference.change.update,
            what="delete",
        )
        names = [*pair.columns, *pair.added]
        values = ", ".join([idents(pair.columns, of="s"), *(f"o.{ident(name)}" for name in pair.added)])
        self._expect(
            difference,
            f"INSERT INTO {pair.table.quoted} ({idents(names)}) OVERRIDING SYSTEM VALUE SELECT {values}"
            f" FROM {pair.stage} AS s JOIN {kept} AS o ON {pair.on('s', 'o')}",
            difference.change.update,
            what="insert",
        )
        self.replaced.add(pair.table.oid)


def _nowhere_to_go(pair: Pair, said: str) -> SchemaMismatch:
    """No partition takes a row of the backup."""
    lost = [f"{schema}.{name} {bound}" for schema, name, bound in lost_partitions(pair.view, pair.table)]
    return SchemaMismatch(
        f"{pair.table.display}: {said}" + (f"; it has lost the partitions {', '.join(lost[:5])}" if lost else ""),
        hint="nothing was changed; create partitions that take the backup's rows (CREATE TABLE … PARTITION OF …),"
        " or restore into another schema or database",
    )


def _has_fixed_column(pair: Pair) -> bool:
    """Whether a column that is no key column takes its value from its own sequence always."""
    assert pair.key is not None, "only asked of tables with a key"
    others = [name for name in pair.columns if name not in pair.key.columns]
    return any(pair.table.column(name).identity == "a" for name in others)


def parents_first(pairs: Sequence[Pair], links: Sequence[ForeignKey]) -> list[Pair]:
    """Order tables so that what is referred to comes first; a circle is cut where it is found."""
    by_oid = {pair.table.oid: pair for pair in pairs}
    parents = {
        oid: {link.parent for link in links if link.child == oid and link.parent in by_oid and link.parent != oid}
        for oid in by_oid
    }
    ordered: list[Pair] = []
    pending = [pair.table.oid for pair in pairs]
    while pending:
        open_set = set(pending)
        ready = [oid for oid in pending if not parents[oid] & open_set] or pending[:1]
        ordered += [by_oid[oid] for oid in ready]
        pending = [oid for oid in pending if oid not in ready]
    return ordered
