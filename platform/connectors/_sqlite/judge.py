"""What a mode does about a row that differs, looking at that row alone.

Rows are compared field by field as text, which is exact because a field tells its storage class.
"""

import datetime
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from connectors._sqlite.catalog import Table, quote
from connectors._sqlite.changes import COLLIDES, CONFLICT_DONE, DONE, Verdict, kept
from connectors._sqlite.lines import field_of, value_of
from connectors._sqlite.windows import DELETE, INSERT, Change
from engine.plans import BIRTH_COLUMNS, CLOCK_COLUMNS, Policy

TAB = b"\t"
COMPARABLE_COLUMNS_MIN = 3
CLOCK_VALUES_MAX = 100
"""So many values of a column are looked at before it is no clock."""
NULL = b"\\N"
Judge = Callable[[Change], Verdict]
ONLY_TENANT, DELETED, CHANGED, UNSELECTED = map(kept, "tdcu")
_BY_POLICY = {"only_missing": "o", "newest_wins": "n", "take_backup": "b"}


def full(_: Change) -> Verdict:
    return DONE


def unselected(_: Change) -> Verdict:
    return UNSELECTED


def clock_column(table: Table, columns: Sequence[str]) -> str | None:
    """The first of CLOCK_COLUMNS that the table has."""
    names = {each.lower(): each for each in columns}
    return next((names[name] for name in CLOCK_COLUMNS if name in names and table.column(name)), None)


def is_clock(connection: sqlite3.Connection, table: Table, column: str) -> bool:
    """Whether any of some values of the column is a time or a number; SQLite's types do not tell. True without a value."""
    name = quote(column)
    rows = connection.execute(
        f"SELECT {name} FROM main.{quote(table.name)} WHERE {name} IS NOT NULL LIMIT {CLOCK_VALUES_MAX}"
    ).fetchall()
    return not rows or any(instant(field_of(value)) is not None for (value,) in rows)


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row line mean what, as places in the line."""

    births: tuple[int, ...]
    uniques: tuple[tuple[int, ...], ...]
    comparable: tuple[int, ...]
    clock: int | None

    @classmethod
    def of(
        cls, table: Table, columns: Sequence[str], *, keys: int, synthetic: int, clock: str | None, ignored: str
    ) -> "Fields":
        """`columns` are those of a line behind `synthetic` fields; the first `keys` of them are the key."""
        places = {name.lower(): synthetic + at for at, name in enumerate(columns)}
        key = {name.lower() for name in columns[:keys]}
        others = [
            tuple(places[name.lower()] for name in index.columns)
            for index in table.uniques
            if {name.lower() for name in index.columns} != key
            and {name.lower() for name in index.columns} <= set(places)
        ]
        births = tuple(places[name] for name in BIRTH_COLUMNS if name in places and name not in key)
        comparable = tuple(at for name, at in places.items() if name not in key and name != ignored.lower())
        return cls(births, tuple(others), comparable, places.get((clock or "").lower()))

    def strangers(self, one: bytes, other: bytes) -> bool:
        """Whether two rows of the same key are different things: ADR 7, "Collisions"."""
        a, b = one.split(TAB), other.split(TAB)

        def known_to_differ(at: int) -> bool:
            return a[at] != b[at] and NULL not in (a[at], b[at])

        if any(map(known_to_differ, self.births)):
            return True
        if any(NULL not in (a[at], b[at]) for at in self.births):
            return False
        if self.uniques:
            return all(any(map(known_to_differ, unique)) for unique in self.uniques)
        if self.births or len(self.comparable) < COMPARABLE_COLUMNS_MIN:
            return False
        return all(a[at] != b[at] for at in self.comparable)

    def later(self, before: bytes, after: bytes) -> bool:
        """Whether the backup's row is newer by the clock; False when that cannot be told."""
        if self.clock is None:
            return False
        a, b = before.split(TAB, self.clock + 1)[self.clock], after.split(TAB, self.clock + 1)[self.clock]
        if a == b:
            return False
        one, other = instant(a), instant(b)
        if one is None or other is None or one[0] != other[0]:
            return False
        return other[1] > one[1]


def instant(field: bytes) -> tuple[str, float] | None:
    """A time on its own scale: numbers as they are, ISO 8601 text as seconds, UTC where it names no zone (as SQLite)."""
    value = value_of(field)
    if isinstance(value, (int, float)):
        return "number", value
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return "text", (moment - _EPOCH) / _MICROSECOND


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Merge:
    """engine.plans.Policy, as a judge."""

    fields: Fields
    policy: Policy

    def _backup_wins(self, change: Change) -> bool:
        """Where both sides hold the key with different content."""
        return self.policy == "take_backup" or (
            self.policy == "newest_wins" and self.fields.later(change.before, change.after)
        )

    def _kept(self, *, conflict: bool = False) -> Verdict:
        return kept(_BY_POLICY[self.policy], conflict=conflict)

    def two_way(self, change: Change) -> Verdict:
        """Without a base."""
        if change.op == INSERT:
            return DONE
        if change.op == DELETE:
            return ONLY_TENANT
        if self.fields.strangers(change.before, change.after):
            return COLLIDES
        return DONE if self._backup_wins(change) else self._kept()

    def three_way(self, change: Change) -> Verdict:
        """With a base: what one side alone did is that side's."""
        if change.op == INSERT:
            return self._only_backup(change)
        if change.op == DELETE:
            return self._only_target(change)
        base = change.base
        if self.fields.strangers(change.before, change.after):
            return COLLIDES
        if base is not None and base != change.before and self.fields.strangers(base, change.before):
            return COLLIDES
        if base in (change.before, change.after):
            return DONE if base == change.before else CHANGED
        return CONFLICT_DONE if self._backup_wins(change) else self._kept(conflict=True)

    def _only_backup(self, change: Change) -> Verdict:
        """The target lacks the row: never had it, deleted it, or deleted what the backup's side changed."""
        if change.base is None:
            return DONE
        if change.base == change.after:
            return DELETED
        # Under every policy a changed row outlives a deletion, and a key given out again is a row of its own.
        return DONE if self.fields.strangers(change.base, change.after) else CONFLICT_DONE

    def _only_target(self, change: Change) -> Verdict:
        """The backup lacks the row: never had it, deleted it, or deleted what the target changed."""
        if change.base is None:
            return ONLY_TENANT
        if change.base == change.before:
            return DONE
        if self.fields.strangers(change.base, change.before):
            return ONLY_TENANT
        return CONFLICT_DONE if self.policy == "take_backup" else self._kept(conflict=True)


def merge(fields: Fields, policy: Policy, *, based: bool) -> Judge:
    """The judge of a merge; `based` for a three-way merge."""
    found = Merge(fields, policy)
    return found.three_way if based else found.two_way
