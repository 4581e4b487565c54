"""Triggers that count backups and restores as they change.

In the database, because rows change in many places, many at a time, and a counter that one of them forgets is wrong for
ever. They are put in place after every migration: SQLite drops a table's triggers when it alters the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True, slots=True)
class Counted:
    """One table: which states are successes, which failures, and where the size stands."""

    subject: str
    table: str
    success: tuple[str, ...]
    failed: tuple[str, ...]
    size: str

    def values(self, row: str, sign: str = "") -> str:
        """What a row adds, as SQL."""
        good, bad = (", ".join(f"'{each}'" for each in states) for states in (self.success, self.failed))
        is_good = f"CASE WHEN {row}.state IN ({good}) THEN {{}} ELSE 0 END"
        return (
            f"{sign}1, {sign}{is_good.format(1)}, {sign}CASE WHEN {row}.state IN ({bad}) THEN 1 ELSE 0 END, "
            f"{sign}{is_good.format(f'{row}.duration_ms')}, {sign}{is_good.format(self.size.format(row=row))}"
        )


COUNTED = (
    # A backup that was ended by retention, or deleted, had succeeded.
    Counted(
        "backups", "tenants_backup", ("succeeded", "warned", "expired", "deleted"), ("failed",), "{row}.size_bytes"
    ),
    Counted("restores", "tenants_restore", ("succeeded", "undone"), ("failed",), "0"),
)
COLUMNS = "total, success, failed, duration_ms, size_bytes"
_INTO = "INSERT INTO tenants_figurechange (subject, total, success, failed, duration_ms, size_bytes)"
_EVENTS = ("insert", "delete", "update")


def install(connection: BaseDatabaseWrapper) -> None:
    """Create the triggers; those that exist are replaced."""
    drop(connection)
    with connection.cursor() as cursor:
        for each in COUNTED:
            for statement in _postgresql(each) if connection.vendor == "postgresql" else _sqlite(each):
                cursor.execute(statement)


def drop(connection: BaseDatabaseWrapper) -> None:
    """Remove them."""
    with connection.cursor() as cursor:
        for each in COUNTED:
            for event in _EVENTS:
                suffix = f" ON {each.table}" if connection.vendor == "postgresql" else ""
                cursor.execute(f"DROP TRIGGER IF EXISTS {each.table}_count_{event}{suffix}")


def installed(connection: BaseDatabaseWrapper) -> bool:
    """Whether all of them are there."""
    query = {
        "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tenants_%_count_%'",
        "postgresql": "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tenants_%_count_%'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(query.replace("%", "%%"))
        return bool(cursor.fetchone()[0] == len(COUNTED) * len(_EVENTS))


def _changes(each: Counted) -> Iterator[tuple[str, str]]:
    """What each event adds: event and statement."""
    yield "insert", f"{_INTO} VALUES ('{each.subject}', {each.values('NEW')});"
    yield "delete", f"{_INTO} VALUES ('{each.subject}', {each.values('OLD', '-')});"
    both = f"{_INTO} VALUES ('{each.subject}', {each.values('OLD', '-')}), ('{each.subject}', {each.values('NEW')});"
    yield "update", both


def _condition(each: Counted, different: str) -> str:
    columns = ["state", "duration_ms"] + (["size_bytes"] if each.size != "0" else [])
    return " OR ".join(f"OLD.{name} {different} NEW.{name}" for name in columns)


def _sqlite(each: Counted) -> Iterator[str]:
    for event, statement in _changes(each):
        when = f"WHEN {_condition(each, 'IS NOT')} " if event == "update" else ""
        yield (
            f"CREATE TRIGGER {each.table}_count_{event} AFTER {event.upper()} ON {each.table} "
            f"FOR EACH ROW {when}BEGIN {statement} END"
        )


def _postgresql(each: Counted) -> Iterator[str]:
    for event, statement in _changes(each):
        name = f"{each.table}_count_{event}"
        yield (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {statement} RETURN NULL; END $$"
        )
        when = f"WHEN ({_condition(each, 'IS DISTINCT FROM')}) " if event == "update" else ""
        yield (
            f"CREATE TRIGGER {name} AFTER {event.upper()} ON {each.table} FOR EACH ROW {when}EXECUTE FUNCTION {name}()"
        )
