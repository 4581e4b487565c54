"""Checkpoints: what was ended long ago costs a prune nothing, and nothing is believed that was not signed."""

from typing import Any

import pytest

from engine import repository as repository_module
from engine.errors import ManifestDamaged
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from stores._faulty import Fault, FaultyStore
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


def _checkpoints(repository: Repository) -> list[str]:
    return [info.key[-10:] for info in repository.store.list(repository.prefix + "checkpoints/")]


@pytest.fixture
def filled(repository: Repository) -> Repository:
    """Backups 1 to 12, of which 2 is void; 1 and 3 to 9 are to be ended."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(9)})
    for number in range(1, 13):
        if number == 2:
            repository.void(2, "lost")
        else:
            table.set(1, f"version {number}")
            backup(repository, MemorySource([table]), number)
    repository.expected = truth(MemorySource([table]))  # type: ignore[attr-defined]
    return repository


def test_what_was_ended_before_is_not_asked_for_again(filled: Repository) -> None:
    """Goal: a prune costs what is kept, not what ever was; end most backups, prune again, see what is read."""
    first = _prune(filled, 12, 1, *range(3, 10))
    assert {f"manifests/{n}" for n in range(1, 13)} <= _read(first)
    assert _checkpoints(filled) == ["0000000012"]
    assert _read(_prune(filled, 12)) == {f"manifests/{n}" for n in (10, 11, 12)}
    backup(filled, MemorySource([MemoryTable(rows={1: "x"})]), 13)
    assert _read(_prune(filled, 13, 10, 11)) == {
        *(f"manifests/{n}" for n in (10, 11, 12, 13)),
        *(f"forgets/{n}" for n in (10, 11)),
    }
    assert _checkpoints(filled) == ["0000000012"], "two numbers are not worth another"
    assert content(filled, filled.manifest(12)) == filled.expected  # type: ignore[attr-defined]


def test_a_newer_checkpoint_takes_the_place_of_the_older(filled: Repository) -> None:
    """Goal: there is one, however often it is written; end in two steps, also with a kill between the two objects."""
    _prune(filled, 12, 1, 3, 4, 5)
    _prune(filled, 12, *range(6, 12))
    assert _checkpoints(filled) == ["0000000012"]
    for number in range(13, 20):
        filled.void(number, "lost")
    _prune(filled, 19)
    assert _checkpoints(filled) == ["0000000019"]
    assert _read(_prune(filled, 19)) == {"manifests/12"}


def test_a_checkpoint_is_a_convenience(filled: Repository) -> None:
    """Goal: lost, unlisted, damaged, swapped or forged it changes no outcome; do each, prune, read what is kept."""
    _prune(filled, 12, 1, *range(3, 10))
    key = filled.prefix + "checkpoints/0000000012"
    blob = filled.store.get(key)
    lying = Manifest.signed({**Manifest.read(blob, filled.keyring, number=12).document, "number": 11}, filled.keyring)
    for altered in (None, blob[:-1], blob[:50], b"".join(lying.parts(filled.keyring)), b""):
        filled.store.delete(key)
        if altered is not None:
            filled.store.put(key, [altered])
        assert {f"manifests/{n}" for n in range(1, 13)} <= _read(_prune(filled, 12))
        assert content(filled, filled.manifest(12)) == filled.expected  # type: ignore[attr-defined]
    assert _checkpoints(filled) == ["0000000012"]
    unlisted = Fault("truncated_list", prefix=filled.prefix + "checkpoints/", times=9)
    _prune(filled, 12, faults=(unlisted,))
    assert content(filled, filled.manifest(12)) == filled.expected  # type: ignore[attr-defined]


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
