"""Two prunes that both lost their lease: whatever the order of their operations, nothing that is needed goes."""

import os
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LastroError, SessionFenced
from engine.keys import Keyring, RootKey
from engine.manifest import Manifest
from engine.ports import Store
from engine.progress import NullProgress
from engine.prune import PruneReport, prune
from engine.quarantine import packs_quarantine
from engine.repository import Repository
from engine.verify import verify_backup
from stores._faulty import Fault, FaultyStore
from stores.local import LocalConfig, LocalStore
from tests.engine.gates import BEFORE_REWRITE, Gate
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth

SECONDS_MAX = 60


class Place:
    """A repository with kept and ended backups, thin packs and garbage, to be copied for each order."""

    def __init__(self, folder: Path) -> None:
        self.folder, root = folder, RootKey.generate()
        self.keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        LocalStore.make(LocalConfig(path=str(folder / "base")))
        store = LocalStore(LocalConfig(path=str(folder / "base")))
        Repository.create(store, repository_id="r", tenant_id="t", keyring=self.keyring, root=root)
        rng = random.Random(7)
        tree = folder / "tree"
        tree.mkdir()
        self.source = MemorySource([MemoryTable("rows", {n: f"row {n}" for n in range(50)})], tree, b"ddl")
        self.expected: dict[int, dict[str, Any]] = {}
        for number in (1, 2, 3):
            for name in range(6):  # A sixth of each pack stays alive, so that the ended ones' packs are rewritten.
                if number == 1 or name < 5:
                    (tree / f"f{name}").write_bytes(rng.randbytes(20_000))
            backup(self._open(store), self.source, number)
            self.expected[number] = truth(self.source)
        (tree / "f0").write_bytes(rng.randbytes(20_000))
        self.abandon(self._open(store))

    def _open(self, store: Any) -> Repository:
        return Repository.open(store, repository_id="r", keyring=self.keyring)

    def abandon(self, repository: Repository) -> None:
        """Leave a backup of the present tree that ends just before its manifest: garbage which the index knows."""

        def stop(*_args: object, **_more: object) -> None:
            raise RuntimeError("killed")

        repository.commit = stop  # type: ignore[method-assign]
        with suppress(RuntimeError):
            backup(repository, self.source, 4)

    def fresh(self) -> Store:
        """A copy of the base to prune."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        shutil.copytree(self.folder / "base", self.folder / "copy")
        return LocalStore(LocalConfig(path=str(self.folder / "copy")))

    def prune(self, store: Any) -> PruneReport:
        return prune(self._open(store), forget={1: "x", 2: "x"}, head=3, dry_run=False, progress=NullProgress())

    def check(self, store: Store) -> None:
        """All that is kept is exact; what the index promises is there; the next backup and prune are whole."""
        repository = self._open(store)
        packs = {info.key.rpartition("/")[2] for sort in ("data", "meta") for info in store.list(f"r/r/{sort}/")}
        assert repository.sealed.index.pack_names() <= packs, "the index names packs that are gone"
        assert content(repository, repository.manifest(3)) == self.expected[3]
        manifest = backup(self._open(store), self.source, 4)
        for _ in range(2):
            again = self._open(store)
            for kept in (again.manifest(3), manifest):
                assert verify_backup(again, kept, deep=True, progress=NullProgress()) == []
            assert content(again, manifest) == truth(self.source)
            prune(self._open(store), forget={}, head=4, dry_run=False, progress=NullProgress())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # Order is the question here, not durability.
    return Place(tmp_path)


def _interleaved(place: Place, store: Store, first_at: int, second_at: int, *, garbage: bool) -> list[BaseException]:
    """Stop the first prune before an operation, run the second to one of its own, end the first, end the second."""
    reached, first_ended, errors = threading.Event(), threading.Event(), []

    def run(gate: Gate) -> None:
        try:
            place.prune(gate)
        except LastroError as error:
            errors.append(error)

    def second() -> None:
        try:
            run(Gate(store, second_at, lambda: (reached.set(), first_ended.wait(SECONDS_MAX))))
        finally:
            reached.set()

    thread = threading.Thread(target=second)

    def overtake() -> None:
        if garbage:
            place.abandon(place._open(store))
        thread.start()
        assert reached.wait(SECONDS_MAX)

    run(Gate(store, first_at, overtake))
    first_ended.set()
    if thread.ident:
        thread.join(SECONDS_MAX)
    return errors


def test_two_prunes_in_every_order_drop_nothing_that_is_needed(place: Place, rng: random.Random, rounds: Any) -> None:
    """Goal: both outcomes are valid. Method: stop one before each of its operations, the other before random ones."""
    counted = Gate(place.fresh())
    report = place.prune(counted)
    assert (report.packs_rewritten, report.packs_swept) >= (1, 2), "the base has thin packs and garbage"
    fenced = 0
    for first_at in range(1, counted.count + 1):
        for _ in rounds(1):
            store = place.fresh()
            second_at = rng.randint(1, counted.count)
            errors = _interleaved(place, store, first_at, second_at, garbage=bool(first_at % 2))
            fenced += sum(isinstance(error, SessionFenced) for error in errors)
            place.check(store)
    assert fenced >= counted.count // 4


def test_two_prunes_that_both_passed_their_checks(place: Place, rounds: Any) -> None:
    """Goal: the narrowest gap is closed. Method: the second one waits before its index is put, the first goes on."""
    counted = Gate(place.fresh())
    place.prune(counted)
    for first_at in range(counted.rewrite_at - 6, counted.rewrite_at + 2):
        for _ in rounds(4):  # Names of segments are random, and with them which copy of a chunk is found first.
            store = place.fresh()
            errors = _interleaved(place, store, first_at, BEFORE_REWRITE, garbage=False)
            assert errors, "one of the two is told"
            place.check(store)


def test_only_one_of_two_prunes_deletes(place: Place) -> None:
    """Goal: the store tells them apart. Method: both decide on the same state; the one that claimed first is told."""
    store = place.fresh()
    (first, second) = (place._open(store).sealed.index for _ in range(2))
    claims = [first.claim_generation(), second.claim_generation()]
    assert claims == [1, 2]
    with pytest.raises(SessionFenced):
        first.check_claim(claims[0])
    second.check_claim(claims[1])
    first.rewrite(drop=(), generation=0, claimed=claims[0])
    with pytest.raises(SessionFenced):  # It decided before the first one wrote.
        second.rewrite(drop=(), generation=0, claimed=claims[1])
    place.prune(store)
    place.check(store)


def test_a_rewrite_keeps_segments_that_a_listing_lacks(place: Place) -> None:
    """Goal: nothing goes because a listing lacks it. Method: cut each listing of a prune short in turn."""
    lists = Gate(place.fresh())
    place.prune(lists)
    for at in range(1, lists.count):
        store = place.fresh()
        faulty = FaultyStore(store, [Fault("truncated_list", at=at)])
        with suppress(LastroError):
            place.prune(faulty)
        place.check(store)
        if sum(name == "list" for name, _ in faulty.calls) < at:
            return


def test_a_quarantine_beside_a_prune_is_told_too(place: Place) -> None:
    """Goal: the other writer that drops packs is fenced alike. Method: a prune overtakes it at each operation."""

    def quarantine(gate: Gate, manifest: Manifest) -> None:
        repository = place._open(gate)
        name = min(repository.sealed.index.pack_names())
        packs_quarantine(repository, repository.sealed, {name}, NullProgress())
        assert manifest

    counted = Gate(place.fresh())
    quarantine(counted, place._open(counted).manifest(3))
    for at in range(1, counted.count + 1):
        store = place.fresh()

        def overtake(store: Store = store) -> None:
            place.prune(store)

        with suppress(LastroError):
            quarantine(Gate(store, at, overtake), place._open(store).manifest(3))
        place.check(store)
