"""The schema at the backup against the schema now, and what a restore in place does about each difference."""

from collections.abc import Iterator

from connectors._postgresql.connection import Connection
from connectors._postgresql.planning import Planned
from connectors._postgresql.staging import Pair, lost_partitions
from engine.plans import Drift
from engine.ports import SourceView


def find_drift(connection: Connection, view: SourceView, planned: Planned) -> list[Drift]:
    """Columns, types, keys, constraints, indexes and partitions that were added, removed or changed since the backup."""
    found = [drift for difference in planned.differences for drift in _columns(difference.pair)]
    return found


def _columns(pair: Pair) -> Iterator[Drift]:
    table = pair.table
    was = {column.name: column for column in pair.view.columns}
    for name in pair.removed:
        action = "its values are not restored; they stay in the backup"
        yield Drift(f"{table.display}.{name}", was[name].type, None, action)
    for name in pair.added:
        column = table.column(name)
        action = "kept where a row stays, its default where one comes back"
        if column.not_null and column.default is None and not column.identity:
            action = "kept where a row stays; rows that come back are refused: it must not be null and has no default"
        yield Drift(f"{table.display}.{name}", None, column.type, action)
    for name, before, now in pair.changed:
        yield Drift(f"{table.display}.{name}", before, now, "values are converted; refused where one does not fit")
    for schema, name, bound in lost_partitions(pair.view, table):
        action = "made again if it can be attached, else its rows go where the table puts them"
        yield Drift(f"{table.display}, partition {schema}.{name}", bound, None, action)
