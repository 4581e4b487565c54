"""Look into a backup without restoring it: list a folder, fetch one file, page through a table."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from engine.errors import NameUnknown, ObjectDamaged, UsageError
from engine.ports import Buffer, TableView
from engine.table_diff import copy_shown, row_fields
from engine.tree_format import Leaf, LeafRef, show_path, sort_key
from engine.tree_sum import BLOCK_BYTES, add_blocks
from engine.tree_view import Entry, TreeView

CLOSE_NAMES_MAX = 3
NAMES_LOOKED_AT_MAX = 10_000
PAGE_ROWS_MAX = 10_000


class Output(Protocol):
    def write(self, data: Buffer, /) -> object:
        """Take the next bytes of a file."""
        ...


# ---------------------------------------------------------------- files


def folder_list(view: TreeView, folder: bytes = b"", *, after: bytes = b"") -> Iterator[Entry]:
    """Stream what lies directly in a folder, in the order of names; `after` goes on behind a name.

    Reads the leaves in which its entries lie and none of those in between. Raises UsageError when there is no such
    folder.
    """
    entry = require_entry(view, folder)
    if entry.row.stat[1] & 0xF0 != 0x40:
        raise UsageError(f"{show_path(folder)} is no folder", hint="fetch it as a file")
    prefix = folder + b"/" if folder else b""
    cursor = _Cursor(view)
    key = sort_key(prefix + after) + b"\1" if after else sort_key(prefix) + (b"" if folder else b"\1")
    while True:
        found = cursor.seek(key)
        if found is None or not found.path.startswith(prefix):
            return
        yield found
        # What lies below an entry follows it at once: go on behind the last that could.
        key = sort_key(found.path) + b"\1"


class _Cursor:
    """Finds the first entry at or behind a sort key; keys must ascend."""

    def __init__(self, view: TreeView) -> None:
        self._view = view
        self._refs = view.refs()
        self._ref: LeafRef | None = next(self._refs, None)
        self._next: LeafRef | None = next(self._refs, None)
        self._leaf: Leaf | None = None
        self._keys: list[bytes] = []

    def seek(self, key: bytes) -> Entry | None:
        while self._ref is not None:
            if self._next is not None and sort_key(self._next.first) <= key:
                self._forward()
                continue
            if self._leaf is None:
                self._leaf = self._view.leaf(self._ref)
                self._keys = [sort_key(path) for path in self._leaf.paths]
            at = bisect_left(self._keys, key)
            if at < len(self._keys):
                return Entry(self._leaf.row(at))
            self._forward()
        return None

    def _forward(self) -> None:
        self._ref, self._next, self._leaf = self._next, next(self._refs, None), None


def require_entry(view: TreeView, path: bytes) -> Entry:
    """The entry at a path. Raises NameUnknown, naming what is close to it."""
    entry = view.find(path)
    if entry is not None:
        return entry
    folder, _, name = path.rpartition(b"/")
    hint = "list its folder to see what is there"
    above = view.find(folder)
    if above is not None and above.row.stat[1] & 0xF0 == 0x40:
        names = []
        for each in folder_list(view, folder):
            names.append(show_path(each.path.rpartition(b"/")[2]))
            if len(names) >= NAMES_LOOKED_AT_MAX:
                break
        close = get_close_matches(show_path(name), names, CLOSE_NAMES_MAX)
        hint = f"near it: {', '.join(close)}" if close else hint
    raise NameUnknown(f"the backup has no {show_path(path)!r}", hint=hint)


def file_fetch(view: TreeView, path: bytes, output: Output) -> Entry:
    """Write one file's content to the output, holes as zeros; what it is.

    Raises UsageError for what is no file there, DamageError when the content is not what was backed up, after what
    was readable of it was written.
    """
    entry = require_entry(view, path)
    if not entry.is_file:
        raise UsageError(f"{show_path(path)} is no file", hint="a folder can be listed, a link points elsewhere")
    digest = _Sum(entry)
    for piece in view.read(entry):
        digest.update(piece)
        output.write(piece)
    if digest.done() != entry.row.sum:
        raise ObjectDamaged(f"{show_path(path)} is not what was backed up", hint="verify the backup deeply")
    return entry


class _Sum:
    """A file's sum (engine.tree_sum) from its whole content."""

    def __init__(self, entry: Entry) -> None:
        self._digest = hashlib.sha256()
        self._as_blocks = entry.extra.get("sum") == "blocks"
        self._size = self._taken = 0
        self._held = b""

    def update(self, piece: Buffer) -> None:
        self._size += len(piece)
        if not self._as_blocks:
            self._digest.update(piece)
            return
        data = self._held + bytes(piece)
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
        add_blocks(self._digest, memoryview(data)[:whole], self._taken)
        self._taken += whole
        self._held = data[whole:]

    def done(self) -> bytes:
        if self._as_blocks:
            add_blocks(self._digest, self._held, self._taken)
            self._digest.update(self._size.to_bytes(8, "little"))
        return self._digest.digest()


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class RowPage:
    """Some rows of a table in key order, by column name, None for null."""

    rows: tuple[dict[str, str | None], ...]
    last: str | None
    """Give it as `after` for the next page; None when this is the last one."""


class PagedTable(TableView, Protocol):
    """A stored table, from which single pages can be read."""

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        """At most `limit` row lines behind a key."""
        ...


def row_page(
    view: PagedTable,
    *,
    after: str | None = None,
    limit: int = 100,
    shown: Callable[[bytes], str | None] = copy_shown,
) -> RowPage:
    """At most `limit` rows behind the key `after` (RowPage.last of the page before; from the first when None).

    Raises UsageError for a key that cannot be one of this table's.
    """
    if not 0 < limit <= PAGE_ROWS_MAX:
        raise UsageError(f"{limit} rows a page", hint=f"from 1 to {PAGE_ROWS_MAX}")
    key = None if after is None else after.encode("utf-8", "surrogateescape")
    try:
        lines = view.rows_after(key, limit=limit)
    except (ValueError, IndexError) as error:
        raise UsageError(f"{after!r} is no key of {view.name}", hint="give what the page before said") from error
    more = len(lines) == limit
    last = view.key.text(lines[-1]).decode("utf-8", "surrogateescape") if more else None
    return RowPage(tuple(row_fields(line, view.columns, view.key, shown) for line in lines), last)
