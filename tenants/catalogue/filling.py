"""Files become the catalogue again: read from a backup of it, checked, and put in the place of what is there."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.db import connection, models
from django.db.migrations.loader import MigrationLoader

from audit.adopting import audit_emptied
from core.exporting import Export, exports
from engine.errors import ObjectDamaged, RepositoryNewer
from engine.progress import Progress
from engine.tree_view import TreeView
from tenants.catalogue.writing import FORMAT, FORMAT_VERSION, HEADER_FILE, OUR_APPS

BATCH_ROWS = 1_000
HEADER_BYTES_MAX = 16 << 20
LINE_BYTES_MAX = 512 << 20


@dataclass
class Filled:
    """What was put into the catalogue, and what of the backup had no place in it."""

    rows: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    """Models and fields that this version does not have any more."""


class StoredCatalogue:
    """A backup of the catalogue, opened for reading."""

    def __init__(self, tree: TreeView) -> None:
        self._tree = tree
        self._entries = {entry.path.decode("utf-8", "replace"): entry for entry in tree.entries() if entry.is_file}
        self.header = self._header()

    def _header(self) -> Mapping[str, Any]:
        entry = self._entries.get(HEADER_FILE)
        if entry is None or entry.stat.size > HEADER_BYTES_MAX:
            raise ObjectDamaged("this is no backup of a catalogue", hint="catalogue list shows those of a store")
        try:
            header = json.loads(b"".join(self._tree.read(entry)))
            if header["format"] != FORMAT:
                raise ValueError
            newer = int(header["version"]) > FORMAT_VERSION
            models_named = [str(each["model"]) for each in header["models"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ObjectDamaged("the header of this backup of the catalogue is not readable") from error
        if newer:
            raise RepositoryNewer(
                f"the catalogue's format {header['version']} is not known here", hint="upgrade Lastro"
            )
        assert len(models_named) == len(header["models"])
        return dict(header)

    def lines(self, file: str) -> Iterator[list[Any]]:
        """The rows of one file, as lists of values in the order of its `fields`."""
        entry = self._entries.get(file)
        if entry is None:
            raise ObjectDamaged(f"the backup of the catalogue lacks {file}")
        held = b""
        for piece in self._tree.read(entry):
            *whole, held = (held + bytes(piece)).split(b"\n")
            for line in whole:
                yield json.loads(line)
            if len(held) > LINE_BYTES_MAX:
                raise ObjectDamaged(f"a row in {file} is longer than any row can be")
        if held:
            raise ObjectDamaged(f"{file} ends in the middle of a row")

    def refuse_newer(self) -> None:
        """Raise RepositoryNewer when it was written by a schema that this program does not know."""
        known = {f"{app}.{name}" for app, name in MigrationLoader(connection).disk_migrations}
        ours = (each for each in self.header["migrations"] if each.partition(".")[0] in OUR_APPS)
        unknown = [each for each in ours if each not in known]
        if unknown:
            raise RepositoryNewer(
                f"this backup of the catalogue was written by a newer Lastro ({self.header['software'] or unknown[0]})",
                hint="install that version, then adopt again",
            )


def catalogue_fill(stored: StoredCatalogue, progress: Progress) -> Filled:
    """Put the backup's rows in the place of all rows that such a backup holds, in the caller's transaction.

    Columns that came later get their defaults. Raises ObjectDamaged, RepositoryNewer; the audit log's tree is for the
    caller to verify.
    """
    assert connection.in_atomic_block, "all of it or nothing"
    stored.refuse_newer()
    known = {each.label: each for each in exports(OUR_APPS)}
    filled = Filled()
    with audit_emptied():
        for each in reversed(list(known.values())):
            each.model._base_manager.all()._raw_delete(connection.alias)
        for described in stored.header["models"]:
            export = known.get(described["model"])
            if export is None:
                filled.dropped.append(described["model"])
                continue
            filled.rows[export.label] = _rows_put(stored, described, export, filled, progress)
    _sequences_reset([each.model for each in known.values()])
    return filled


def _rows_put(
    stored: StoredCatalogue, described: Mapping[str, Any], export: Export, filled: Filled, progress: Progress
) -> int:
    columns = {column.attname: column for column in export.columns}
    places = [(at, columns[name]) for at, name in enumerate(described["fields"]) if name in columns]
    filled.dropped += [f"{export.label}.{name}" for name in described["fields"] if name not in columns]
    kinds = [(at, column.attname, _reader(column)) for at, column in places]
    batch: list[models.Model] = []
    count = 0
    for values in stored.lines(described["file"]):
        if len(values) != len(described["fields"]):
            raise ObjectDamaged(f"a row of {export.label} has {len(values)} values")
        row = {name: None if values[at] is None else read(values[at]) for at, name, read in kinds}
        batch.append(export.model(**row, **export.instead))
        count += 1
        if len(batch) == BATCH_ROWS:
            progress.check()
            export.model._base_manager.bulk_create(batch)
            batch = []
    export.model._base_manager.bulk_create(batch)
    if count != described["rows"]:
        raise ObjectDamaged(f"{export.label} has {count} rows, {described['rows']} were kept")
    progress.advance(items=count)
    return count


def _reader(column: "models.Field[Any, Any]") -> Any:
    """What turns JSON into a value of the column."""
    if isinstance(column, models.ForeignKey):
        return _reader(column.target_field)
    if isinstance(column, models.BinaryField):
        return base64.b64decode
    if isinstance(column, models.JSONField):
        return lambda value: value
    return column.to_python


def _sequences_reset(kinds: list[type[models.Model]]) -> None:
    """Rows came with their numbers; the next one must come behind them."""
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), kinds):
            cursor.execute(statement)


def catalogue_is_empty() -> bool:
    """Whether nothing was done here yet that an adoption would throw away."""
    return not any(apps.get_model(label)._base_manager.exists() for label in ("tenants.Tenant", "tenants.Backup"))
