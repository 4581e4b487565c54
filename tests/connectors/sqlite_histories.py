"""Random histories of a small SQLite application: two sides that go apart, and the model's view of both.

One file, five tables, two tenants; keys are few, so that deleted keys are given out again. References are never enforced.
"""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from connectors.sqlite import SqliteConnector
from engine.progress import NullProgress
from engine.table_runs import table_digest
from tests.connectors.row_model import Model, Row, World

SCHEMA = """
CREATE TABLE guest(id INTEGER PRIMARY KEY, tenant_id INT, email TEXT UNIQUE, name, created_at TEXT, updated_at TEXT);
CREATE TABLE booking(code TEXT PRIMARY KEY, tenant_id INT, guest INT REFERENCES guest(id), above TEXT REFERENCES booking(code),
    note, updated_at TEXT);
CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, tenant_id INT, booking TEXT REFERENCES booking(code), a, b);
CREATE TABLE tag(label TEXT PRIMARY KEY, tenant_id INT, item INT REFERENCES item(id), v) WITHOUT ROWID;
CREATE TABLE seat(code TEXT UNIQUE, tenant_id INT, id INTEGER PRIMARY KEY);
CREATE INDEX item_booking ON item(booking);
CREATE TABLE log(what);
INSERT INTO guest VALUES (0, 1, 'a@x', 'n', '2025-01-01', '2026-01-01 00:00:01'), (1, 1, 'b@x', 'n', '2025-01-01', NULL),
    (2, 2, 'c@x', 'n', '2025-01-01', '2026-01-01 00:00:01');
INSERT INTO booking VALUES ('k0', 1, 0, NULL, 'n', '2026-01-01 00:00:01'), ('k1', 1, 1, 'k0', 'n', NULL), ('k2', 2, 2, NULL, 'n', NULL);
INSERT INTO item VALUES (0, 1, 'k0', 1, 1), (1, 1, 'k1', 1, 1), (2, 2, 'k2', 1, 1);
INSERT INTO tag VALUES ('k0', 1, 0, 1), ('k1', 1, 1, 1), ('k2', 2, 2, 1);
INSERT INTO seat VALUES ('k0', 1, 0), ('k1', 1, 1), ('k2', 2, 2);
CREATE TRIGGER noted AFTER INSERT ON guest BEGIN INSERT INTO log VALUES (new.id); END;
"""
NAMELESS = SCHEMA + "ALTER TABLE tag DROP COLUMN tenant_id;"
"""The same, but tags are a tenant's only through their items."""
MODELS = (
    Model(
        "guest", ("id",), ("id", "tenant_id", "email", "name", "created_at", "updated_at"), ("email",),
        birth="created_at", clock="updated_at",
    ),
    Model(
        "booking", ("code",), ("code", "tenant_id", "guest", "above", "note", "updated_at"),
        references=(("guest", "guest"), ("above", "booking")), clock="updated_at",
    ),
    Model("item", ("id",), ("id", "tenant_id", "booking", "a", "b"), references=(("booking", "booking"),)),
    Model("tag", ("label",), ("label", "tenant_id", "item", "v"), references=(("item", "item"),)),
    Model("seat", ("id",), ("code", "tenant_id", "id"), ("code",)),
)  # fmt: skip
NAMES = tuple(each.name for each in MODELS)

_small = st.integers(0, 3)
_clock = st.sampled_from([None, "2026-01-01 00:00:01", "2026-01-01 00:00:02", "2026-01-01 00:00:03"])
_birth = st.sampled_from([None, "2025-01-01", "2025-01-02"])
_cell = st.sampled_from([None, 0, 1, 1.5, "x", "tab\t", b"\0\xff"])
_code = st.sampled_from(["k0", "k1", "k2", "k3"])


def _row(name: str, tenant: int) -> st.SearchStrategy[tuple[Any, ...]]:
    own = st.just(tenant)
    mail = st.sampled_from([None, "a@x", "b@x", "c@x", "d@x"])
    rows = {
        "guest": st.tuples(_small, own, mail, _cell, _birth, _clock),
        "booking": st.tuples(_code, own, st.none() | _small, st.none() | _code, _cell, _clock),
        "item": st.tuples(_small, own, st.none() | _code, _cell, _cell),
        "tag": st.tuples(_code, own, st.none() | _small, _cell),
        "seat": st.tuples(st.none() | _code, own, _small),
    }
    return rows[name]


def operations(tenants: Sequence[int], count: int) -> st.SearchStrategy[list[tuple[str, str, tuple[Any, ...]]]]:
    """What one side does: rows that are made, changed wholly or in their last two columns, or deleted."""
    one = st.sampled_from(NAMES).flatmap(
        lambda name: st.sampled_from(tenants).flatmap(
            lambda tenant: st.tuples(
                st.sampled_from(["put", "change", "touch", "touch", "delete", "delete"]),
                st.just(name),
                _row(name, tenant),
            )
        )
    )
    return st.lists(one, max_size=count)


def operate(path: Path, done: Sequence[tuple[str, str, tuple[Any, ...]]]) -> None:
    """Do it; a row that names its tenant never passes to the other."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        for what, name, row in done:
            model = next(each for each in MODELS if each.name == name)
            known = {each[1] for each in db.execute(f"PRAGMA table_info({name})")}
            values = {each: value for each, value in zip(model.columns, row, strict=True) if each in known}
            (key,) = model.key
            own = {each: value for each, value in values.items() if each in (key, "tenant_id")}
            where, named = " AND ".join(f"{each} = ?" for each in own), tuple(own.values())
            if what == "put":
                places = ",".join("?" * len(values))
                db.execute(f"INSERT OR IGNORE INTO {name} ({','.join(values)}) VALUES ({places})", (*values.values(),))
            elif what == "delete":
                db.execute(f"DELETE FROM {name} WHERE {where}", named)
            else:
                columns = [each for each in values if each not in own]
                columns = columns[-2:] if what == "touch" else columns
                pairs = ", ".join(f"{each} = ?" for each in columns)
                changed = (*(values[each] for each in columns), *named)
                db.execute(f"UPDATE OR IGNORE {name} SET {pairs} WHERE {where}", changed)
        db.execute("COMMIT")


def world(path: Path, tenant: int | None, *, others: bool = False) -> World:
    """The rows of a tenant, or all but its."""
    found: World = {}
    with closing(sqlite3.connect(path)) as db:
        for model in MODELS:
            condition = "1" if tenant is None else f"tenant_id {'<>' if others else '='} {tenant}"
            rows = db.execute(f"SELECT {', '.join(model.columns)} FROM {model.name} WHERE {condition}").fetchall()
            named: list[Row] = [dict(zip(model.columns, map(_exact, row), strict=True)) for row in rows]
            found[model.name] = {tuple(row[each] for each in model.key): row for row in named}
    return found


def _exact(value: Any) -> Any:
    """1 and 1.0 are different values to SQLite."""
    return ("real", value) if isinstance(value, float) else value


def empty() -> World:
    return {name: {} for name in NAMES}


# ---------------------------------------------------------------- a backup and an image in memory


class MemoryTable:
    """engine.ports.TableView with its lines as they were read."""

    def __init__(self, part: Any) -> None:
        self.name, self.module, self.columns, self.key, self.facts = (
            part.name, part.module, part.columns, part.key, part.facts,
        )  # fmt: skip
        self.lines = [line.partition(b"\t")[2] for batch in part.rows() for line in batch]
        self.sha256, self.row_count, self.byte_count = table_digest([self.lines], self.key)

    def rows(self) -> Iterator[list[bytes]]:
        for first in range(0, len(self.lines), 3):
            yield self.lines[first : first + 3]


class MemoryView:
    """engine.ports.SourceView of a connector's source as it is now."""

    name, kind, category, trees = "main", "sqlite", "database", ()

    def __init__(self, connector: SqliteConnector) -> None:
        with connector.open(NullProgress()) as reader:
            self.tables = tuple(MemoryTable(part) for part in reader.tables())
            self.documents = {part.name: part for part in reader.documents()}
            self.position, self.facts = reader.position, reader.facts


class MemoryImage:
    """engine.ports.ImageSink and ImageView at once."""

    def __init__(self) -> None:
        self.stored: list[tuple[Mapping[str, Any], list[bytes]]] = []

    def table(self, header: Mapping[str, Any]) -> None:
        self.stored.append((header, []))

    def rows(self, lines: Sequence[bytes]) -> None:
        self.stored[-1][1].extend(lines)

    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        for header, lines in self.stored:
            yield header, iter([lines[:2], lines[2:]] if lines else [])


class Playground:
    """One file whose states are kept as copies."""

    def __init__(self, folder: Path, schema: str = SCHEMA) -> None:
        self.path, self._kept = folder / "app.db", folder / "kept.db"
        self._template = folder / "template.db"
        if not self._template.exists():
            with closing(sqlite3.connect(self._template)) as db:
                db.executescript(schema)
                db.execute("PRAGMA journal_mode = WAL")

    def reset(self) -> None:
        shutil.copy(self._template, self.path)

    def keep(self) -> None:
        shutil.copy(self.path, self._kept)

    def back(self) -> None:
        shutil.copy(self._kept, self.path)
