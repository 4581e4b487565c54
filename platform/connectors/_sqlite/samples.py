"""Rows that a preview shows, the more telling first."""

from collections.abc import Mapping, Sequence
from typing import Any

from connectors._sqlite.changes import KEPT_REASONS, TableChanges
from connectors._sqlite.lines import RawText, tuples_of
from engine.plans import SAMPLE_VALUE_CHARACTERS, RowSample, SampleChange

_CLASSES: tuple[tuple[SampleChange, str], ...] = (
    ("conflict", "conflict = 1"),
    ("collision", "conflict = 0 AND why = 'collision'"),
    ("delete", "conflict = 0 AND act = 1 AND op = 1"),
    ("update", "conflict = 0 AND act = 1 AND op = 2"),
    ("insert", "conflict = 0 AND act = 1 AND op = 0"),
    ("withheld", "conflict = 0 AND why = 'withheld'"),
    ("stays", "conflict = 0 AND why = 'stays'"),
    ("kept", "conflict = 0 AND why = 'kept'"),
)


def samples_of(changes: TableChanges, count: int) -> tuple[RowSample, ...]:
    """At most `count` rows."""
    found: list[RowSample] = []
    for change, condition in _CLASSES:
        if len(found) >= count:
            break
        rows = changes.connection.execute(
            f"SELECT act, why, other, reason, handle, before, op, {', '.join([*changes.values, 'along'])} FROM {changes.temp} "
            f"WHERE {condition} ORDER BY id LIMIT ?",
            (count - len(found),),
        ).fetchall()
        found += [_sample(changes, change, row) for row in rows]
    return tuple(found)


def text_of(value: Any) -> str | None:
    """A value as SQLite prints it, cut."""
    if value is None:
        return None
    if isinstance(value, bytearray):
        value = value[: 4 * SAMPLE_VALUE_CHARACTERS].decode(errors="replace")
    elif isinstance(value, bytes):
        return f"x'{value[:SAMPLE_VALUE_CHARACTERS].hex()}"[: SAMPLE_VALUE_CHARACTERS - 1] + "'"
    return str(value)[:SAMPLE_VALUE_CHARACTERS]


def _sample(changes: TableChanges, change: SampleChange, row: Sequence[Any]) -> RowSample:
    act, why, other, reason, handle, line, op, *values, along = row
    backup = dict(zip(changes.columns, values, strict=True)) if op != 1 else None
    target = None if line is None else _target(changes, line)
    shown = backup if target is None else target
    keys: dict[str, str | None] = {name: text_of((shown or {}).get(name)) for name in changes.keys}
    if not keys and handle is not None:
        keys = {"rowid": str(handle)}
    fields: tuple[str, ...] = ()
    if backup is not None and target is not None:
        fields = tuple(name for name, value in backup.items() if not _same(value, target.get(name)))
    return RowSample(change, keys, _texts(target), _texts(backup), fields, _because(act, why, other, along, reason))


def _target(changes: TableChanges, line: bytes) -> dict[str, Any]:
    return dict(zip(changes.stored, values_of(line), strict=True))


def values_of(line: bytes) -> list[Any]:
    """Values of a line, text as bytearray as a connection gives it."""
    return [
        bytearray(value.encode() if isinstance(value, str) else value) if isinstance(value, str | RawText) else value
        for value in tuples_of([line])[0]
    ]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def _texts(row: Mapping[str, Any] | None) -> dict[str, str | None] | None:
    return None if row is None else {name: text_of(value) for name, value in row.items()}


def _because(act: int, why: Any, other: Any, along: int, reason: Any) -> str:
    name = "" if other is None else other.decode()
    if along:
        return f"comes along: {name} refers to it"
    left = "" if why is None else why.decode()
    if left == "withheld":
        return f"what it refers to in {name} does not come back"
    if left == "stays":
        return f"{name} refers to it"
    if left == "collision":
        return "its key or a unique value of it belongs to another row now"
    if act:
        return ""
    return "left as it is" if reason is None else KEPT_REASONS[reason.decode()]
