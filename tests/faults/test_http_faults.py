"""A server that fails in every way at every request: the whole engine through a fault proxy in front of a real S3 server.

One short life of a tenant (backups, verification, prune, restore) is lived with one fault in it; afterwards, with the
server well again, the invariants of the fault table are judged: what was acknowledged is exact (A), what was not
committed does not look complete (B), a rerun ends (C), and every failure was typed (D, G).
"""

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from engine.adapters import parse_config
from engine.errors import LastroError, ObjectDamaged, StoreDenied, StoreFull, StoreUnreachable
from engine.keys import Keyring, RootKey
from engine.ports import Store
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.verify import verify_backup
from stores._faulty import FaultyStore
from stores._retry import RetryStore
from stores.s3 import S3Store
from tests.conftest import Rounds
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth
from tests.services.fault_proxy import FaultProxy, HttpFault, Kind, Operation, fault_proxy
from tests.services.seaweed import Seaweed

PASSING: tuple[Kind, ...] = ("500", "503", "SlowDown", "429", "reset", "lost_reply", "truncated", "drip")
"""Faults that patience overcomes: the life goes on as if nothing had been."""
LYING: tuple[Kind, ...] = ("stale_list", "truncated_list", "shortened")
OPERATIONS: tuple[Operation, ...] = ("put", "create", "get", "head", "list", "delete", "delete_many")
PASSAGES_MAX = 40


@pytest.fixture(scope="module")
def proxy(s3_server: Seaweed) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.port) as proxy:
        yield proxy


class Life:
    """A tenant's repository behind the proxy, and what its catalogue would know."""

    def __init__(self, proxy: FaultProxy, values: dict[str, str], folder: Path, *, singly: bool = False) -> None:
        self.proxy = proxy
        proxy.faults = []
        values = {**values, "endpoint": proxy.endpoint, "read_seconds": "1"}
        self.raw = S3Store(parse_config(S3Store.Config, values))
        inner: Store = FaultyStore(self.raw) if singly else self.raw  # Without faults it only hides bulk deletions.
        store = RetryStore(inner, wait_first_seconds=0.001, wait_seconds_max=0.01, tries_max=20)
        root = RootKey.generate()
        self.keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        Repository.create(store, repository_id="r", tenant_id="t", keyring=self.keyring, root=root)
        self.store, self.folder = store, folder
        self.table = MemoryTable("rows", {n: f"row {n}" for n in range(40)})
        (folder / "tree").mkdir()
        self.source = MemorySource([self.table], folder / "tree", b"ddl")
        self.head, self.wanted = 0, dict[int, dict[str, Any]]()
        self.unsettled: dict[int, dict[str, Any]] = {}
        self.errors: list[LastroError] = []

    def repository(self) -> Repository:
        return Repository(self.store, self.keyring, cache=None)

    def live(self) -> None:
        """Two backups, a look at them, a prune, a third backup, a restore; a typed error ends only its own step."""
        for step in (self.back_up, self.back_up, self.verify, self.prune, self.back_up, self.restore):
            try:
                step()
            except LastroError as error:
                self.errors.append(error)

    def settle(self) -> None:
        """Close the numbers of sessions that failed, or adopt what they committed after all; before anything else."""
        for number, expected in list(self.unsettled.items()):
            holder = self.repository().void(number, "failed")
            if holder.kind == "manifest":
                self.wanted[number] = expected
            self.unsettled.pop(number)

    def back_up(self) -> None:
        self.settle()
        self.head += 1
        self.table.set(self.head, f"changed {self.head}")
        (self.folder / "tree" / f"f{self.head}").write_bytes(random.Random(self.head).randbytes(30_000))
        expected = truth(self.source)
        self.unsettled[self.head] = expected
        repository = self.repository()
        parent = repository.manifest(max(self.wanted)) if self.wanted else None
        backup(repository, self.source, self.head, parent=parent)
        self.wanted[self.head] = self.unsettled.pop(self.head)

    def verify(self) -> None:
        repository = self.repository()
        for number in self.wanted:
            found = verify_backup(repository, repository.manifest(number), deep=True, progress=NullProgress())
            if found:  # A body that was cut on its way looks like damage, as it must.
                raise ObjectDamaged(found[0].message)

    def prune(self) -> None:
        self.settle()
        ending = dict.fromkeys(sorted(self.wanted)[:-1], "retention")
        for number in ending:  # Decided and recorded before it is done: it may be gone from here on.
            self.wanted.pop(number)
        prune(self.repository(), forget=ending, head=self.head, dry_run=False, progress=NullProgress())

    def restore(self) -> None:
        repository = self.repository()
        for number, expected in self.wanted.items():
            assert content(repository, repository.manifest(number)) == expected

    def judge(self) -> None:
        """The server is well again: settle what was left open, look at all that was acknowledged, go on."""
        self.proxy.faults = []
        self.settle()
        self.restore()
        self.back_up()
        self.prune()
        self.verify()
        self.restore()


@pytest.fixture
def life(
    proxy: FaultProxy,
    s3_store_values: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Life:
    monkeypatch.setattr("engine.index_set.SEGMENTS_MAX", 1)  # So that a short life merges its index, too.
    operation = getattr(request.node, "callspec", None) and request.node.callspec.params.get("operation")
    return Life(proxy, s3_store_values, tmp_path, singly=operation == "delete")


@functools.cache
def _passages() -> dict[Operation, int]:
    """How many requests of each sort a life makes; filled by the first one."""
    return {}


def _counted(life: Life) -> dict[Operation, int]:
    passages = _passages()
    if not passages:
        begun = len(life.proxy.requests)
        life.live()
        assert life.errors == []
        for operation, _ in life.proxy.requests[begun:]:
            passages[operation] = passages.get(operation, 0) + 1
    return passages


def test_a_life_without_faults(life: Life) -> None:
    """Goal: the set-up itself is sound, and uses every sort of request; live it through the proxy untouched."""
    assert set(_counted(life)) >= set(OPERATIONS) - {"delete"}
    life.judge()


@pytest.mark.seeded
@pytest.mark.parametrize("operation", OPERATIONS)
def test_passing_faults_are_not_noticed(operation: Operation, life: Life, rng: random.Random, rounds: Rounds) -> None:
    """Goal: whatever passes is overcome (C); let requests of one sort fail in every such way, up to 3 times on end."""
    most = _counted(life).get(operation, 1)
    kinds = [kind for kind in PASSING if HttpFault(kind, operation).fits(operation)]
    for _ in rounds(1):
        life.proxy.faults = [
            HttpFault(kind, operation, rng.randint(1, most), times=rng.randint(1, 3), seconds=0.05) for kind in kinds
        ]
        life.live()
        assert life.errors == []
        assert life.proxy.struck


@pytest.mark.seeded
@pytest.mark.parametrize("operation", ["put", "create", "get", "list"])
def test_silence_ends(operation: Operation, life: Life, rng: random.Random) -> None:
    """Goal: a server that does not answer holds nobody for ever; be silent for longer than the read timeout, once."""
    life.proxy.faults = [HttpFault("timeout", operation, rng.randint(1, 3), seconds=1.2)]
    life.live()
    assert life.errors == []
    assert life.proxy.struck == 1
    life.judge()


@pytest.mark.seeded
@pytest.mark.parametrize("kind", LYING)
def test_lies_are_not_believed(kind: Kind, life: Life, rng: random.Random, rounds: Rounds) -> None:
    """Goal: nothing is deleted because a listing lacks it, no short body passes for whole (A D); lie at any request."""
    most = _counted(life)["get" if kind == "shortened" else "list"]
    for _ in rounds(2):
        life.proxy.faults = [HttpFault(kind, at=rng.randint(1, most), times=rng.randint(1, 2))]
        life.live()
        life.judge()


@pytest.mark.seeded
@pytest.mark.parametrize("operation", OPERATIONS)
def test_refusals_end_the_step_and_nothing_else(operation: Operation, life: Life, rng: random.Random) -> None:
    """Goal: a right that is taken away is said and does not storm (G); refuse one request of each sort."""
    life.proxy.faults = [HttpFault("403", operation, rng.randint(1, _counted(life).get(operation, 1)))]
    life.live()
    assert life.proxy.struck <= 1, "a refusal was asked again"
    assert all(isinstance(error, StoreDenied) for error in life.errors)
    life.judge()


@pytest.mark.seeded
@pytest.mark.parametrize("operation", ["put", "create"])
def test_a_full_store_is_said_and_nothing_is_lost(operation: Operation, life: Life, rng: random.Random) -> None:
    """Goal: a store that fills up fails cleanly (A B G), asked once; let it be full at one write of each sort."""
    life.proxy.faults = [HttpFault("507", operation, rng.randint(1, _counted(life).get(operation, 1)))]
    life.live()
    assert life.proxy.struck == 1
    assert [type(error) for error in life.errors] == [StoreFull]
    life.judge()


@pytest.mark.seeded
def test_an_outage_at_any_moment_is_typed_and_mended(life: Life, rng: random.Random, rounds: Rounds) -> None:
    """Goal: a server that goes away in the middle leaves only garbage (B C); let it go from a random request on."""
    for _ in rounds(2):
        life.proxy.faults = [HttpFault("503", None, rng.randint(1, PASSAGES_MAX), times=10**6)]
        life.live()
        life.proxy.faults = []
        assert life.errors
        assert all(isinstance(error, StoreUnreachable) for error in life.errors)
        life.judge()
        life.errors.clear()


def test_the_kinds_of_faults_are_all_sent() -> None:
    """Goal: no fault of the proxy is forgotten; compare its kinds with those that the tests above send."""
    assert set(get_args(Kind)) == {*PASSING, *LYING, "timeout", "403", "507"}


def test_append_only_credentials_suffice_for_backups(life: Life) -> None:
    """Goal: who steals the credentials of a backup deletes nothing, and backups go on; refuse every deletion for ever."""
    refuse: Callable[[Operation], HttpFault] = lambda operation: HttpFault("403", operation, times=10**6)  # noqa: E731
    life.proxy.faults = [refuse("delete"), refuse("delete_many")]
    for _ in range(6):
        asked = life.proxy.struck
        life.back_up()
        assert life.proxy.struck - asked <= 2, "a refusal became a storm"  # In bulk, then alone.
    assert life.proxy.struck > 0, "no merge of the index wanted to delete"
    life.judge()
    prefix = f"{life.repository().prefix}index/"
    assert len(list(life.store.list(prefix))) <= 3, "what was left is not cleared once deleting is allowed"
