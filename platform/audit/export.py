"""The audit log as JSON, NDJSON or CSV, streamed."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from audit.canonical import entry_fields
from audit.models import Entry

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


def export(entries: Iterable[Entry], *, format: str) -> Iterator[str]:
    """Give the export in pieces; `format` is one of FORMATS."""
    return {"json": _as_json, "ndjson": _as_ndjson, "csv": _as_csv}[format](entries)


def _as_json(entries: Iterable[Entry]) -> Iterator[str]:
    separator = '{"data": [\n'
    for entry in entries:
        yield separator + json.dumps(entry_json(entry))
        separator = ",\n"
    yield ('{"data": [' if separator.startswith("{") else "\n") + "]}\n"


def _as_ndjson(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        yield json.dumps(entry_json(entry)) + "\n"


def _as_csv(entries: Iterable[Entry]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for entry in entries:
        fields = entry_json(entry)
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
