"""A selection of a backup's modules for another target: their tables, and rows of others that they refer to.

Foreign keys are read from the definitions of the backup, or from the live tables where it has none. What is wanted of
other tables is kept on disk (a temporary SQLite file), so that memory stays bounded.
"""

import contextlib
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from connectors._postgresql import large_objects
from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.definitions import POST_DATA, items
from connectors._postgresql.modules import chosen_views
from engine.plans import Dependency
from engine.ports import Column, DocumentView, KeySpec, RestoreRequest, SourceView, TableView, TreeView
from engine.table_runs import table_digest

KEYS_PER_READ = 5000
NULL = b"\\N"
Name = tuple[str, str]

_LINK = re.compile(
    r"ALTER TABLE (?:ONLY )?(?P<child>\S.*?)\s+ADD CONSTRAINT .+? FOREIGN KEY \((?P<columns>.+?)\)"
    r" REFERENCES (?P<parent>.+?)\((?P<parent_columns>.+?)\)",
    re.DOTALL,
)
_IDENT = re.compile(r'"((?:[^"]|"")*)"|([^\s".,]+)')


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key by names."""

    child: Name
    parent: Name
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]


@dataclass
class PartialTable:
    """engine.ports.TableView over the wanted rows of a table of the backup."""

    whole: TableView
    keys: Callable[[], Iterator[list[bytes]]]
    name: str
    module: str
    columns: tuple[Column, ...]
    key: KeySpec
    facts: Mapping[str, Any]
    sha256: str = ""
    row_count: int = 0
    byte_count: int = 0

    @classmethod
    def of(cls, whole: TableView, keys: Callable[[], Iterator[list[bytes]]]) -> "PartialTable":
        """Read the rows once, to know how many they are and their digest."""
        made = cls(whole, keys, whole.name, whole.module, whole.columns, whole.key, whole.facts)
        made.sha256, made.row_count, made.byte_count = table_digest(made.rows(), whole.key)
        return made

    def rows(self) -> Iterator[list[bytes]]:
        """The wanted rows in key order."""
        for keys in self.keys():
            yield from self.whole.rows_for(keys)

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Wanted rows of these keys."""
        wanted = set(keys)
        for lines in self.rows():
            yield [line for line in lines if self.key.text(line) in wanted]

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        """Some of the wanted rows behind a key."""
        after = None if key_text is None else self.key.encode(key_text)
        out: list[bytes] = []
        for lines in self.rows():
            out += [line for line in lines if after is None or self.key.encode(self.key.text(line)) > after]
            if len(out) >= limit:
                break
        return out[:limit]


@dataclass
class PartialView:
    """engine.ports.SourceView of a selection."""

    name: str
    kind: str
    category: str
    position: Mapping[str, Any]
    facts: Mapping[str, Any]
    tables: tuple[TableView, ...]
    trees: tuple[TreeView, ...]
    documents: Mapping[str, DocumentView]
    dependencies: tuple[Dependency, ...] = ()
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def selected(view: SourceView, request: RestoreRequest, live: Callable[[], Catalogue]) -> Iterator[SourceView]:
    """The view itself, or in mode selective what was selected of it, with `dependencies` and `warnings`."""
    if request.mode != "selective":
        yield view
        return
    with contextlib.closing(_Wanted()) as wanted:
        yield _Selecting(view, request, _references(view, live), wanted).run()


def _references(view: SourceView, live: Callable[[], Catalogue]) -> list[Reference]:
    if POST_DATA not in view.documents:
        catalogue = live()
        return [
            Reference(
                (catalogue.tables[link.child].schema, catalogue.tables[link.child].name),
                (catalogue.tables[link.parent].schema, catalogue.tables[link.parent].name),
                link.columns,
                link.parent_columns,
            )
            for link in catalogue.foreign_keys
            if not (link.child_part or link.parent_part or link.period)
        ]
    found = []
    for item in items(view.documents[POST_DATA].read()):
        match = _LINK.search(item.sql) if item.kind == "FK CONSTRAINT" else None
        if match is not None:
            child, parent = _idents(match["child"]), _idents(match["parent"])
            columns, others = _idents(match["columns"]), _idents(match["parent_columns"])
            found.append(Reference((child[0], child[-1]), (parent[0], parent[-1]), tuple(columns), tuple(others)))
    return found


def _idents(text: str) -> list[str]:
    return [quoted.replace('""', '"') or plain for quoted, plain in _IDENT.findall(text)]


class _Wanted:
    """Keys of rows that are wanted, by table, in key order; on disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.execute("CREATE TABLE k (t INTEGER, e BLOB, key BLOB, seen INTEGER, PRIMARY KEY (t, e)) WITHOUT ROWID")

    def add(self, table: int, keys: Iterator[tuple[bytes, bytes]]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO k VALUES (?, ?, ?, 0)", ((table, e, key) for e, key in keys))

    def fresh(self, table: int) -> list[bytes]:
        """Some keys that were not asked for yet."""
        found = self._db.execute(
            "SELECT key FROM k WHERE t = ? AND seen = 0 LIMIT ?", (table, KEYS_PER_READ)
        ).fetchall()
        return [row[0] for row in found]

    def seen(self, table: int, keys: Sequence[tuple[bytes]]) -> None:
        self._db.executemany("UPDATE k SET seen = 1 WHERE t = ? AND e = ?", ((table, e) for (e,) in keys))

    def batches(self, table: int) -> Iterator[list[bytes]]:
        """All keys in key order."""
        after = b""
        while True:
            with self._lock:
                found = self._db.execute(
                    "SELECT e, key FROM k WHERE t = ? AND e > ? ORDER BY e LIMIT ?", (table, after, KEYS_PER_READ)
                ).fetchall()
            if not found:
                return
            after = found[-1][0]
            yield [row[1] for row in found]

    def close(self) -> None:
        self._db.close()


@dataclass
class _Selecting:
    view: SourceView
    request: RestoreRequest
    references: list[Reference]
    wanted: _Wanted
    came: Counter[tuple[int, Name]] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)

    def run(self) -> PartialView:
        chosen = chosen_views(self.view, self.request)
        names = {(t.facts["schema"], t.facts["table"]): t for t in self.view.tables if t.name != large_objects.NAME}
        others = [table for name, table in names.items() if table not in chosen]
        numbers = {(t.facts["schema"], t.facts["table"]): number for number, t in enumerate(others)}
        for table in chosen:
            for lines in table.rows():
                self._note(table, lines, numbers, others)
        self._follow(numbers, others)
        tables: list[TableView] = list(chosen)
        for number, table in enumerate(others):
            if any(self.wanted.batches(number)):
                tables.append(PartialTable.of(table, partial(self.wanted.batches, number)))
        view = self.view
        documents = dict(view.documents)
        if large_objects.MODULE in self.request.modules:
            tables += [table for table in view.tables if table.name == large_objects.NAME]
        else:
            # They would be made without a page.
            documents.pop(large_objects.DOCUMENT, None)
        tables.sort(key=lambda table: table.name)
        return PartialView(
            view.name, view.kind, view.category, view.position, view.facts, tuple(tables), view.trees, documents,
            tuple(self._dependencies(others)), tuple(f"{text} ({count} rows)" for text, count in self.lacking.items()),
        )  # fmt: skip

    def _note(
        self, table: TableView, lines: list[bytes], numbers: Mapping[Name, int], others: Sequence[TableView]
    ) -> None:
        """Want what these rows refer to in other tables."""
        places = {column.name: table.key.synthetic + n for n, column in enumerate(table.columns)}
        name = (table.facts["schema"], table.facts["table"])
        for link in self.references:
            if link.child != name or link.parent not in numbers or not set(link.columns) <= set(places):
                continue
            number = numbers[link.parent]
            parent = others[number]
            key = tuple(parent.facts.get("key") or ())
            if parent.key.synthetic or set(key) != set(link.parent_columns):
                self.lacking[f"{table.name} refers to {parent.name} by another than its key: not followed"] += len(
                    lines
                )
                continue
            order = [places[link.columns[link.parent_columns.index(column)]] for column in key]
            texts = {tuple(fields[n] for n in order) for fields in (line.split(b"\t") for line in lines)}
            keys = (b"\t".join(text) for text in texts if NULL not in text)
            self.wanted.add(number, ((parent.key.encode(text), text) for text in keys))
            self.came[number, name] += 0

    def _follow(self, numbers: Mapping[Name, int], others: Sequence[TableView]) -> None:
        """Rows that come along refer to others themselves."""
        while pending := [(n, keys) for n in range(len(others)) if (keys := self.wanted.fresh(n))]:
            for number, keys in pending:
                table = others[number]
                found = 0
                for lines in table.rows_for(keys):
                    found += len(lines)
                    self._note(table, lines, numbers, others)
                if found < len(keys):
                    self.lacking[f"rows refer to rows of {table.name} that are not in the backup"] += len(keys) - found
                self.wanted.seen(number, [(table.key.encode(key),) for key in keys])

    def _dependencies(self, others: Sequence[TableView]) -> Iterator[Dependency]:
        for number, table in enumerate(others):
            children = sorted(child for n, child in self.came if n == number)
            count = sum(len(lines) for keys in self.wanted.batches(number) for lines in table.rows_for(keys))
            if count:
                yield Dependency("along", table.name, ".".join(children[0]), count, table.module)
