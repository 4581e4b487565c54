"""The audit log as JSON, NDJSON or CSV, streamed."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from audit.canonical import entry_fields
from audit.models import Entry
from audit.reading import stored_entries
from audit.selectors import Filter, entries
from audit.services import head_get

FORMATS = ("json", "ndjson", "csv")
CSV_COLUMNS = (
    "id", "sequence", "timestamp", "type", "level", "message", "user_id", "tenant", "data", "origin", "leaf_hash",
    "root_hash",
)  # fmt: skip

# What a spreadsheet takes for the start of a formula (OWASP, "CSV Injection"), wide forms included, at the start
# of a text or behind a separator, quotes and blanks between them or not.
_FORMULA = re.compile(r"""((?:^|[,;\t\r\n])[\s"]*)(?=[=+\-@＝＋－＠])""")


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry's fields with its hashes."""
    return {**entry_fields(entry), "leaf_hash": entry.leaf_hash, "root_hash": entry.root_hash}


Row = Entry | Mapping[str, Any]
"""An entry, or what `entry_json` gives for it."""


def export(entries: Iterable[Row], *, format: str) -> Iterator[str]:
    """Give the export in pieces; `format` is one of FORMATS."""
    rows = (entry_json(each) if isinstance(each, Entry) else each for each in entries)
    return {"json": _as_json, "ndjson": _as_ndjson, "csv": _as_csv}[format](rows)


def log_rows(wanted: Filter) -> Iterator[Row]:
    """What is to be exported, oldest first; the whole log without the price of rows as objects."""
    head = head_get()
    if wanted != Filter() or head is None:
        yield from entries(wanted)
        return
    for fields, leaf, root in stored_entries(head.first, head.size):
        yield {**fields, "leaf_hash": leaf, "root_hash": root}


def _as_json(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    separator = '{"data": [\n'
    for row in rows:
        yield separator + json.dumps(row)
        separator = ",\n"
    yield ('{"data": [' if separator.startswith("{") else "\n") + "]}\n"


def _as_ndjson(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row) + "\n"


def _as_csv(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for fields in rows:
        writer.writerow([csv_cell(fields.get(column, {})) for column in CSV_COLUMNS])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def csv_cell(value: Any) -> str:
    """The text of a cell that no spreadsheet runs: an apostrophe before a formula keeps it a text.

    Quoting is no protection from a reader that splits at every comma and line break, so a formula that stands
    after one inside a text gets the apostrophe too.
    """
    if isinstance(value, int):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return _FORMULA.sub(r"\1'", text)
