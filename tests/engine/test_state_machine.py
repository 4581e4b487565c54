"""Backup, prune, restore and crash in any order over a store that fails: what was acknowledged stays exact."""

import os
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.errors import LastroError
from engine.keys import Keyring, RootKey
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from stores._faulty import Fault, FaultyStore
from stores.local import LocalConfig, LocalStore
from tests.engine.gates import Gate
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth

STEPS = 25
EXAMPLES = 40 * int(os.environ.get("LASTRO_TEST_SCALE", "1"))
FAULTS = ["error", "full", "torn", "lost_reply", "dead", "truncated_list", "truncated_get", "flipped_get"]


class Life(RuleBasedStateMachine):
    """A tenant's repository over time. The catalogue's part is played by `head` and `acknowledged`."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lastro-life-"))
        self.store = LocalStore.make(LocalConfig(path=str(self.folder / "store")))
        root = RootKey.generate()
        self.keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        Repository.create(self.store, repository_id="r", tenant_id="t", keyring=self.keyring, root=root)
        self.head = 0
        self.acknowledged: dict[int, dict] = {}
        tree = self.folder / "tree"
        tree.mkdir()
        self.source = MemorySource([MemoryTable("rows", {n: f"row {n}" for n in range(200)})], tree, b"ddl")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _repository(self, faults: list[Fault] | None = None) -> Repository:
        store = FaultyStore(self.store, faults) if faults else self.store
        return Repository(store, self.keyring, cache=None)

    def _settle(self) -> None:
        """Close numbers whose session is gone, as the service does before a new session."""
        for number in range(1, self.head + 1):
            if number not in self.acknowledged and not self._repository().forgotten(number):
                found = self._repository().void(number, "session lost")
                if found.kind == "manifest":
                    self.acknowledged[number] = self.pending[number]

    pending: dict[int, dict]

    @rule(seed=st.integers(0, 1 << 20))
    def change(self, seed: int) -> None:
        rng = random.Random(seed)
        (table,) = self.source.tables()
        for _ in range(rng.randrange(1, 30)):
            table.set(rng.randrange(400), f"v{rng.randrange(1000)}")
            table.remove(rng.randrange(400))
        (self.folder / "tree" / f"f{rng.randrange(9)}").write_bytes(rng.randbytes(rng.choice([0, 9, 70_000])))

    @rule(full=st.booleans(), use_parent=st.booleans())
    def back_up(self, full: bool, use_parent: bool) -> None:
        self._settle()
        parent = self._newest() if use_parent else None
        self.head += 1
        manifest = backup(self._repository(), self.source, self.head, parent=parent, full=full)
        self.acknowledged[manifest.number] = truth(self.source)

    @rule(kind=st.sampled_from(FAULTS), at=st.integers(1, 25), full=st.booleans())
    def back_up_with_a_fault(self, kind: str, at: int, full: bool) -> None:
        self._settle()
        parent = self._newest()
        self.head += 1
        self.pending = {self.head: truth(self.source)}
        prefix = "r/r/data" if kind == "torn" else ""  # A torn write is detected; only names by content may be torn.
        try:
            faulty = self._repository([Fault(kind, at=at, prefix=prefix)])
            backup(faulty, self.source, self.head, parent=parent, full=full)
        except LastroError:
            return
        if kind != "torn":
            self.acknowledged[self.head] = self.pending[self.head]

    @rule(seed=st.integers(0, 1 << 20), kind=st.sampled_from([None, *FAULTS]), at=st.integers(1, 30))
    def prune_some(self, seed: int, kind: str | None, at: int) -> None:
        self._settle()
        rng = random.Random(seed)
        ending = {n: "retention" for n in self.acknowledged if rng.random() < 0.4}
        repository = self._repository([Fault(kind, at=at)] if kind and kind != "torn" else None)
        for number in ending:  # What was to be ended may be gone or not; nothing is promised for it any more.
            self.acknowledged.pop(number)
        self.ended = getattr(self, "ended", set()) | set(ending)
        try:
            prune(repository, forget=ending, head=self.head, dry_run=False, progress=NullProgress())
        except LastroError:
            prune(self._repository(), forget=ending, head=self.head, dry_run=False, progress=NullProgress())

    @rule(seed=st.integers(0, 1 << 20), at=st.integers(1, 60))
    def prune_overtaken_by_a_prune(self, seed: int, at: int) -> None:
        self._settle()
        rng = random.Random(seed)
        ending = {n: "retention" for n in self.acknowledged if rng.random() < 0.4}
        for number in ending:
            self.acknowledged.pop(number)
        keyring, head = self.keyring, self.head

        def run(store: Any) -> None:
            repository = Repository(store, keyring, cache=None)
            prune(repository, forget=ending, head=head, dry_run=False, progress=NullProgress())

        with suppress(LastroError):
            run(Gate(self.store, at, lambda: run(self.store)))
        run(self.store)

    def _newest(self):
        numbers = sorted(self.acknowledged)
        return self._repository().manifest(numbers[-1]) if numbers else None

    @invariant()
    def acknowledged_backups_are_exact(self) -> None:
        repository = self._repository()
        for number, expected in self.acknowledged.items():
            assert content(repository, repository.manifest(number)) == expected


Life.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLife = pytest.mark.seeded(Life.TestCase)
