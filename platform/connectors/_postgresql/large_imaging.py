"""Large objects in a change image: how each was, how it became, and the pages of those whose content changed.

A section `objects` with a line each, then a section `pages` with what was there (docs/formats/change-image.md). What they
became is kept as a mark alone: an undo needs no more to know whether somebody changed them since.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from connectors._postgresql.connection import Connection, run, value
from connectors._postgresql.large_objects import (
    ATTRIBUTES,
    MODULE,
    PAGES,
    copy_lines_in,
    finish_tables,
    make_tables,
    require_reading,
)
from connectors._postgresql.part import read_lines
from engine.ports import ImageSink

OBJECTS_SECTION, PAGES_SECTION = "objects", "pages"
SECTIONS = (OBJECTS_SECTION, PAGES_SECTION)
"""Values of a header's `rows` that are not rows of a table."""

_CHANGED = "p.change IN ('I', 'U', 'D')"
_OBJECTS = (
    "SELECT p.loid, p.content, p.before, m.attributes, p.before_mark, CASE WHEN p.change = 'D' THEN '' ELSE p.after_mark END"
    f" FROM lastro_large_plan AS p LEFT JOIN ({ATTRIBUTES}) AS m ON m.loid = p.loid WHERE {_CHANGED} ORDER BY p.loid"
)
_OLD_PAGES = "SELECT loid, pageno, data FROM lastro_large_old ORDER BY loid, pageno"
_OBJECT_COLUMNS = {
    "loid": "oid", "content": "boolean", "before": "jsonb", "after": "jsonb", "before_mark": "text", "after_mark": "text",
}  # fmt: skip


def write_large_image(connection: Connection, source: Mapping[str, Any], sink: ImageSink) -> None:
    """Write both sections; inside the transaction that has applied the change."""
    sink.table(_header(OBJECTS_SECTION, _OBJECT_COLUMNS, source))
    _write(connection, _OBJECTS, sink)
    sink.table(_header(PAGES_SECTION, {column.name: column.type for column in PAGES.columns}, source))
    _write(connection, _OLD_PAGES, sink)


def _write(connection: Connection, query: str, sink: ImageSink) -> None:
    with contextlib.closing(read_lines(connection, query)) as batches:
        for lines in batches:
            sink.rows(lines)


def _header(rows_of: str, columns: Mapping[str, str], source: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "name": MODULE,
        "module": MODULE,
        "schema": PAGES.schema,
        "table": PAGES.name,
        "columns": list(columns),
        "types": list(columns.values()),
        "key": list(columns)[: 1 if rows_of == OBJECTS_SECTION else 2],
        "rows": rows_of,
        "source": source,
    }


class LargeStage:
    """Takes the sections of an image and stages what they want; `finish` once after the last."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begun = False

    def take(self, header: Mapping[str, Any], lines: Iterable[list[bytes]]) -> None:
        """Stage a section."""
        if not self._begun:
            require_reading(self._connection)
            make_tables(self._connection)
            columns = ", ".join(f"{name} {kind}" for name, kind in _OBJECT_COLUMNS.items())
            run(self._connection, f"CREATE TEMPORARY TABLE lastro_large_image ({columns}) ON COMMIT DROP")
            self._begun = True
        table = "lastro_large_image" if header["rows"] == OBJECTS_SECTION else "lastro_pages"
        copy_lines_in(self._connection, table, lines)

    def finish(self) -> bool:
        """Make the staging tables ready; False when the image holds no large object."""
        if not self._begun or not value(self._connection, "SELECT EXISTS (SELECT FROM lastro_large_image)"):
            return False
        run(
            self._connection,
            "INSERT INTO lastro_large_want (loid, attributes, content, dressed, made, made_mark)"
            " SELECT loid, before, content, before IS DISTINCT FROM after, after, after_mark FROM lastro_large_image",
        )
        finish_tables(self._connection)
        return True
