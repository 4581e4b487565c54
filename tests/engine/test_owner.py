"""The owner of a store: whoever belonged to the one before it commits nothing late and sweeps nothing."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SessionFenced, TakenOver
from engine.fencing import NoGuard
from engine.keys import Keyring, RootKey
from engine.owner import owner_checked, owner_key, owner_newest, owner_raise, owner_records
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from stores._faulty import Fault, FaultyStore
from stores.local import LocalStore
from tests.conftest import Rounds
from tests.engine.gates import Gate
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth

CATALOGUE = "cat_test"
_ROOT = RootKey.generate()
_KEYRING = Keyring.create(_ROOT, tenant_id="ins_test", repository_id=CATALOGUE)


@dataclass
class Guard(NoGuard):
    """As services make one: it remembers the generation at which its work began."""

    store: Any
    generation: int

    def check(self) -> None:
        owner_checked(self.store, CATALOGUE, self.generation)


@pytest.fixture
def catalogue(store: LocalStore) -> Repository:
    repository = Repository.create(store, repository_id=CATALOGUE, tenant_id="ins_test", keyring=_KEYRING, root=_ROOT)
    assert owner_raise(repository, reason="in use") == 1
    return repository


def _as_of(store: Any, keyring: Keyring, generation: int) -> Repository:
    repository = Repository(store, keyring, cache=None)
    repository.guard = Guard(store, generation)
    return repository


def _source(rows: int) -> MemorySource:
    return MemorySource([MemoryTable("rows", {n: f"row {n}" for n in range(rows)})], None, b"ddl")


def test_every_raise_is_a_number_of_its_own(catalogue: Repository) -> None:
    """Goal: of two that adopt at once one is the owner; raise by both, read the records with who and why."""
    other = Repository(catalogue.store, _KEYRING, cache=None)
    assert (owner_raise(catalogue, reason="a"), owner_raise(other, reason="b")) == (2, 3)
    assert [(each.number, each.reason, each.readable) for each in owner_records(catalogue)] == [
        (1, "in use", True), (2, "a", True), (3, "b", True),
    ]  # fmt: skip
    assert owner_raise(catalogue, reason="far ahead", above=6) == 7
    owner_checked(catalogue.store, CATALOGUE, 7)
    for generation in range(7):
        with pytest.raises(TakenOver, match="--take-over"):
            owner_checked(catalogue.store, CATALOGUE, generation)


def test_a_record_that_nobody_signed_stops_the_writers_and_no_adoption(catalogue: Repository) -> None:
    """Goal: who can only write to the store cannot make himself the owner unnoticed; put garbage, then raise."""
    catalogue.store.put(owner_key(CATALOGUE, 2), [b"mine"])
    with pytest.raises(TakenOver):
        owner_checked(catalogue.store, CATALOGUE, 1)
    assert [each.readable for each in owner_records(catalogue)] == [True, False]
    assert owner_raise(catalogue, reason="mine again") == 3


def test_a_listing_that_ends_early_hides_no_owner(catalogue: Repository) -> None:
    """Goal: nothing rests on listings; raise behind one that is truncated."""
    for _ in range(5):
        owner_raise(catalogue, reason="again")
    lying = FaultyStore(catalogue.store, [Fault("truncated_list", times=1_000)])
    assert owner_newest(Repository(lying, _KEYRING, cache=None)) == 6


def _take_over(catalogue: Repository, keyring: Keyring, closed: list[int], *, sweep: bool) -> Callable[[], None]:
    """What an adoption does to one repository: own, take over what is there, close the next number, perhaps sweep."""

    def do() -> None:
        generation = owner_raise(catalogue, reason="adopted")
        mine = _as_of(catalogue.store, keyring, generation)
        head = mine.head_from(mine.head())
        while mine.void(head + 1, "adopted").kind == "manifest":
            head += 1
        closed.append(head + 1)
        if sweep:
            prune(mine, forget={}, head=head + 1, dry_run=False, progress=NullProgress())

    return do


@pytest.mark.seeded
def test_a_worker_of_the_old_installation_commits_nothing_late(
    repository: Repository, catalogue: Repository, rng: random.Random, rounds: Rounds
) -> None:
    """Goal: 0 late commits, 0 missing chunks. Method: stop a backup anywhere, adopt and sweep behind it, let it go on."""
    source, keyring, store = _source(300), repository.keyring, catalogue.store
    for _ in rounds(12):
        before = owner_newest(catalogue)
        number = repository.head_from(0) + 1
        source.tables()[0].set(rng.randrange(1000), f"v{rng.random()}")
        parent = next(iter(reversed(list(repository.manifests()))), None)
        closed: list[int] = []
        take_over = _take_over(catalogue, keyring, closed, sweep=rng.random() < 0.7)
        gate = Gate(store, rng.randrange(1, 30), take_over)
        try:
            taken = backup(_as_of(gate, keyring, before), source, number, parent=parent)
        except (TakenOver, SessionFenced):
            # What was there already when the store changed hands was taken over, and is whole like all others.
            was_there = closed == [number + 1]
            assert Repository(store, keyring, cache=None).manifest(number).kind == ("manifest" if was_there else "void")
        else:
            assert content(Repository(store, keyring, cache=None), taken) == truth(source)
        for manifest in Repository(store, keyring, cache=None).manifests():
            content(Repository(store, keyring, cache=None), manifest)


@pytest.mark.seeded
def test_a_prune_of_the_old_installation_deletes_nothing_late(
    repository: Repository, catalogue: Repository, rng: random.Random, rounds: Rounds, tmp_path: Path
) -> None:
    """Goal: no late sweep. Method: stop a prune anywhere, adopt and back up behind it, let it go on, read everything."""
    keyring, store, source = repository.keyring, catalogue.store, _source(200)
    for _ in rounds(10):
        before = owner_newest(catalogue)
        head = repository.head_from(0)
        source.tables()[0].set(rng.randrange(500), f"v{rng.random()}")
        backup(_as_of(store, keyring, before), source, head + 1)
        truths: dict[int, Any] = {}

        def meanwhile(truths: dict[int, Any] = truths) -> None:
            _take_over(catalogue, keyring, [], sweep=False)()
            mine = _as_of(store, keyring, owner_newest(catalogue))
            number = mine.head_from(0) + 1
            backup(mine, source, number)
            truths[number] = truth(source)

        old = _as_of(Gate(store, rng.randrange(1, 25), meanwhile), keyring, before)
        kept = {each.number for each in repository.manifests()}
        forget = {number: "retention" for number in kept if rng.random() < 0.6 and number != head + 1}
        with suppress(TakenOver, SessionFenced):
            prune(old, forget=forget, head=head + 1, dry_run=False, progress=NullProgress())
        fresh = Repository(store, keyring, cache=None)
        for number, expected in truths.items():
            assert content(fresh, fresh.manifest(number)) == expected
        for manifest in fresh.manifests():
            content(fresh, manifest)


def test_whoever_has_no_higher_owner_works_on_as_ever(repository: Repository, catalogue: Repository) -> None:
    """Goal: it costs two look-ups a backup; count what a backup asks of the owner's place."""
    asked: list[str] = []

    class Watching(FaultyStore):
        def stat(self, key: str) -> Any:
            if "/owner/" in key:
                asked.append(key)
            return super().stat(key)

    watching = Watching(catalogue.store, [])
    backup(_as_of(watching, repository.keyring, 1), _source(10), 1)
    assert asked == [owner_key(CATALOGUE, 2)] * 2
