"""What follows the rows of a restore: sequences, which only move forward, and materialized views."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psycopg

from connectors._postgresql.connection import Connection, clean_message, rows, run, value
from connectors._postgresql.quoting import ident, literal

NEXTVAL_STEPS_MAX = 200_000


def advance_past_rows(
    connection: Connection, restored: str, sequence: Mapping[str, Any], *, at_most: int | None = None
) -> None:
    """Move the sequence of a column to the highest value that the column holds in `restored` (a FROM item), but not beyond `at_most`."""
    highest = value(connection, f"SELECT max({ident(sequence['column'])})::int8 FROM {restored}")
    if highest is not None:
        wanted = highest if at_most is None else min(highest, at_most)
        advance(connection, sequence["schema"], sequence["name"], wanted)


def advance_all(connection: Connection, stored: Iterable[Mapping[str, Any]]) -> None:
    """Move sequences to where they stood at the backup, those that are still there."""
    for sequence in stored:
        name = literal(ident(sequence["schema"], sequence["name"]))
        there = value(connection, f"SELECT EXISTS (SELECT FROM pg_sequence WHERE seqrelid = to_regclass({name}))")
        if there and sequence["last_value"] is not None:
            called = bool(sequence.get("is_called", True))
            advance(connection, sequence["schema"], sequence["name"], int(sequence["last_value"]), called=called)


def advance(connection: Connection, schema: str, sequence: str, wanted: int, *, called: bool = True) -> None:
    """Make sure that a sequence has given `wanted`, or gives it next unless `called`; it never moves backwards."""
    quoted = ident(schema, sequence)
    name = f"{literal(quoted)}::regclass"
    # pg_sequence_last_value is null for a sequence that was set ahead and not drawn from yet; its relation tells.
    following, step, maximum = rows(
        connection,
        f"SELECT last_value::numeric + CASE WHEN is_called THEN seqincrement ELSE 0 END, seqincrement, seqmax"
        f" FROM {quoted}, pg_sequence WHERE seqrelid = {name}",
    )[0]
    wanted -= 0 if called else int(step)
    if step < 0 or wanted > maximum or following > wanted:
        return
    steps = (wanted - int(following)) // step + 1
    if steps <= NEXTVAL_STEPS_MAX:
        # Unlike setval, this cannot undo what a concurrent session has drawn in between.
        run(connection, f"SELECT max(nextval({name})) FROM generate_series(1, {steps})")
    else:
        run(connection, f"SELECT setval({name}, greatest({wanted}, last_value)) FROM {quoted}")


def refresh_views(connection: Connection, views: Iterable[tuple[str, str]], warn: Callable[[str], None]) -> None:
    """Fill materialized views again inside the caller's transaction, those that read others in the order of their making."""
    for schema, name in views:
        quoted = ident(schema, name)
        if not value(connection, f"SELECT to_regclass({literal(quoted)}) IS NOT NULL"):
            continue
        run(connection, "SAVEPOINT lastro_view")
        try:
            run(connection, f"REFRESH MATERIALIZED VIEW {quoted}")
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            run(connection, "ROLLBACK TO SAVEPOINT lastro_view")
            warn(f"materialized view {schema}.{name} is not refreshed: {clean_message(error)}")
        run(connection, "RELEASE SAVEPOINT lastro_view")
