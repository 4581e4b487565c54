"""What became of one backup's content in another's: rows, files, schema, without restoring either."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from audit.services import record
from core.errors import NotFound
from engine.errors import UsageError
from engine.ports import SourceView, TableView
from engine.table_diff import RowChange, TableDiff, row_fields
from engine.tree_diff import TreeChange, tree_diff
from engine.tree_format import show_path
from engine.tree_view import TreeView
from tenants import reading, wiring
from tenants.models import Backup

Shown = Callable[[bytes], str | None]
SAMPLES = 20
VALUE_CHARS = 200
SCHEMA_LINES_MAX = 400
SCHEMA_BYTES_MAX = 1 << 20
"""Longer texts are not compared by lines: the comparison's time can grow with the square of their length."""


def backups_compare(
    old: Backup, new: Backup, *, actor: str, source: str = "", samples: int = SAMPLES
) -> dict[str, Any]:
    """Compare two backups of one tenant; counts of everything, samples of rows and paths, the schema's text by lines.

    Raises UsageError for backups of two tenants, NotFound for a source that neither holds, DamageError.
    """
    if old.tenant_id != new.tenant_id:
        raise UsageError(f"{old.pk} and {new.pk} are backups of two tenants", hint="compare two of one tenant")
    with reading.backups_open(old.tenant, [old, new]) as repository:
        before, after = reading.views_of(repository, old), reading.views_of(repository, new)
        names = sorted({*before, *after})
        if source and source not in names:
            raise NotFound(f"neither backup holds source {source[:60]!r}", hint=f"they hold: {', '.join(names)}")
        found = [_source(name, before.get(name), after.get(name), samples) for name in names if source in ("", name)]
    record(
        "backup.compared",
        message=f"{old.pk} with {new.pk} of {old.tenant.slug}",
        actor=actor,
        tenant=old.tenant.slug,
        data={"from": old.pk, "to": new.pk, "source": source},
    )
    return {"from": old.pk, "to": new.pk, "tenant": old.tenant.slug, "sources": found}


def _source(name: str, old: SourceView | None, new: SourceView | None, samples: int) -> dict[str, Any]:
    here = new or old
    assert here is not None, "a name comes from one of the two"
    change = "added" if old is None else "removed" if new is None else "compared"
    return {
        "source": name,
        "kind": here.kind,
        "change": change,
        "tables": list(_tables(old, new, samples)),
        "files": _files(old, new, samples),
        "schema": list(_documents(old, new)) if change == "compared" else [],
    }


# ---------------------------------------------------------------- tables


def _tables(old: SourceView | None, new: SourceView | None, samples: int) -> Iterator[dict[str, Any]]:
    here = new or old
    assert here is not None, "one of the two is there"
    show = wiring.connector_kind(here.kind).field_shown
    before = {view.name: view for view in old.tables} if old else {}
    after = {view.name: view for view in new.tables} if new else {}
    for name in sorted({*before, *after}):
        mine, its = before.get(name), after.get(name)
        if mine is None or its is None:
            yield _one_sided(name, mine, its)
        else:
            yield _both(mine, its, samples, show)


def _one_sided(name: str, old: TableView | None, new: TableView | None) -> dict[str, Any]:
    counts = {"insert": new.row_count if new else 0, "update": 0, "delete": old.row_count if old else 0, "unchanged": 0}
    return {
        "name": name,
        "change": "added" if new else "removed",
        **counts,
        "columns": [],
        "obstacle": "",
        "samples": [],
    }


def _both(old: TableView, new: TableView, samples: int, show: Shown) -> dict[str, Any]:
    diff = TableDiff(old, new)
    counts: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for each in diff.rows():
        counts[each.change] += 1
        if len(shown) < samples:
            shown.append(_row(each, diff, show))
    return {
        "name": new.name,
        "change": "changed" if counts or diff.columns or diff.obstacle else "same",
        "insert": counts["insert"],
        "update": counts["update"],
        "delete": counts["delete"],
        "unchanged": old.row_count - counts["update"] - counts["delete"],
        "columns": [{"name": each.name, "before": each.before, "after": each.after} for each in diff.columns],
        "obstacle": diff.obstacle,
        "samples": shown,
    }


def _row(change: RowChange, diff: TableDiff, show: Shown) -> dict[str, Any]:
    sides = ((change.before, diff.old), (change.after, diff.new))
    before, after = (
        None if row is None else _cut(row_fields(row, view.columns, view.key, show)) for row, view in sides
    )
    return {"change": change.change, "before": before, "after": after, "fields": list(change.fields)}


def _cut(fields: Mapping[str, str | None]) -> dict[str, str | None]:
    return {
        name: value if value is None or len(value) <= VALUE_CHARS else f"{value[:VALUE_CHARS]}…"
        for name, value in fields.items()
    }


# ---------------------------------------------------------------- files


def _files(old: SourceView | None, new: SourceView | None, samples: int) -> dict[str, Any] | None:
    mine, its = _tree(old), _tree(new)
    if mine is None and its is None:
        return None
    if mine is None or its is None:
        counts = {"added": its.file_count if its else 0, "removed": mine.file_count if mine else 0, "changed": 0}
        return {**counts, "samples": []}
    found: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for each in tree_diff(mine, its):
        found[each.change] += 1
        if len(shown) < samples:
            shown.append(_path(each))
    return {"added": found["added"], "removed": found["removed"], "changed": found["changed"], "samples": shown}


def _tree(view: SourceView | None) -> TreeView | None:
    return next((tree for tree in view.trees if isinstance(tree, TreeView)), None) if view else None


def _path(change: TreeChange) -> dict[str, Any]:
    return {
        "change": change.change,
        "path": show_path(change.path),
        "size_before": change.before.stat.size if change.before else None,
        "size_after": change.after.stat.size if change.after else None,
        "aspects": list(change.aspects),
    }


# ---------------------------------------------------------------- schema


def _documents(old: SourceView | None, new: SourceView | None) -> Iterator[dict[str, Any]]:
    before = dict(old.documents) if old else {}
    after = dict(new.documents) if new else {}
    for name in sorted({*before, *after}):
        mine = before[name].read() if name in before else b""
        its = after[name].read() if name in after else b""
        if mine != its:
            yield {"name": name, "lines": _lines(name, mine, its)}


def _lines(name: str, old: bytes, new: bytes) -> list[str]:
    """A unified diff, cut; of very long texts only that they differ."""
    if max(len(old), len(new)) > SCHEMA_BYTES_MAX:
        return [f"{name} differs, and is too long to be compared by lines"]
    mine, its = (text.decode("utf-8", "backslashreplace").splitlines() for text in (old, new))
    lines = list(difflib.unified_diff(mine, its, "before", "after", lineterm="", n=2))
    return (
        lines
        if len(lines) <= SCHEMA_LINES_MAX
        else [*lines[:SCHEMA_LINES_MAX], f"… {len(lines) - SCHEMA_LINES_MAX} more"]
    )
