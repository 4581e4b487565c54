"""The catalogue as files: one of JSON lines for each model, and `catalogue.json`, which says what they are.

The format is docs/formats/catalogue.md. All rows are those of one moment, and memory stays bounded.
"""

import base64
import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from django.db import connection, models, transaction
from django.db.migrations.recorder import MigrationRecorder

from audit.models import Head
from audit.services import HEAD_ID
from core import clock
from core.durable import private_folder
from core.exporting import Export, exports
from engine.progress import Progress
from tenants.models import Installation

FORMAT, FORMAT_VERSION = "lastro-catalogue", 1
OUR_APPS = ("core", "audit", "access", "operations", "tenants", "releases")
HEADER_FILE = "catalogue.json"
BATCH_ROWS = 2_000


def file_of(label: str) -> str:
    """The file of a model's rows."""
    return f"{label.lower()}.jsonl"


def software_version() -> str:
    """Of the running program; empty in a tree that was never installed."""
    try:
        return version("lastro")
    except PackageNotFoundError:
        return ""


def catalogue_write(folder: Path, installation: Installation, progress: Progress) -> dict[str, Any]:
    """Write the rows of one moment into a new folder; returns the header."""
    private_folder(folder)
    with _one_moment():
        described = []
        for each in exports(OUR_APPS):
            progress.check()
            rows = _rows_write(folder / file_of(each.label), each, progress)
            described.append(
                {
                    "model": each.label,
                    "file": file_of(each.label),
                    "fields": [column.attname for column in each.columns],
                    "without": sorted(each.without),
                    "rows": rows,
                }
            )
        header = {**_header(installation), "models": described}
    (folder / HEADER_FILE).write_text(json.dumps(header, indent=1, sort_keys=True))
    return header


def _header(installation: Installation) -> dict[str, Any]:
    head = Head.objects.filter(pk=HEAD_ID).first()
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "software": software_version(),
        "installation_id": installation.pk,
        "repository_id": installation.repository_id,
        "generation": installation.generation,
        "taken_at": clock.now().isoformat(),
        "audit": {"size": head.size if head else 0, "root_hash": head.root_hash if head else ""},
        "migrations": sorted(f"{app}.{name}" for app, name in MigrationRecorder(connection).applied_migrations()),
    }


@contextmanager
def _one_moment() -> Iterator[None]:
    """A snapshot that keeps nobody waiting: writers go on beside it."""
    assert not connection.in_atomic_block, "a snapshot begins its own transaction"
    if connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
        return
    # Django begins transactions on SQLite as writers (databases.py); a reader's sees one moment of the WAL and blocks nobody.
    with connection.cursor() as cursor:
        cursor.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")


def _rows_write(path: Path, export: Export, progress: Progress) -> int:
    columns = export.columns
    kinds = [_writer(column) for column in columns]
    rows = export.model._base_manager.order_by("pk").values_list(*(column.attname for column in columns))
    count = 0
    with open(path, "xb") as file:
        for row in rows.iterator(chunk_size=BATCH_ROWS):
            values = [None if value is None else kind(value) for kind, value in zip(kinds, row, strict=True)]
            file.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
            count += 1
            if not count % BATCH_ROWS:
                progress.check()
                progress.advance(items=BATCH_ROWS)
    return count


def _writer(column: "models.Field[Any, Any]") -> Any:
    """What turns a value of the column into JSON."""
    if isinstance(column, models.ForeignKey):
        return _writer(column.target_field)
    for kind, writer in _WRITERS:
        if isinstance(column, kind):
            return writer
    return str


def _same(value: Any) -> Any:
    return value


def _instant(value: datetime.datetime) -> str:
    return value.astimezone(datetime.UTC).isoformat()


_WRITERS: tuple[tuple[Any, Any], ...] = (
    (models.BinaryField, lambda value: base64.b64encode(bytes(value)).decode()),
    (models.DateTimeField, _instant),
    ((models.JSONField, models.BooleanField, models.IntegerField, models.FloatField), _same),
)
"""BigAutoField and the positive fields are IntegerFields; what is none of these is text."""
