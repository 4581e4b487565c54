"""Values of columns whose types changed since the backup: converted where nothing is lost, refused where it is.

COPY into a narrower type would round numbers and drop times of day without a word.
"""

from collections.abc import Sequence

import psycopg

from connectors._postgresql.connection import Connection, clean_message, run, value
from connectors._postgresql.quoting import ident
from engine.errors import SchemaMismatch

Change = tuple[str, str, str]
"""(column, type at the backup, type now)"""


def convert(
    connection: Connection, display: str, changes: Sequence[Change], names: Sequence[str], *, loaded: str, into: str
) -> None:
    """Create `into` from `loaded`, whose changed columns hold the backup's text. SchemaMismatch for a value that does not fit."""
    by_name = {name: (was, now) for name, was, now in changes}
    chosen = ", ".join(
        f"{_converted(name, *by_name[name])} AS {ident(name)}" if name in by_name else f"t.{ident(name)}"
        for name in names
    )
    try:
        run(connection, f"CREATE TEMPORARY TABLE {into} ON COMMIT DROP AS SELECT {chosen} FROM {loaded} AS t")
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if isinstance(error, psycopg.IntegrityError) and not refuses_value(error):
            raise
        raise _mismatch(f"{display}: {clean_message(error)}") from None
    for name, was, now in changes:
        lost = _count_lost(connection, loaded, name, was, now)
        if lost:
            raise _mismatch(f"{display}: {lost} values of {name} do not fit from {was} into {now}")
    run(connection, f"DROP TABLE {loaded}")


def _converted(name: str, was: str, now: str) -> str:
    """The text of the backup in the type of today; char(n) sheds its blanks as it does in any other conversion."""
    text = f"t.{ident(name)}"
    return f"CAST({f'rtrim({text})' if was.startswith('character(') else text} AS {now})"


def _count_lost(connection: Connection, loaded: str, name: str, was: str, now: str) -> int:
    """Count values that are not the backup's when they are converted back."""
    if now == "jsonb" and was in ("json", "text"):
        return 0  # The same document: jsonb never keeps how it was written.
    text = f"t.{ident(name)}"
    printed = f"concat({_converted(name, was, now)})"
    different = f"{text} IS NOT NULL AND {printed} <> {text}"
    count = f"SELECT count(*) FROM {loaded} AS t WHERE {different}"
    run(connection, "SAVEPOINT lastro_convert")
    try:
        found = value(
            connection, f"{count} AND CASE WHEN {different} THEN concat(CAST({printed} AS {was})) <> {text} END"
        )
    except (psycopg.DataError, psycopg.errors.UndefinedObject, psycopg.errors.InvalidSchemaName):
        # Not readable as the old type, or that type is gone: only the very same text is the same value.
        run(connection, "ROLLBACK TO SAVEPOINT lastro_convert")
        found = value(connection, count)
    run(connection, "RELEASE SAVEPOINT lastro_convert")
    return int(found)


def refuses_value(error: psycopg.IntegrityError) -> bool:
    """Whether a domain refuses the value, and not a constraint of a table the row."""
    return bool(error.diag.datatype_name)


def _mismatch(message: str) -> SchemaMismatch:
    return SchemaMismatch(
        message, hint="a column's type changed since the backup; restore into another schema and convert there"
    )
