"""Change images of PostgreSQL: the changed rows as they were and as they became (docs/formats/change-image.md)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection
from connectors._postgresql.difference import Difference
from connectors._postgresql.large_comparing import LargeChange
from connectors._postgresql.large_imaging import write_large_image
from connectors._postgresql.part import read_lines
from connectors._postgresql.quoting import idents
from connectors._postgresql.staging import Pair, bare_lines
from engine.ports import ImageSink

SOURCE_SETTINGS = ("layout", "schema", "tenant_column", "tenant_value")
"""Settings by which an undo knows that it goes back where the image came from."""

Rows = Literal["before", "after"]


def write_image(
    connection: Connection,
    config: PostgresqlConfig,
    differences: Sequence[Difference],
    large: LargeChange | None,
    sink: ImageSink,
) -> None:
    """Write every changed row, parents first, and the large objects; inside the transaction that has applied the differences."""
    for difference in differences:
        pair = difference.pair
        if pair.straight and not pair.added and difference.any:
            # The table was read back and has the backup's digest: these are its rows.
            sink.table(_header(config, pair, "after", columns=[column.name for column in pair.view.columns]))
            for lines in bare_lines(pair.view):
                sink.rows(lines)
            continue
        for rows_of, query in _sections(difference):
            sink.table(_header(config, pair, rows_of, columns=pair.plain))
            with contextlib.closing(read_lines(connection, query)) as batches:
                for lines in batches:
                    sink.rows(lines)
    if large is not None and large.mark:
        write_large_image(connection, _source(config), sink)


def _sections(difference: Difference) -> Iterator[tuple[Rows, str]]:
    pair, change = difference.pair, difference.change
    if change.update or change.delete:
        yield "before", f"SELECT {idents(pair.plain)} FROM {pair.before}"
    if not (change.insert or change.update):
        return
    if pair.straight:
        yield (
            "after",
            f"{pair.scope.with_clause}SELECT {idents(pair.plain, of='t')} FROM {pair.table.source} AS t{pair.scope.where}",
        )
        return
    if pair.key is None:
        source = pair.made if pair.plain else f"(SELECT FROM {pair.diff} WHERE change = 'I') AS made"
        yield "after", f"SELECT {idents(pair.plain)} FROM {source}"
        return
    # The checks have compared what was written with what was staged, which lies together.
    source = f"{pair.table.source} AS t" if pair.added else f"{pair.stage} AS t"
    changed = f"{source} JOIN {pair.diff} AS d ON {pair.on_diff('t')} WHERE d.change IN ('I', 'U')"
    yield "after", f"SELECT {idents(pair.plain, of='t')} FROM {changed}"


def _header(config: PostgresqlConfig, pair: Pair, rows_of: Rows, *, columns: Sequence[str]) -> Mapping[str, Any]:
    table = pair.table
    return {
        "name": table.display,
        "module": pair.view.module,
        "schema": table.schema,
        "table": table.name,
        "columns": list(columns),
        "types": [table.column(name).type for name in columns],
        "key": list(pair.key.columns) if pair.key is not None else [],
        "rows": rows_of,
        "source": _source(config),
    }


def _source(config: PostgresqlConfig) -> Mapping[str, Any]:
    return {name: getattr(config, name) for name in SOURCE_SETTINGS}
