"""Reading with damage, mending it from another copy, and finding it in time."""

import datetime
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.chunk_repair import RepairReport
from engine.copy_prune import copy_prune
from engine.erasures import ErasureLedger, erase
from engine.errors import BackupMissing, DamageError, StoreUnreachable
from engine.fallback import Place, ReadingRepository
from engine.progress import NullProgress
from engine.prune import prune
from engine.repair import repository_repair
from engine.repository import Repository
from engine.selections import selection_read
from engine.verify_store import CIRCLE, Share, StoreReport, share_due, store_verify_bytes, store_verify_structure
from tests.engine.copy_places import Places
from tests.engine.memory_source import content

DAY = datetime.timedelta(days=1)
T0 = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # Order is the question here, not durability.
    places = Places(tmp_path)
    for names in (("f0", "f1"), ("f1",), ("f2",)):
        places.change(*names)
        places.backup()
    erase(places.repository(), [("main", "rows", b"1000")])
    places.copy()
    return places


def _reading(places: Places, *names: str) -> ReadingRepository:
    def opener(name: str) -> Callable[[], Repository]:
        def opened() -> Repository:
            if not (places.folder / name).exists():
                raise StoreUnreachable(f"{name} is away")
            return Repository.open(places.store(name), repository_id="r", keyring=places.keyring)

        return opened

    return ReadingRepository([Place(name, opener(name)) for name in names], keyring=places.keyring, cache=None)


def _flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _swap(path: Path) -> None:
    """Another object of the same kind, as the other copy has it."""
    copy = path.parents[3 if path.parent.parent.name == "r" else 4]
    primary = copy.parent / ("primary" if copy.name == "copy" else "copy")
    others = [each for each in (primary / path.relative_to(copy)).parents[0].parent.rglob("*") if each.is_file()]
    others = [each for each in others if each.name != path.name and each.parent.parent.name in path.parts]
    path.write_bytes(others[0].read_bytes() if others else b"another object")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "truncated": _truncate,
    "lost": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "swapped": _swap,
}
SORTS = ("data", "meta", "index", "manifests", "erasures")


def _objects(places: Places, name: str, sort: str) -> list[Path]:
    return sorted(path for path in (places.folder / name / "r/r" / sort).rglob("*") if path.is_file())


def _verified(places: Places, name: str) -> StoreReport:
    """What a look at the structure and at every byte finds, together."""
    repository = places.repository(name)
    report = store_verify_structure(repository, dict.fromkeys(places.expected, ""), erasures=1, progress=NullProgress())
    read = store_verify_bytes(repository, Share(0, CIRCLE), deep=True, progress=NullProgress())
    report.findings += read.findings
    return report


def _repair(places: Places, name: str, other: str, report: StoreReport) -> RepairReport:
    keys = {each.key for each in report.findings}
    return repository_repair(
        places.repository(name),
        _reading(places, other).places,
        keys,
        is_primary=name == "primary",
        name=name,
        progress=NullProgress(),
    )


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("sort", SORTS)
def test_every_object_is_read_elsewhere_found_and_mended(places: Places, sort: str, damage: str) -> None:
    """Goal: damage is found always, hides nothing, and is mended; hurt each kind of object in primary and copy."""
    for name, other in (("primary", "copy"), ("copy", "primary")):
        for path in _objects(places, name, sort):
            DAMAGES[damage](path)
        reading = _reading(places, name, other)
        ledger = ErasureLedger.load(reading, at_least=1)
        assert len(ledger.entries) == 1
        for number, expected in places.expected.items():
            assert content(reading, reading.manifest(number)) == expected
        found = _verified(places, name)
        assert found.findings, "the damage was found"
        if sort in ("data", "meta"):
            assert {each.key for each in found.findings} >= {
                f"pack {path.name}" for path in _objects(places, other, sort)
            }
        if sort != "index":
            assert reading.notes.all(), "who read elsewhere says so"
        report = _repair(places, name, other, found)
        assert not report.lost, report.lost
        assert _verified(places, name).findings == []
        places.check(name)


def test_damage_behind_a_damaged_index_is_mended_too(places: Places) -> None:
    """Goal: what no index names is not passed over; hurt the index and the packs of one place at once, verify, repair."""
    for name, other in (("primary", "copy"), ("copy", "primary")):
        for sort in ("index", "data", "meta"):
            for path in _objects(places, name, sort):
                _flip(path)
        report = _repair(places, name, other, _verified(places, name))
        assert not report.lost
        if name == "copy":
            places.copy(recheck=frozenset(places.expected))
        assert _verified(places, name).findings == []
        places.check(name)


def test_packs_that_differ_are_read_chunk_by_chunk(places: Places) -> None:
    """Goal: a repacked primary is mended from a copy with older packs; repack, lose every pack of it, read, mend."""
    places.change(*(f"g{number}" for number in range(6)))
    places.backup()
    places.copy()
    places.change(*(f"g{number}" for number in range(5)))
    places.backup()
    places.copy()
    prune(places.repository(), forget={1: "x", 4: "x"}, head=5, dry_run=False, progress=NullProgress())
    only = {path.name for path in _objects(places, "primary", "data")} - places.packs("copy")
    for path in _objects(places, "primary", "data"):
        _flip(path)
    reading = _reading(places, "primary", "copy")
    for number in (2, 3, 5):
        assert content(reading, reading.manifest(number)) == places.expected[number]
    del places.expected[1], places.expected[4]
    report = _repair(places, "primary", "copy", _verified(places, "primary"))
    assert only, "the primary was repacked"
    assert not report.lost
    places.lose("copy")
    places.check("primary")
    assert _verified(places, "primary").findings == []


def test_a_pack_that_only_the_copy_had_is_brought_anew(places: Places) -> None:
    """Goal: a copy gets what was in a damaged pack from the packs that the primary has now; unname, run the copy."""
    places.change(*(f"g{number}" for number in range(4)), size=9_000)
    places.backup()
    places.copy()
    prune(places.repository(), forget={1: "x", 2: "x"}, head=4, dry_run=False, progress=NullProgress())
    for number in (1, 2):
        del places.expected[number]
    copy_prune(places.repository("copy"), drop={1, 2}, copy="copy", selection=1, dry_run=False, progress=NullProgress())
    places.serials["copy"] = selection_read(places.repository("copy")).serial
    for path in _objects(places, "copy", "data"):
        _flip(path)
    report = _repair(places, "copy", "primary", _verified(places, "copy"))
    assert not report.lost
    places.copy(recheck=frozenset(places.expected))
    assert _verified(places, "copy").findings == []
    places.lose("primary")
    places.check("copy")


def test_one_place_after_the_other_is_away(places: Places) -> None:
    """Goal: any copy serves alone, none is an error that names the nearest; take one away, then both."""
    shutil.move(places.folder / "primary", places.folder / "primary-away")
    reading = _reading(places, "primary", "copy")
    assert content(reading, reading.manifest(3)) == places.expected[3]
    assert [(note.place, note.key) for note in reading.notes.all()] == [("primary", "store")]
    with pytest.raises(BackupMissing):
        reading.manifest(99)
    shutil.move(places.folder / "copy", places.folder / "copy-away")
    with pytest.raises(StoreUnreachable, match="primary is away"):
        _reading(places, "primary", "copy")


def test_half_of_each_copy_makes_a_whole(places: Places, rng: random.Random) -> None:
    """Goal: what one lacks another gives; lose each pack in one of the two at random, the manifests too."""
    for sort in ("data", "meta", "manifests"):
        for path in _objects(places, "primary", sort):
            (places.folder / rng.choice(("primary", "copy")) / path.relative_to(places.folder / "primary")).unlink()
    reading = _reading(places, "primary", "copy")
    for number, expected in places.expected.items():
        assert content(reading, reading.manifest(number)) == expected
    places.lose("copy")
    alone = _reading(places, "primary")
    with pytest.raises((DamageError, BackupMissing)):
        _ = [content(alone, alone.manifest(number)) for number in places.expected]


def test_affected_backups_are_named(places: Places) -> None:
    """Goal: damage names the backups that it hits and no others; lose a pack that only the newest needs."""
    before = {path.name for path in _objects(places, "primary", "data")}
    places.change("f9")
    places.backup()
    for path in _objects(places, "primary", "data"):
        if path.name not in before:
            path.unlink()
    report = store_verify_structure(places.repository(), dict.fromkeys(places.expected, ""), progress=NullProgress())
    assert set(report.affected) == {4}
    wrong = store_verify_structure(places.repository("copy"), {1: "0" * 64}, progress=NullProgress())
    assert [each.code for each in wrong.findings] == ["damage.manifest"]


@pytest.mark.parametrize(
    ("days", "period"), [([1] * 7, 7), ([1] * 30, 30), ([2, 1, 3, 1], 7), ([0.25] * 28, 7), ([9], 7)]
)
def test_every_object_is_read_within_the_period(
    places: Places, days: list[float], period: int, rng: random.Random
) -> None:
    """Goal: samples leave nothing out, missed days are caught up; read shares day by day, collect what was read."""
    cursor = rng.randrange(CIRCLE)
    now, since, read = T0, T0, set[str]()
    gates = places.repository("copy")
    real = gates.store.get

    def get(key: str, offset: int = 0, length: int | None = None) -> bytes:
        read.add(key.rpartition("/")[2])
        return real(key, offset, length)

    gates.store.get = get  # type: ignore[method-assign]
    for passed in days:
        now += passed * DAY
        share = share_due(cursor=cursor, since=since, now=now, period=period * DAY)
        reached: list[int] = []
        assert not store_verify_bytes(
            gates, share, deep=False, progress=NullProgress(), reached=reached.append
        ).findings
        cursor, since = reached[-1], now
    assert read >= places.packs("copy")


def test_a_share_is_fair_and_a_clock_that_went_back_reads_nothing() -> None:
    """Goal: each day reads its part, no more; compare the shares of some spans."""
    week = 7 * DAY
    assert share_due(cursor=5, since=None, now=T0, period=week).length == round(CIRCLE / 7)
    assert share_due(cursor=5, since=T0, now=T0 + 3 * DAY, period=week).length == round(CIRCLE * 3 / 7)
    assert share_due(cursor=5, since=T0, now=T0 + 70 * DAY, period=week).length == CIRCLE
    assert share_due(cursor=5, since=T0, now=T0 - DAY, period=week).length == 0
    assert Share(CIRCLE - 10, 30).end == 20
