"""What the root key seals in the catalogue, so that a rotation finds all of it.

An app names its columns in a module `sealed_columns`; nothing else may be sealed by the root key. A test rotates and then
looks for the old key's id in every column of the catalogue.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import models, transaction
from django.utils.module_loading import autodiscover_modules

from engine.errors import LastroError
from engine.faults import kill_point

if TYPE_CHECKING:
    from engine.keys import RootKey

BATCH_ROWS = 200
FAILURES_MAX = 100


@dataclass(frozen=True)
class SealedColumn:
    """One column that holds what the root key sealed."""

    label: str
    """What it is, in the plural: `settings of sources`."""
    model: str
    column: str
    rewrap: "Callable[[RootKey, Any], Any]"
    """Gives the column's new value for a row, the same one when nothing in it needs another key."""
    needs: tuple[str, ...] = ()
    """More columns of the row that `rewrap` looks at; the others may be large and are not read."""
    after: Callable[[Any], None] = field(default=lambda row: None)
    """Called in the same transaction with each row that was changed."""


_columns: list[SealedColumn] = []


def register(column: SealedColumn) -> None:
    """Name a column that the root key seals."""
    _columns.append(column)


def sealed_columns() -> tuple[SealedColumn, ...]:
    """Every column that was named, by any app."""
    autodiscover_modules("sealed_columns")
    return tuple(_columns)


def settings_rewrap(owner: str, column: str = "sealed") -> "Callable[[RootKey, Any], Any]":
    """Rewrap a JSON column of base64 texts: the context of each is owner, id and the keys that lead to it."""

    def rewrap(root: "RootKey", row: Any) -> Any:
        return _tree_rewrapped(root, getattr(row, column), f"{owner}:{row.pk}")

    return rewrap


def _tree_rewrapped(root: "RootKey", value: Any, context: str) -> Any:
    from engine.keys import sealed_by

    if isinstance(value, Mapping):
        return {key: _tree_rewrapped(root, each, f"{context}:{key}") for key, each in value.items()}
    blob = base64.b64decode(value)
    if sealed_by(blob) == root.key_id:
        return value
    return base64.b64encode(root.seal(root.open(blob, context), context)).decode()


@dataclass
class Rewrapped:
    """What a pass over one column did."""

    rows: int = 0
    changed: int = 0
    failures: list[str] = field(default_factory=list)


def column_rewrap(column: SealedColumn, root: "RootKey", *, check: Callable[[], None]) -> Iterator[Rewrapped]:
    """Seal anew, in batches that each commit, whatever another key than `root` has sealed; yields after each batch.

    A value that neither key opens is reported and left as it is. Bounded memory; killed at any point, a second pass
    does the rest.
    """
    model = apps.get_model(column.model)
    rows = model._base_manager.order_by("pk")
    last: Any = None
    while True:
        check()
        done = Rewrapped()
        with transaction.atomic():
            page = rows.filter(pk__gt=last) if last is not None else rows
            batch = list(page.only("pk", column.column, *column.needs).select_for_update()[:BATCH_ROWS])
            for row in batch:
                _row_rewrap(column, root, row, done)
            kill_point("key.batch_rewrapped")
        if not batch:
            return
        last, done.rows = batch[-1].pk, len(batch)
        kill_point("key.batch_committed")
        yield done


def _row_rewrap(column: SealedColumn, root: "RootKey", row: models.Model, done: Rewrapped) -> None:
    try:
        value = column.rewrap(root, row)
    except (LastroError, ValueError, TypeError) as error:
        said = error.message if isinstance(error, LastroError) else str(error)
        if len(done.failures) < FAILURES_MAX:
            done.failures.append(f"{column.label} of {row.pk}: {said}")
        return
    if value == getattr(row, column.column):
        return
    type(row)._base_manager.filter(pk=row.pk).update(**{column.column: value})
    column.after(row)
    done.changed += 1
