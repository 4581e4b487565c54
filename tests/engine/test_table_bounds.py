"""What long chains of small changes cost to store and to read; what damaged or lying input ends in."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.errors import ChunkMissing, ObjectDamaged, SourceChanged, SourceError
from engine.ports import KeySpec
from engine.progress import NullProgress
from engine.repository import Repository
from engine.table_backup import backup_table
from engine.table_runs import merge_layout, table_digest
from engine.table_view import TableView
from tests.engine.table_sources import KEYS, MemoryChunks, MemoryPart, WidePart


def take(chunks: MemoryChunks, part: Any, parent: dict[str, Any] | None = None, *, full: bool = False) -> Any:
    return backup_table(chunks, part, parent=parent, reader=chunks, full=full, progress=NullProgress())


def test_two_hundred_incrementals_stay_cheap_to_store_and_to_read() -> None:
    """Goal: 0.1 % changed stores at most 2 %; after 200 of them reading costs at most 1.5 times a fresh full one.

    Method: 10,000 rows of random text, 200 incrementals of 10 rows, counted chunk bytes and calls.
    """
    part, rng = WidePart(10_000, 200), random.Random(5)
    chunks = MemoryChunks()
    node = take(chunks, part)
    full_stored = chunks.stored
    shares = []
    for _ in range(200):
        part.change(rng, 10)
        before = chunks.stored
        node = take(chunks, part, node)
        shares.append((chunks.stored - before) / full_stored)
        assert node["runs"]["deltas"] <= 8
        assert node["runs"]["delta_rows"] * 5 <= node["runs"]["base_rows"]
    assert shares[0] <= 0.02
    assert sorted(shares)[100] <= 0.02, "the middle one"
    assert sum(shares) / 200 <= 0.02, "merges and renewed bases included"
    fresh = MemoryChunks()
    fresh_node = take(fresh, part)
    assert fresh_node["sha256"] == node["sha256"]
    for store, each in ((fresh, fresh_node), (chunks, node)):
        store.count_reads()
        assert [row for batch in TableView(store, each).rows() for row in batch] == part.plain()
    assert chunks.read_bytes <= 1.5 * fresh.read_bytes
    assert chunks.read_calls <= fresh.read_calls + 2 * 8 * node["runs"]["spans"]


def test_merging_writes_each_row_few_times() -> None:
    """Goal: the layout never has more than eight deltas and grows by one. Method: 3,000 steps, counting rewrites."""
    current: list[int] = []
    rewritten = 0
    for backups in range(1, 3001):
        layout = merge_layout(backups)
        assert len(layout) <= 8
        assert sum(layout) == backups
        keep = len(layout) - 1
        assert layout[:keep] == current[:keep], "only the newest are merged"
        rewritten += layout[keep] - 1
        current = layout
    assert rewritten <= 6 * 3000


def test_read_again_the_base_is_found_in_store() -> None:
    """Goal: a full backup of unchanged content stores next to nothing. Method: no parent at all the second time."""
    part, chunks = WidePart(20_000, 200), MemoryChunks()
    first = take(chunks, part)
    before = chunks.stored
    again = take(chunks, part)
    assert again["lists"] == first["lists"]
    assert chunks.stored == before


def test_new_version_domain_stores_no_rows_anew() -> None:
    """Goal: after a fail-over the versions are new but the rows are known. Method: change the domain only."""
    part, chunks = WidePart(20_000, 400), MemoryChunks()
    first = take(chunks, part)
    before = chunks.stored
    part.version_domain = "memory:2"
    part.versions_of = [700] * part.count
    second = take(chunks, part, first)
    assert second["sha256"] == first["sha256"]
    assert chunks.stored - before <= 0.01 * before


def test_appended_rows_are_stored_once() -> None:
    """Goal: a table that only grows costs what was added. Method: add a tenth, five times."""
    part, chunks = WidePart(20_000, 200), MemoryChunks()
    node = take(chunks, part)
    for _ in range(5):
        before = chunks.stored
        part.count += 2_000
        part.versions_of += [701] * 2_000
        node = take(chunks, part, node)
        assert chunks.stored - before <= 3 * 2_000 * 220 + 2_000_000
    assert [row for batch in TableView(chunks, node).rows() for row in batch] == part.plain()


def test_bulk_update_is_read_once_more_and_kept_exactly() -> None:
    """Goal: when nearly everything changed, the table is read whole. Method: every row of 120,000 changed."""
    part, chunks = WidePart(120_000, 20), MemoryChunks()
    node = take(chunks, part)
    part.versions_of = [900] * part.count
    node = take(chunks, part, node)
    assert node["runs"]["deltas"] == 0
    assert (node["sha256"], node["rows"], node["bytes"]) == table_digest([part.plain()], part.key)


def test_rows_wider_than_a_chunk() -> None:
    """Goal: a row of any size is kept. Method: rows of 20 MiB and of 1 byte."""
    part, chunks = MemoryPart(KEYS["int"]), MemoryChunks()
    for at in range(40):
        part.set(b"%d" % at, b"w" * (20 << 20) if at in (7, 30) else b"n")
    node = take(chunks, part)
    part.set(b"7", b"small now")
    part.set(b"8", b"x" * (9 << 20))
    node = take(chunks, part, node)
    assert [row for batch in TableView(chunks, node).rows() for row in batch] == part.plain()


def test_empty_table_and_single_empty_key() -> None:
    """Goal: nothing and nearly nothing are exact. Method: no row; one row that is an empty key; none again."""
    part, chunks = MemoryPart(KeySpec(("text",))), MemoryChunks()
    empty = take(chunks, part)
    assert (empty["rows"], empty["bytes"], list(TableView(chunks, empty).rows())) == (0, 0, [])
    part.row = lambda text: text  # type: ignore[method-assign]
    part.set(b"", b"")
    one = take(chunks, part, empty)
    assert [*TableView(chunks, one).rows()] == [[b""]]
    part.content.clear()
    none = take(chunks, part, one)
    assert (none["rows"], none["sha256"], list(TableView(chunks, none).rows())) == (0, empty["sha256"], [])


@pytest.mark.parametrize("lie", ["unsorted", "double"])
def test_source_out_of_order_is_refused(lie: str) -> None:
    """Goal: rows out of order never become a backup. Method: a source that swaps or repeats a row."""
    part = MemoryPart(KEYS["int"])
    for at in range(500):
        part.set(b"%d" % at, b"v")
    lines = [line for batch in part.rows() for line in batch]
    lines[300:302] = [lines[301], lines[300]] if lie == "unsorted" else [lines[300], lines[300]]
    part.rows = lambda: iter([lines])  # type: ignore[method-assign]
    with pytest.raises(SourceError):
        take(MemoryChunks(), part)


def test_rows_that_are_not_those_listed_are_refused() -> None:
    """Goal: a source that moves under the read is never mixed. Method: rows_for gives newer versions, or none."""
    part, chunks = MemoryPart(KEYS["int"]), MemoryChunks()
    for at in range(500):
        part.set(b"%d" % at, b"v")
    node = take(chunks, part)
    part.set(b"77", b"changed")
    honest = part.rows_for

    def newer(keys: Any) -> Iterator[list[bytes]]:
        part.set(keys[0], b"even newer")
        return honest(keys)

    for lie in (newer, lambda keys: iter([])):
        part.rows_for = lie  # type: ignore[assignment]
        with pytest.raises(SourceChanged):
            take(chunks, part, node)


def test_damage_is_found_by_every_reader() -> None:
    """Goal: exact rows or a typed error. Method: lose each chunk in turn, then read."""
    part, chunks = MemoryPart(KEYS["int"]), MemoryChunks()
    for at in range(2_000):
        part.set(b"%d" % at, b"v%d" % at)
    node = take(chunks, part)
    part.set(b"1000", b"changed")
    node = take(chunks, part, node)

    def read() -> list[bytes]:
        return [row for batch in TableView(chunks, node).rows() for row in batch]

    def compare() -> list[bytes]:
        again = take(chunks, part, node)
        return part.plain() if again["sha256"] == node["sha256"] else []

    for chunk, data in list(chunks.chunks.items()):
        for reader in (read, compare):
            for damage in (None, data[:-1], data + b"\n1"):
                if damage is None:
                    del chunks.chunks[chunk]
                else:
                    chunks.chunks[chunk] = damage
                _exact_or_refused(reader, part.plain())
                chunks.chunks[chunk] = data


def _exact_or_refused(reader: Callable[[], list[bytes]], expected: list[bytes]) -> None:
    try:
        found = reader()
    except (ChunkMissing, ObjectDamaged):
        return
    assert len(found) == len(expected)


def test_table_in_a_real_repository(repository: Repository) -> None:
    """Goal: the same through sessions, packs and encryption. Method: full, two incrementals, all read back."""
    part, rng = WidePart(30_000, 150), random.Random(3)
    kept: list[tuple[Any, list[bytes]]] = []
    node = None
    stored = []
    for _ in range(3):
        domain = repository.domain(encrypted=True)
        session = domain.session()
        node = backup_table(session, part, parent=node, reader=domain.reader(), full=False, progress=NullProgress())
        session.finish()
        stored.append(session.stored_bytes)
        kept.append((node, part.plain()))
        part.change(rng, 30)
    for each, expected in kept:
        view = TableView(repository.domain(encrypted=True).reader(), each)
        assert [row for batch in view.rows() for row in batch] == expected
    assert stored[1] <= 0.02 * stored[0] or stored[1] < 60_000
