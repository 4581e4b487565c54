"""The erasure ledger: what was erased comes back from no backup, and a ledger that is not whole stops every restore."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from engine import erasures
from engine.erasures import ErasureLedger, LedgeredImage, copy_field, erase, erasure_subject
from engine.errors import ManifestDamaged, UsageError
from engine.ports import TableView
from engine.repository import Repository
from engine.views import source_views
from tests.engine.memory_source import MemorySource, MemoryTable, backup


@pytest.fixture
def source() -> MemorySource:
    tables = [MemoryTable(name, {n: f"{name} {n}" for n in range(-5, 900)}) for name in ("guests", "rooms")]
    return MemorySource(tables)


def _table(repository: Repository, manifest: Any, name: str, **more: int) -> TableView:
    views = source_views(repository, manifest, **more)["main"].tables
    return next(view for view in views if view.name == name)


def _rows(view: TableView) -> list[bytes]:
    return [row for batch in view.rows() for row in batch]


def test_an_erased_row_is_in_no_view_of_any_backup(repository: Repository, source: MemorySource) -> None:
    """Goal: erased rows are gone from older and newer backups in every way of reading."""
    manifest = backup(repository, source, 1)
    name = source.tables()[0].name
    before = _table(repository, manifest, name)
    rows = _rows(before)
    gone = [before.key.text(row) for row in (rows[0], rows[-1])]
    erase(repository, [("main", name, key) for key in gone])

    after = _table(repository, manifest, name)
    left = [row for row in rows if before.key.text(row) not in gone]
    assert _rows(after) == left
    assert (after.row_count, after.sha256) == (len(left), "")
    assert after.byte_count == sum(map(len, left)) + len(left)
    assert [row for batch in after.rows_for(gone) for row in batch] == []
    paged: list[bytes] = []
    while page := after.rows_after(after.key.text(paged[-1]) if paged else None, limit=1):
        paged += page
    assert paged == left
    later = backup(repository, source, 2, parent=manifest)
    assert _rows(_table(repository, later, name)) == left


def test_other_tables_and_sources_keep_their_rows(repository: Repository, source: MemorySource) -> None:
    """Goal: an erasure reaches one table of one source; erase the same key elsewhere."""
    manifest = backup(repository, source, 1)
    first = source.tables()[0].name
    key = _table(repository, manifest, first).key.text(_rows(_table(repository, manifest, first))[0])
    erase(repository, [("elsewhere", first, key), ("main", "no such table", key)])
    for part in source.tables():
        assert _table(repository, manifest, part.name).sha256 != ""
        assert _rows(_table(repository, manifest, part.name)) == part.plain()


def test_the_ledger_names_nobody_and_survives_many_records(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: hashes only, and no record is lost behind checkpoints."""
    monkeypatch.setattr(erasures, "CHECKPOINT_EVERY", 4)
    for n in range(11):
        erase(repository, [("db", "guests", b"%d" % n)])
    again = erase(repository, [("db", "guests", b"3")])
    assert (again.number, len(again.entries)) == (11, 11)
    ledger = ErasureLedger.load(repository)
    assert ledger.entries == again.entries
    assert ledger.kept("db", "guests", [b"10", b"11", b"3"]) == [False, True, False]
    records = [repository.store.get(info.key) for info in repository.store.list(f"{repository.prefix}erasures/")]
    assert len(records) == 11
    assert not any(b"guests" in record for record in records)


def test_a_lost_or_altered_record_stops_every_restore(repository: Repository, source: MemorySource) -> None:
    """Goal: a ledger that is not whole brings nobody back; lose, swap and flip records."""
    manifest = backup(repository, source, 1)
    for n in range(3):
        erase(repository, [("main", "t", b"%d" % n)])
    prefix = f"{repository.prefix}erasures/"
    second = repository.store.get(f"{prefix}{2:010d}")
    repository.store.delete(f"{prefix}{2:010d}")
    with pytest.raises(ManifestDamaged, match="record 2 is missing"):
        source_views(repository, manifest)
    repository.store.put(f"{prefix}{2:010d}", [repository.store.get(f"{prefix}{1:010d}")])
    with pytest.raises(ManifestDamaged, match="belongs elsewhere"):
        source_views(repository, manifest)
    repository.store.put(f"{prefix}{2:010d}", [second[:-1] + bytes([second[-1] ^ 1])])
    with pytest.raises(ManifestDamaged):
        source_views(repository, manifest)
    repository.store.put(f"{prefix}{2:010d}", [second])
    source_views(repository, manifest)
    repository.store.delete(f"{prefix}{3:010d}")
    source_views(repository, manifest)  # The store alone cannot know that its newest record is gone ...
    with pytest.raises(ManifestDamaged, match="record 3 is missing"):
        source_views(repository, manifest, erasures=3)  # ... the catalogue does.


def test_two_writers_lose_nothing(repository: Repository) -> None:
    """Goal: records are taken once; let two threads write."""

    def work(name: str) -> None:
        for n in range(8):
            erase(repository, [("db", name, b"%d" % n)])

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = ErasureLedger.load(repository)
    assert len(ledger.entries) == 16
    assert not any(ledger.kept("db", "a", [b"%d" % n for n in range(8)]))


class _Image:
    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        for when in ("before", "after"):
            header = {"name": "guests", "columns": ["note", "id"], "key": ["id"], "rows": when}
            yield header, iter([[b"a\t1", b"b\t2"], [b"c\t3"]])


def test_an_undo_brings_nothing_back_either(repository: Repository) -> None:
    """Goal: change images are sifted as backups are."""
    ledger = erase(repository, [("db", "guests", b"2")])
    image = LedgeredImage(_Image(), "db", ledger)
    found = {header["rows"]: [row for batch in rows for row in batch] for header, rows in image.sections()}
    assert found == {"before": [b"a\t1", b"c\t3"], "after": [b"a\t1", b"b\t2", b"c\t3"]}
    assert image.withheld == 1


def test_a_subject_is_named_by_its_key(repository: Repository, source: MemorySource) -> None:
    """Goal: what people type becomes the key text of backups, or a clear error."""
    manifest = backup(repository, source, 1)
    view = _table(repository, manifest, "guests")
    assert erasure_subject(view, [" 007 "], copy_field) == b"7"
    with pytest.raises(UsageError, match="2 values were given"):
        erasure_subject(view, ["1", "2"], copy_field)
    with pytest.raises(UsageError, match="is no value"):
        erasure_subject(view, ["seven"], copy_field)
    with pytest.raises(UsageError):
        erase(repository, [("main", "t", b"a\nb")])
