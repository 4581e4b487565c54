"""A look into one backup: its sources, a folder, a file, a table, each without restoring the rest."""

import contextlib
import csv
import datetime
import difflib
import errno
import io
import os
import stat as statmod
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from audit.services import record
from core.errors import NotFound
from engine.browse import PagedTable, file_fetch, folder_list, require_entry, row_page
from engine.errors import TargetDenied, TargetError, TargetFull, TargetOccupied, UsageError
from engine.ports import SourceView, TableView
from engine.table_diff import row_fields
from engine.tree_format import show_path
from engine.tree_view import Entry, TreeView
from tenants import reading, wiring
from tenants.models import Backup

Shown = Callable[[bytes], str | None]
ENTRIES_MAX = 1_000
_TYPES = {
    statmod.S_IFDIR: "folder", statmod.S_IFREG: "file", statmod.S_IFLNK: "link",
    statmod.S_IFIFO: "fifo", statmod.S_IFCHR: "device", statmod.S_IFBLK: "device",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def backup_browse(
    backup: Backup,
    what: str = "",
    *,
    actor: str,
    source: str = "",
    after: str | None = None,
    limit: int = 100,
    output: Path | None = None,
) -> dict[str, Any]:
    """Show a backup's sources (`what` empty), a folder, a file's data, or a page of a table's rows.

    `output` fetches the file or the whole table into a new file: a table as CSV when its name ends in .csv, else
    as the backup keeps it (PostgreSQL: COPY's text), which is exact. Raises NotFound and UsageError with close names, TargetOccupied for an output that
    exists, DamageError.
    """
    with reading.backups_open(backup.tenant, [backup]) as repository:
        views = reading.views_of(repository, backup)
        if source and source not in views:
            raise NotFound(
                f"backup {backup.pk} holds no source {source[:60]!r}", hint=f"it holds: {', '.join(sorted(views))}"
            )
        chosen = {name: view for name, view in sorted(views.items()) if source in ("", name)}
        if not what and (not source or not _tree(chosen[source])):
            if output is not None:
                raise UsageError("what is to be fetched?", hint="name a table or a path of the backup")
            return {"backup": backup.pk, "sources": [_contents(view) for view in chosen.values()]}
        found = _look(chosen, what, after=after, limit=limit, output=output)
    record(
        "backup.browsed",
        message=f"{found['source']} of {backup.pk}" + (" was fetched from" if output else ""),
        actor=actor,
        tenant=backup.tenant.slug,
        data={"backup": backup.pk, "source": found["source"], "what": what[:500], "fetched": output is not None},
    )
    return {"backup": backup.pk, **found}


def _contents(view: SourceView) -> dict[str, Any]:
    return {
        "source": view.name,
        "kind": view.kind,
        "files": sum(tree.file_count for tree in view.trees),
        "tables": [
            {"name": table.name, "module": table.module, "rows": table.row_count, "bytes": table.byte_count}
            for table in view.tables
        ],
    }


def _look(
    views: dict[str, SourceView], what: str, *, after: str | None, limit: int, output: Path | None
) -> dict[str, Any]:
    tables = [(name, table) for name, view in views.items() for table in view.tables if _is(table, what)]
    trees = [(name, tree) for name, view in views.items() if (tree := _tree(view)) is not None]
    if len(tables) == 1:
        name, table = tables[0]
        show = wiring.connector_kind(views[name].kind).field_shown
        return {
            "source": name,
            "table": table.name,
            **_table(table, after=after, limit=limit, output=output, show=show),
        }
    if len(tables) > 1 or (len(trees) > 1 and not tables):
        several = sorted({name for name, _ in tables or trees})
        raise UsageError(f"{what[:200]!r} could be in {' or '.join(several)}", hint=f"say which: --source {several[0]}")
    if not trees:
        known = [table.name for view in views.values() for table in view.tables]
        close = difflib.get_close_matches(what, known, n=3, cutoff=0.5)
        raise NotFound(
            f"the backup has no table {what[:60]!r}",
            hint=f"did you mean {', '.join(close)}?" if close else f"it has: {', '.join(known[:20]) or 'none'}",
        )
    name, tree = trees[0]
    path = _path_of(what)
    return {"source": name, "path": show_path(path), **_place(tree, path, after=after, limit=limit, output=output)}


def _is(table: TableView, what: str) -> bool:
    return bool(what) and what in (table.name, table.name.rpartition(".")[2])


def _tree(view: SourceView) -> TreeView | None:
    return next((tree for tree in view.trees if isinstance(tree, TreeView)), None)


def _path_of(text: str) -> bytes:
    """The path as stored, from the form in which `show_path` prints it."""
    try:
        raw = (
            text.strip("/").encode().decode("unicode_escape").encode("latin-1")
            if "\\" in text
            else text.strip("/").encode()
        )
    except (UnicodeError, ValueError):
        raise UsageError(f"{text[:60]!r} is no path", hint="write it as backup browse prints it") from None
    return b"" if raw == b"." else raw


# ---------------------------------------------------------------- files


def _place(tree: TreeView, path: bytes, *, after: str | None, limit: int, output: Path | None) -> dict[str, Any]:
    entry = require_entry(tree, path)
    if entry.kind == statmod.S_IFDIR:
        if output is not None:
            raise UsageError(f"{show_path(path) or 'that'} is a folder", hint="fetch a file, or restore its module")
        return _folder(tree, path, _path_of(after) if after else b"", min(limit, ENTRIES_MAX))
    about = _entry(entry)
    if output is not None:
        with _new_file(output) as handle:
            file_fetch(tree, path, handle)
        os.utime(output, ns=(entry.mtime_ns, entry.mtime_ns))
        about["output"] = str(output)
    return about


def _folder(tree: TreeView, path: bytes, after: bytes, limit: int) -> dict[str, Any]:
    entries: list[Entry] = []
    for entry in folder_list(tree, path, after=after):
        if len(entries) == limit:
            break
        entries.append(entry)
    else:
        return {"type": "folder", "entries": [_entry(each) for each in entries], "next": None}
    last = show_path(entries[-1].path.rpartition(b"/")[2])
    return {"type": "folder", "entries": [_entry(each) for each in entries], "next": last}


def _entry(entry: Entry) -> dict[str, Any]:
    modified = datetime.datetime.fromtimestamp(entry.mtime_ns / 1e9, datetime.UTC)
    return {
        "name": show_path(entry.path.rpartition(b"/")[2]),
        "type": _TYPES.get(entry.kind, "other"),
        "size": entry.stat.size if entry.is_file else None,
        "mode": f"{statmod.S_IMODE(entry.stat.mode):04o}",
        "modified": modified.isoformat(timespec="seconds").replace("+00:00", "Z"),
        **({"target": show_path(entry.target)} if entry.kind == statmod.S_IFLNK else {}),
    }


# ---------------------------------------------------------------- tables


def _table(table: TableView, *, after: str | None, limit: int, output: Path | None, show: Shown) -> dict[str, Any]:
    columns = [{"name": column.name, "type": column.type} for column in table.columns]
    if output is None:
        paged: PagedTable = table
        page = row_page(paged, after=after, limit=limit, shown=show)
        return {"columns": columns, "rows": list(page.rows), "next": page.last, "total": table.row_count}
    form = "csv" if output.suffix.lower() == ".csv" else "copy"
    with _new_file(output) as handle:
        count = _as_csv(table, handle, show) if form == "csv" else _as_copy(table, handle)
    return {"columns": columns, "output": str(output), "format": form, "rows_written": count}


def _as_copy(table: TableView, out: BinaryIO) -> int:
    """COPY's text in the order of `columns`; keys that were made up for a table without one are left out."""
    count, made_up = 0, table.key.synthetic
    for rows in table.rows():
        count += len(rows)
        lines = [row.split(b"\t", made_up)[made_up] for row in rows] if made_up else rows
        out.write(b"\n".join(lines) + b"\n")
    return count


def _as_csv(table: TableView, out: BinaryIO, show: Shown) -> int:
    """For people and their spreadsheets: a cell that one would run as a formula gets an apostrophe, null is empty."""
    text = io.TextIOWrapper(out, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow([_safe(column.name) for column in table.columns])
    count = 0
    for rows in table.rows():
        count += len(rows)
        writer.writerows(
            [_safe(value) for value in row_fields(row, table.columns, table.key, show).values()] for row in rows
        )
    text.flush()
    text.detach()
    return count


def _safe(value: str | None) -> str:
    if value is None:
        return ""
    risky = value.startswith(_FORMULA) and not value.lstrip("+-").replace(".", "", 1).isdigit()
    return f"'{value}" if risky else value


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole under its name, or not at all; TargetOccupied when there is one."""
    if os.path.lexists(path):
        raise TargetOccupied(f"{path} exists", hint="name a new file")
    draft = ""
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.link(draft, path)
    except FileExistsError:
        raise TargetOccupied(f"{path} exists", hint="name a new file") from None
    except OSError as error:
        raise _target_error(error)(
            f"cannot write {path}: {error.strerror}", hint="check the folder and its disk"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            if draft:
                os.unlink(draft)


def _target_error(error: OSError) -> Callable[..., TargetError]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TargetFull
    return TargetDenied if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else TargetError
