"""A thousand seeded kills: SIGKILL at a labelled point or at any moment, in backup, prune and restore.

A child process is forked for each operation, so that a kill costs milliseconds; what it left behind is
judged by the parent, with the invariants of the fault table: acknowledged backups stay exact (A), an
uncommitted one never looks complete (B), a rerun ends (C), a restore target is wholly old or new (E).
"""

import contextlib
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import faults
from engine.keys import Keyring, RootKey
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.tree_restore import restore_tree
from engine.verify import verify_backup
from engine.views import source_views
from stores.local import LocalConfig, LocalStore
from tests.conftest import scale
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth

LIVES = 10
KILLS_PER_LIFE = 100
KILL_AFTER_SECONDS_MAX = 0.06
BACKUP_LABELS = (
    "backup.opened", "backup.source_read", "session.pack_stored", "index.stored", "index.superseded_deleted",
    "backup.chunks_stored", "backup.before_manifest", "backup.manifest_stored",
    "store.local.written", "store.local.synced", "store.local.named",
)  # fmt: skip
PRUNE_LABELS = (
    "prune.forget_stored", "prune.repacked", "prune.index_rewritten", "prune.tombstoned", "prune.pack_deleted",
    "session.pack_stored", "index.stored", "index.superseded_deleted", "store.local.named", "store.local.written",
)  # fmt: skip
RESTORE_LABELS = ("tree.restore.staged", "tree.restore.swapped", "tree.restore.journalled")


def run_killed(work: Callable[[], None], *, label: str, delay: float | None) -> bool:
    """Run work in a child that dies at the label or after the delay; True when it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            label_name, _, nth = label.partition(":")
            faults._wanted, faults._nth, faults._passages = label_name, nth, 0
            work()
        except BaseException:  # The child ends here, whatever it was.
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the child failed by itself: {code} at {label}"
    return code == 0


class Life:
    """One tenant's repository and what its catalogue would know."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.store = LocalStore.make(LocalConfig(path=str(folder / "store")))
        root = RootKey.generate()
        self.keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        Repository.create(self.store, repository_id="r", tenant_id="t", keyring=self.keyring, root=root)
        self.tree, self.target = folder / "tree", folder / "target"
        self.tree.mkdir()
        table = MemoryTable("rows", {n: f"row {n}" for n in range(300)})
        self.source = MemorySource([table], self.tree, b"ddl")
        self.head, self.wanted, self.ended = 0, dict[int, dict](), set[int]()
        self.journal = folder / "acknowledged"

    def repository(self) -> Repository:
        return Repository(self.store, self.keyring, cache=None)

    def change(self) -> None:
        rng, (table,) = self.rng, self.source.tables()
        for _ in range(rng.randrange(1, 20)):
            table.set(rng.randrange(600), f"v{rng.randrange(9999)}")
            table.remove(rng.randrange(600))
        (self.tree / f"f{rng.randrange(8)}").write_bytes(rng.randbytes(rng.choice([0, 100, 60_000, 400_000])))

    def back_up(self) -> None:
        """Run by the child; an acknowledgement is a durable line, as a catalogue's commit is."""
        repository = self.repository()
        parent = repository.manifest(max(self.wanted)) if self.wanted and self.rng.random() < 0.8 else None
        manifest = backup(repository, self.source, self.head, parent=parent, full=self.rng.random() < 0.2)
        with open(self.journal, "a", encoding="utf-8") as handle:
            handle.write(json.dumps([manifest.number, manifest.sha256]) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def settle(self, expected: dict) -> None:
        """What the next run does with a number whose session died: adopt its manifest, or close it."""
        acknowledged = self.journal.exists() and f"[{self.head}," in self.journal.read_text()
        holder = self.repository().void(self.head, "killed")
        assert holder.kind == "manifest" or not acknowledged, "an acknowledged backup is gone"
        if holder.kind == "manifest":
            self.wanted[self.head] = expected

    def check(self, numbers: list[int], *, deep: bool = False) -> None:
        repository = self.repository()
        for number in numbers:
            manifest = repository.manifest(number)
            assert content(repository, manifest) == self.wanted[number], f"backup {number} is not what it was"
            if deep:
                assert verify_backup(repository, manifest, deep=True, progress=NullProgress()) == []

    def fate(self, labels: tuple[str, ...]) -> dict:
        """A label and its passage, or any moment."""
        if self.rng.random() < 0.6:
            return {"label": f"{self.rng.choice(labels)}:{self.rng.randrange(1, 4)}", "delay": None}
        return {"label": "", "delay": self.rng.random() * KILL_AFTER_SECONDS_MAX}

    def backup_killed(self) -> None:
        self.change()
        expected = truth(self.source)
        self.head += 1
        run_killed(self.back_up, **self.fate(BACKUP_LABELS))
        self.settle(expected)

    def prune_killed(self) -> None:
        ending = {n: "retention" for n in self.wanted if n != max(self.wanted) and self.rng.random() < 0.5}
        for number in ending:
            self.wanted.pop(number)
        self.ended |= ending.keys()

        def work() -> None:
            prune(self.repository(), forget=ending, head=self.head, dry_run=False, progress=NullProgress())

        run_killed(work, **self.fate(PRUNE_LABELS))

    def restore_killed(self) -> None:
        if not self.wanted:
            return
        number = self.rng.choice(sorted(self.wanted))
        before = files(self.target)
        wanted = {k: v for k, v in self.wanted[number].items() if k.startswith("file ")}

        def work() -> None:
            view = source_views(self.repository(), self.repository().manifest(number))["main"]
            restore_tree(
                view.trees[0],
                os.fsencode(self.target),
                label="life",
                overwrite=True,
                in_place=True,
                progress=NullProgress(),
            )

        finished = run_killed(work, **self.fate(RESTORE_LABELS))
        found = files(self.target)
        assert found == wanted or (found == before and not finished), "the target is neither old nor new"
        work()
        assert files(self.target) == wanted
        assert [p.name for p in self.folder.iterdir() if p.name.startswith(".lastro")] == []


def files(folder: Path) -> dict[str, str]:
    return {k: v for k, v in truth(MemorySource([], folder)).items() if k.startswith("file ")}


@pytest.mark.seeded
@pytest.mark.parametrize("life_number", range(LIVES * scale()))
def test_kills_at_any_point_lose_nothing(tmp_path: Path, life_number: int) -> None:
    """Kill backups, prunes and restores of one tenant a hundred times; check what was acknowledged all along."""
    life = Life(tmp_path, seed=20_261_122 + life_number)
    for kill in range(KILLS_PER_LIFE):
        step = life.rng.choice([life.backup_killed] * 6 + [life.prune_killed] * 2 + [life.restore_killed] * 2)
        step()
        if kill % 10 == 9 and life.wanted:
            life.check([max(life.wanted)])
    life.change()
    expected = truth(life.source)
    life.head += 1
    backup(life.repository(), life.source, life.head)
    life.wanted[life.head] = expected
    prune(life.repository(), forget={}, head=life.head, dry_run=False, progress=NullProgress())
    life.check(sorted(life.wanted), deep=True)
    assert not list((tmp_path / "store" / "r" / "r").glob("tombstones/*"))
