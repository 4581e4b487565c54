"""Checkpoints: what was ended long ago costs a prune nothing, and nothing is believed that was not signed."""

from typing import Any

import pytest

from engine import repository as repository_module
from engine.errors import ManifestDamaged, StoreError
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from stores._faulty import WRITES, Fault, FaultyStore
from tests.engine.gates import Gate
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


@pytest.fixture(autouse=True)
def _small_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_module, "CHECKPOINT_STEP", 4)


def _open(store: Any, repository: Repository) -> Repository:
    return Repository.open(store, repository_id=repository.repository_id, keyring=repository.keyring)


def _prune(repository: Repository, head: int, *ending: int, faults: tuple[Fault, ...] = ()) -> FaultyStore:
    store = FaultyStore(repository.store, list(faults))
    forget = dict.fromkeys(ending, "retention")
    prune(_open(store, repository), forget=forget, head=head, dry_run=False, progress=NullProgress())
    return store


def _read(store: FaultyStore) -> set[str]:
    """Numbers whose manifest or forget record was asked for."""
    return {
        f"{key.split('/')[2]}/{int(key[-10:])}"
        for name, key in store.calls
        if name == "get" and ("/manifests/" in key or "/forgets/" in key)
    }


def _checkpoints(repository: Repository) -> list[int]:
    return [int(info.key.split("/")[-1][:10]) for info in repository.store.list(repository.prefix + "checkpoints/")]


@pytest.fixture
def filled(repository: Repository) -> Repository:
    """Backups 1 to 12, of which 2 is void."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(9)})
    for number in range(1, 13):
        if number == 2:
            repository.void(2, "lost")
        else:
            table.set(1, f"version {number}")
            backup(repository, MemorySource([table]), number)
    repository.expected = truth(MemorySource([table]))  # type: ignore[attr-defined]
    return repository


def _whole(repository: Repository) -> None:
    fresh = _open(repository.store, repository)
    assert content(fresh, fresh.manifest(12)) == repository.expected  # type: ignore[attr-defined]


def test_what_was_ended_before_is_not_asked_for_again(filled: Repository) -> None:
    """Goal: a prune costs what is kept, not what ever was; end most backups, prune again, see what is read."""
    first = _prune(filled, 12, 1, *range(3, 10))
    assert {f"manifests/{n}" for n in range(1, 13)} <= _read(first)
    assert _checkpoints(filled) == [12]
    assert [number for number in range(1, 13) if filled.forgotten(number)] == [1, *range(2, 10)]
    assert list(filled.store.list(filled.prefix + "forgets/")) == []
    assert _read(_prune(filled, 12)) == {f"manifests/{n}" for n in (2, 10, 11, 12)}
    backup(filled, MemorySource([MemoryTable(rows={1: "x"})]), 13)
    assert _read(_prune(filled, 13, 10)) == {*(f"manifests/{n}" for n in (2, 10, 11, 12, 13)), "forgets/10"}
    assert _checkpoints(filled) == [12], "one is ended by a record of its own"
    _prune(filled, 13)
    _whole(filled)


def test_checkpoints_of_writers_that_overtook_one_another_are_all_true(filled: Repository) -> None:
    """Goal: a late writer takes nothing back; end by two that know different things, then by one more."""
    late = _open(filled.store, filled)

    def overtake() -> None:
        filled.end(dict.fromkeys((1, 3, 4, 5, 6, 7), "x"), head=12, kept=range(8, 13))

    late.store = Gate(filled.store, 2, overtake)  # type: ignore[assignment]
    late.end(dict.fromkeys((1, 3, 4, 5), "x"), head=12, kept=range(6, 13))
    assert _checkpoints(filled) == [12, 12]
    _prune(filled, 12)
    _prune(filled, 12, 8, 9, 10, 11)
    assert _checkpoints(filled) == [12]
    _prune(filled, 12)
    _whole(filled)


def test_a_kill_between_checkpoint_and_manifests_is_finished(filled: Repository) -> None:
    """Goal: what is ended goes in the end, what is listed is never skipped; die behind the checkpoint, prune again."""
    ending = (1, *range(3, 10))
    with pytest.raises(StoreError):
        _prune(filled, 12, *ending, faults=(Fault("dead", prefix=filled.prefix + "manifests/", operations=WRITES),))
    assert _checkpoints(filled) == [12]
    assert filled.numbers() == list(range(1, 13))
    _prune(filled, 12)  # The catalogue says nothing of an end: all of them are kept.
    assert filled.numbers() == list(range(1, 13))
    assert content(filled, filled.manifest(5))
    _prune(filled, 12, *ending)
    assert filled.numbers() == [2, 10, 11, 12]
    _whole(filled)


def test_a_checkpoint_s_numbers_are_never_given_away_again(filled: Repository) -> None:
    """Goal: a catalogue that lost its last writes begins behind the checkpoint; ask for the head from an older number."""
    _prune(filled, 12, *range(3, 13))
    assert filled.numbers() == [1, 2]
    assert [filled.head_from(number) for number in (0, 2, 5, 12)] == [12] * 4
    assert filled.head_from(2, most=4) == 6


def test_a_checkpoint_that_cannot_be_trusted_is_a_gap(filled: Repository) -> None:
    """Goal: loss is loud, and nothing unsigned is believed; lose, damage, swap and forge it, prune, put it back."""
    _prune(filled, 12, 1, *range(3, 10))
    ((key, _),) = [(info.key, info.size) for info in filled.store.list(filled.prefix + "checkpoints/")]
    blob = filled.store.get(key)
    record = Manifest.read(blob, filled.keyring, number=12)
    lying = b"".join(Manifest.signed({**record.document, "number": 11}, filled.keyring).parts(filled.keyring))
    for altered in (None, blob[:-1], blob[:50], lying, b""):
        filled.store.delete(key)
        if altered is not None:
            filled.store.put(key, [altered])
        with pytest.raises(ManifestDamaged):
            _prune(filled, 12)
        _whole(filled)
    filled.store.put(key, [blob])
    with pytest.raises(ManifestDamaged):
        _prune(filled, 12, faults=(Fault("truncated_list", prefix=filled.prefix + "checkpoints/", times=9),))
    _prune(filled, 12)
    _whole(filled)


def test_a_gap_is_seen_beside_a_checkpoint(filled: Repository) -> None:
    """Goal: loss is still detected; take a kept manifest away, before and behind the checkpoint."""
    _prune(filled, 12, 1, *range(3, 10))
    backup(filled, MemorySource([MemoryTable(rows={1: "x"})]), 13)
    backup(filled, MemorySource([MemoryTable(rows={1: "y"})]), 14)
    for number in (11, 13):
        key = f"{filled.prefix}manifests/{number:010d}"
        blob = filled.store.get(key)
        filled.store.delete(key)
        with pytest.raises(ManifestDamaged, match=str(number)):
            _prune(filled, 14)
        filled.store.put(key, [blob])
    _prune(filled, 14)
