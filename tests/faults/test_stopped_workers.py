"""A worker is stopped (SIGSTOP) before its manifest, taken for dead, fenced, swept behind, and then goes on.

A thousand rounds for each kind of store in `make soak`. Whatever it does when it wakes up: no late
commit, and no backup that was acknowledged lacks a chunk.
"""

import os
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stores
from engine import faults
from engine.adapters import parse_config
from engine.errors import LastroError
from engine.keys import Keyring, RootKey
from engine.ports import Store
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.verify import verify_backup
from stores._retry import RetryStore
from tests.conftest import scale
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth
from tests.services.kinds import StoreValues, store_made

KINDS = ("local", "s3", "sftp")
ROUNDS = 20
ROUNDS_REMOTE = 8
"""In the suite, where a request takes milliseconds."""
LIVES_SOAK = 50
"""So that a soak stops a thousand workers on each kind of store."""
LABELS = (
    "backup.before_manifest", "backup.before_manifest", "backup.chunks_stored", "index.stored", "session.pack_stored",
    "session.pack_stored:2",
)  # fmt: skip
STOPPED, COMMITTED, REFUSED = "stopped", 0, 4


class Tenant:
    """A repository in a store of one kind, and what its catalogue would know."""

    def __init__(self, kind: str, values: dict[str, str], folder: Path, seed: int) -> None:
        self.kind, self.values, self.rng = kind, values, random.Random(seed)
        store = store_made(kind, values)
        root = RootKey.generate()
        self.keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        Repository.create(store, repository_id="r", tenant_id="t", keyring=self.keyring, root=root)
        store.close()
        self.store = self.opened()
        self.table = MemoryTable("rows", {n: f"row {n}" for n in range(100)})
        (folder / "tree").mkdir()
        self.tree = folder / "tree"
        self.source = MemorySource([self.table], self.tree, b"ddl")
        self.head, self.wanted = 0, dict[int, dict[str, Any]]()

    def opened(self) -> Store:
        """The store as a process of its own opens it."""
        adapter: Any = stores.load_all().get(self.kind)
        return RetryStore(adapter(parse_config(adapter.Config, self.values)), wait_first_seconds=0.01)

    def change(self) -> dict[str, Any]:
        """Change rows and files; what a backup taken now must give back."""
        for _ in range(5):
            self.table.set(self.rng.randrange(200), f"v{self.rng.randrange(9999)}")
        (self.tree / f"f{self.rng.randrange(4)}").write_bytes(self.rng.randbytes(self.rng.choice([100, 70_000])))
        return truth(self.source)

    def back_up(self, store: Store) -> None:
        repository = Repository(store, self.keyring, cache=None)
        parent = repository.manifest(max(self.wanted)) if self.wanted else None
        backup(repository, self.source, self.head, parent=parent)

    def backed_up(self) -> None:
        expected = self.change()
        self.head += 1
        self.back_up(self.store)
        self.wanted[self.head] = expected

    def prune(self) -> None:
        ending = {n: "retention" for n in self.wanted if n != max(self.wanted) and self.rng.random() < 0.3}
        prune(Repository(self.store, self.keyring, cache=None), forget=ending, head=self.head, dry_run=False,
              progress=NullProgress())  # fmt: skip
        for number in ending:
            self.wanted.pop(number)

    def check(self) -> None:
        repository = Repository(self.store, self.keyring, cache=None)
        for number, expected in self.wanted.items():
            manifest = repository.manifest(number)
            assert content(repository, manifest) == expected
            assert verify_backup(repository, manifest, deep=True, progress=NullProgress()) == []


def _stopped_at(label: str, work: Callable[[], None]) -> int:
    """Run work in a child that stops at the label; its process id, or 0 when it came to its end without passing it."""
    child = os.fork()
    if child == 0:
        try:
            faults._wanted, _, faults._nth = label.partition(":")
            faults._passages, faults._signal = 0, signal.SIGSTOP
            work()
        except LastroError:
            os._exit(REFUSED)
        except BaseException:  # The child ends here, whatever it was.
            traceback.print_exc()
            os._exit(3)
        os._exit(COMMITTED)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return child
    assert os.waitstatus_to_exitcode(status) == COMMITTED
    return 0


def _continued(child: int) -> int:
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _round(tenant: Tenant) -> None:
    expected = tenant.change()
    tenant.head += 1
    number = tenant.head
    child = _stopped_at(tenant.rng.choice(LABELS), lambda: tenant.back_up(tenant.opened()))
    if not child:
        tenant.wanted[number] = expected
        return
    try:
        holder = Repository(tenant.store, tenant.keyring, cache=None).void(number, "lost")
        assert holder.kind == "void", "it was stopped before its manifest"
        for step in tenant.rng.choice([("prune",), ("backup", "prune"), ("prune", "backup"), ("backup",)]):
            tenant.prune() if step == "prune" else tenant.backed_up()
    finally:
        ended = _continued(child)
    assert ended == REFUSED, f"a fenced worker ended with {ended}"
    assert Repository(tenant.store, tenant.keyring, cache=None).manifest(number).kind == "void", "a late commit"


@pytest.mark.seeded
@pytest.mark.parametrize("life", range(LIVES_SOAK if scale() > 1 else 1))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_worker_commits_nothing_late(
    kind: str, life: int, store_values: StoreValues, tmp_path: Path, seed: int
) -> None:
    """Goal: fencing holds without locks in stores; stop, fence, sweep behind, continue, and look at everything."""
    tenant = Tenant(kind, store_values(kind), tmp_path, seed)
    tenant.backed_up()
    for number in range(ROUNDS if kind == "local" or scale() > 1 else ROUNDS_REMOTE):
        _round(tenant)
        if number % 7 == 6:
            tenant.check()
    tenant.prune()
    tenant.check()
    tenant.store.close()
