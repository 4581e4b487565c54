"""What changed in a table between two backups: exact, in key order, and reading only what differs."""

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.browse import row_page
from engine.erasures import erase
from engine.errors import UsageError
from engine.ports import Column, KeySpec, TableView
from engine.progress import NullProgress
from engine.repository import Repository
from engine.table_backup import backup_table
from engine.table_diff import ColumnChange, RowChange, TableDiff, row_fields
from engine.table_view import TableView as StoredTable
from engine.views import source_views
from tests.engine.memory_source import MemorySource, MemoryTable, backup
from tests.engine.table_sources import KEYS, MemoryChunks, MemoryPart, WidePart
from tests.engine.test_table_histories import STEPS, History, tiny

__all__ = ["tiny"]


def _expected(old: list[bytes], new: list[bytes], key: KeySpec) -> list[tuple[str, bytes | None, bytes | None]]:
    before, after = ({key.text(row): row for row in rows} for rows in (old, new))
    found = []
    for text in sorted(before.keys() | after.keys(), key=key.encode):
        was, now = before.get(text), after.get(text)
        if was != now:
            found.append(("insert" if was is None else "delete" if now is None else "update", was, now))
    return found


def _found(old: Any, new: Any) -> list[tuple[str, bytes | None, bytes | None]]:
    return [(each.change, each.before, each.after) for each in TableDiff(old, new).rows()]


@pytest.mark.usefixtures("tiny")
@given(kind=st.sampled_from(sorted(KEYS)), versioned=st.booleans(), seed=st.integers(0, 1 << 30), steps=STEPS)
@settings(max_examples=80)
def test_any_two_backups_of_a_history(kind: str, versioned: bool, seed: int, steps: Any) -> None:
    """Goal: the difference of any two backups, forwards and backwards, is that of their rows; random histories."""
    history = History(kind, seed, versioned=versioned)
    history.step("insert", seed % 300)
    history.backup(full=False)
    for action, amount, back_up, full in steps:
        history.step(action, amount)
        if back_up:
            history.backup(full=full)
    pairs = [*pairwise(history.backups), (history.backups[-1], history.backups[0])]
    for (one, rows), (other, others) in pairs:
        views = StoredTable(history.chunks, one), StoredTable(history.chunks, other)
        assert _found(*views) == _expected(rows, others, history.part.key)


def test_a_small_change_costs_little(rng: random.Random) -> None:
    """Goal: what two backups share is not read; forty rows of 200,000 change, scattered in one span."""
    part, chunks = WidePart(200_000), MemoryChunks()
    first = _stored(part, chunks, None)
    for at in rng.sample(range(90_000, 92_000), 40):
        part.versions_of[at] += 1
    second = _stored(part, chunks, first)
    chunks.count_reads()
    assert len(_found(StoredTable(chunks, first), StoredTable(chunks, second))) == 40
    assert chunks.read_bytes < first["bytes"] / 4
    chunks.count_reads()
    assert _found(StoredTable(chunks, first), StoredTable(chunks, first)) == []
    assert chunks.read_calls == 0


def _stored(part: Any, chunks: MemoryChunks, parent: dict[str, Any] | None) -> dict[str, Any]:
    return backup_table(chunks, part, parent=parent, reader=chunks, full=False, progress=NullProgress())


def _table(chunks: MemoryChunks, columns: tuple[Column, ...], key: KeySpec, rows: list[bytes]) -> StoredTable:
    part = MemoryPart(key)
    part.columns = columns
    for row in rows:
        text = key.text(row)
        part.set(text, row[len(text) + 1 :])
    return StoredTable(chunks, _stored(part, chunks, None))


def test_columns_that_differ_are_said_and_the_others_compared() -> None:
    """Goal: a schema that changed hides no change of a row and makes none up; one column gone, new, retyped."""
    chunks, key = MemoryChunks(), KEYS["int"]
    before = (Column("id", "bigint"), Column("name", "text"), Column("age", "integer"), Column("note", "text"))
    after = (Column("id", "bigint"), Column("added", "text"), Column("age", "bigint"), Column("name", "text"))
    old = _table(chunks, before, key, [b"1\tann\t7\tx", b"2\tbob\t8\ty", b"3\tcid\t9\tz"])
    new = _table(chunks, after, key, [b"1\tnew\t7\tann", b"2\tnew\t8\tBOB", b"4\tnew\t1\tdan"])
    diff = TableDiff(old, new)
    assert diff.columns == (
        ColumnChange("added", None, "text"), ColumnChange("age", "integer", "bigint"), ColumnChange("note", "text", None),
    )  # fmt: skip
    assert [(each.change, each.key, each.fields) for each in diff.rows()] == [
        ("update", b"2", ("name",)), ("delete", b"3", ()), ("insert", b"4", ()),
    ]  # fmt: skip


def test_other_keys_are_an_obstacle() -> None:
    """Goal: rows that cannot be told apart are not compared by guess, and why is said; name and kind of the key."""
    chunks = MemoryChunks()
    columns = (Column("id", "bigint"), Column("name", "text"))
    old = _table(chunks, columns, KEYS["int"], [b"1\ta"])
    named = _table(chunks, (Column("code", "bigint"), Column("name", "text")), KEYS["int"], [b"1\ta"])
    kind = _table(chunks, columns, KEYS["text"], [b"1\ta"])
    assert TableDiff(old, named).obstacle == "the key was (id) and is (code)"
    assert "kind (int) and is of kind (text)" in TableDiff(old, kind).obstacle
    assert list(TableDiff(old, named).rows()) == list(TableDiff(old, kind).rows()) == []
    assert TableDiff(old, old).obstacle == ""


def test_fields_and_escapes() -> None:
    """Goal: people see the columns that changed and plain values; nulls, tabs, newlines."""
    chunks = MemoryChunks()
    columns = (Column("id", "bigint"), Column("a", "text"), Column("b", "text"))
    old = _table(chunks, columns, KEYS["int"], [b"1\tx\\ty\t\\N"])
    new = _table(chunks, columns, KEYS["int"], [b"1\tx\\ty\tl\\nm"])
    (change,) = TableDiff(old, new).rows()
    assert change == RowChange("update", b"1", b"1\tx\\ty\t\\N", b"1\tx\\ty\tl\\nm", ("b",))
    assert change.before is not None
    assert change.after is not None
    assert row_fields(change.before, columns, old.key) == {"id": "1", "a": "x\ty", "b": None}
    assert row_fields(change.after, columns, old.key) == {"id": "1", "a": "x\ty", "b": "l\nm"}


def test_erased_rows_are_on_neither_side(repository: Repository) -> None:
    """Goal: a difference shows nobody who was erased; a row that changed and one that did not."""
    table = MemoryTable("guests", {n: f"guest {n}" for n in range(500)})
    source = MemorySource([table])
    first = backup(repository, source, 1)
    for number in (3, 4, 400):
        table.set(number, "changed")
    second = backup(repository, source, 2, parent=first)

    def views() -> list[TableView]:
        return [source_views(repository, manifest)["main"].tables[0] for manifest in (first, second)]

    old, new = views()
    changed = [each.key for each in TableDiff(old, new).rows()]
    assert len(changed) == 3
    erase(repository, [("main", old.name, changed[1]), ("main", old.name, old.key.text(next(old.rows())[0]))])
    assert [each.key for each in TableDiff(*views()).rows()] == [changed[0], changed[2]]


def test_pages_of_a_table() -> None:
    """Goal: page by page every row once; the last page says so; a key that cannot be one is refused."""
    chunks = MemoryChunks()
    columns = (Column("id", "bigint"), Column("name", "text"))
    view = _table(chunks, columns, KEYS["int"], [b"%d\tn%d" % (n, n) for n in range(-3, 10)])
    seen, after = [], None
    while True:
        page = row_page(view, after=after, limit=4)
        seen += [row["id"] for row in page.rows]
        after = page.last
        if after is None:
            break
    assert seen == [str(n) for n in range(-3, 10)]
    for wrong in ({"after": "x"}, {"limit": 0}, {"limit": 10**6}):
        with pytest.raises(UsageError):
            row_page(view, **wrong)  # type: ignore[arg-type]
