"""Retry, dry run and the shipped fake: wrappers around any store."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.errors import (
    CancelledError,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from engine.ports import Buffer, Store
from stores._dryrun import DryRunStore
from stores._faulty import Fault, FaultyStore
from stores._probe import probe_store
from stores._retry import RetryStore
from stores.local import LocalConfig, LocalStore


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def inner(tmp_path: Path) -> LocalStore:
    return LocalStore.make(LocalConfig(path=str(tmp_path / "store")))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def retry(store: Store, clock: Clock, **options: object) -> RetryStore:
    return RetryStore(
        store,
        clock=lambda: clock.now,
        sleep=clock.sleep,
        draw=lambda low, high: high,
        **options,  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------- retry

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a/k", [b"new"]),
    "create": lambda store: store.create("a/new", [b"new"]),
    "get": lambda store: store.get("a/k"),
    "stat": lambda store: store.stat("a/k"),
    "delete": lambda store: store.delete("a/k"),
    "list": lambda store: [info.key for info in store.list("")],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_may_pass_is_tried_again(name: str, inner: LocalStore, clock: Clock) -> None:
    """Goal: a short outage is not noticed; fail each operation three times and compare with an unfailing store."""
    inner.put("a/k", [b"old"])
    faulty = FaultyStore(inner, [Fault("error", times=3)])
    OPERATIONS[name](retry(faulty, clock))
    assert [operation for operation, _ in faulty.calls] == [name] * 4
    assert clock.waits == [0.2, 0.4, 0.8]


@pytest.mark.parametrize("name", ["put", "create", "delete"])
def test_lost_replies_are_repeated(name: str, inner: LocalStore, clock: Clock) -> None:
    """Goal: a write that was done and not confirmed ends well and once; lose its reply twice."""
    inner.put("a/k", [b"old"])
    OPERATIONS[name](retry(FaultyStore(inner, [Fault("lost_reply", times=2)]), clock))
    present = {info.key: inner.get(info.key) for info in inner.list("")}
    expected = {"put": {"a/k": b"new"}, "create": {"a/k": b"old", "a/new": b"new"}, "delete": {}}
    assert present == expected[name]


@pytest.mark.parametrize("kind", ["denied", "full"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_refusals_are_asked_once(name: str, kind: str, inner: LocalStore, clock: Clock) -> None:
    """Goal: a 403 does not storm; refuse each operation and count the calls."""
    inner.put("a/k", [b"old"])
    faulty = FaultyStore(inner, [Fault(kind, times=99)])  # type: ignore[arg-type]
    with pytest.raises((StoreDenied, StoreFull)):
        OPERATIONS[name](retry(faulty, clock))
    assert len(faulty.calls) == 1
    assert clock.waits == []


def test_absence_and_presence_are_answers(inner: LocalStore, clock: Clock) -> None:
    """Goal: ObjectMissing and ObjectExists come at once; ask for both."""
    store = retry(inner, clock)
    store.create("k", [b"x"])
    with pytest.raises(ObjectMissing):
        store.get("none")
    with pytest.raises(ObjectExists):
        store.create("k", [b"y"])
    assert clock.waits == []


def test_the_deadline_ends_it(inner: LocalStore, clock: Clock) -> None:
    """Goal: an outage becomes an error in bounded time, with bounded waits; never answer."""
    store = retry(FaultyStore(inner, [Fault("error", times=10**6)]), clock, deadline_seconds=60, wait_seconds_max=7)
    with pytest.raises(StoreUnreachable):
        store.get("k")
    assert clock.now <= 60
    assert max(clock.waits) == 7


def test_the_tries_end_it(inner: LocalStore, clock: Clock) -> None:
    """Goal: waits of nothing do not spin for ever; draw zero each time."""
    faulty = FaultyStore(inner, [Fault("error", times=10**6)])
    store = RetryStore(faulty, clock=lambda: 0.0, sleep=clock.sleep, draw=lambda low, high: low, tries_max=9)
    with pytest.raises(StoreUnreachable):
        store.stat("k")
    assert len(faulty.calls) == 9


def test_waits_are_drawn_between_nothing_and_the_bound(inner: LocalStore, clock: Clock) -> None:
    """Goal: workers do not come back together; see what is asked of the dice."""
    asked: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 2

    faulty = FaultyStore(inner, [Fault("error", times=4)])
    RetryStore(faulty, clock=lambda: clock.now, sleep=clock.sleep, draw=draw, wait_seconds_max=1.0).put("k", [b""])
    assert asked == [(0.0, 0.2), (0.0, 0.4), (0.0, 0.8), (0.0, 1.0)]


def test_a_broken_listing_goes_on_where_it_was(inner: LocalStore, clock: Clock) -> None:
    """Goal: every key once, in order, though the listing breaks off; break it twice."""
    keys = [f"k/{number:02d}" for number in range(40)]
    for key in keys:
        inner.put(key, [b""])
    faulty = FaultyStore(inner, [Fault("broken_list", times=2)])
    assert [info.key for info in retry(faulty, clock).list("k/")] == keys
    assert len(faulty.calls) == 3


def test_a_wait_can_be_cancelled(inner: LocalStore, clock: Clock) -> None:
    """Goal: an operator's stop is heard between tries; cancel at the second wait."""
    heard: list[tuple[StoreError, float]] = []

    def check() -> None:
        if len(heard) == 1:
            raise CancelledError("stopped")

    faulty = FaultyStore(inner, [Fault("error", times=99)])
    with pytest.raises(CancelledError):
        retry(faulty, clock, check=check, on_retry=lambda error, wait: heard.append((error, wait))).get("k")
    assert len(faulty.calls) == 2
    assert heard[0][1] == 0.2


# ---------------------------------------------------------------- dry run


def test_dry_run_refuses_every_write(inner: LocalStore) -> None:
    """Goal: nothing changes and the operator learns what would; try each write, then read."""
    inner.put("k", [b"x"])
    store = DryRunStore(inner)
    writes: list[Callable[[], None]] = [
        lambda: store.put("k", [b"y"]),
        lambda: store.create("l", [b"y"]),
        lambda: store.delete("k"),
    ]
    for write in writes:
        with pytest.raises(StoreDenied, match="dry run"):
            write()
    assert store.get("k") == b"x"
    assert store.stat("k").size == 1
    assert [info.key for info in store.list("")] == ["k"]


def test_dry_run_can_pretend(inner: LocalStore) -> None:
    """Goal: a whole path runs to its end and is counted; write, create, clash and delete."""
    inner.put("k", [b"x"])
    store = DryRunStore(inner, pretend=True)
    store.put("k", [b"yy", b"y"])
    store.create("l", [b"zz"])
    store.create("k", [b"x"])
    with pytest.raises(ObjectExists):
        store.create("k", [b"other"])
    store.delete("k")
    assert (store.objects_written, store.bytes_written, store.objects_deleted) == (2, 5, 1)
    assert [(info.key, info.size) for info in inner.list("")] == [("k", 1)]


# ---------------------------------------------------------------- the shipped fake


def test_faults_strike_at_the_counted_operation(inner: LocalStore) -> None:
    """Goal: "the Nth write of a pack" can be named; fail the second and third put below packs/."""
    store = FaultyStore(inner, [Fault("error", at=2, times=2, operations=frozenset({"put"}), prefix="packs/")])
    failed = []
    for number in range(5):
        store.put(f"index/{number}", [b""])
        try:
            store.put(f"packs/{number}", [b""])
        except StoreUnreachable:
            failed.append(number)
    assert failed == [1, 2]
    assert [info.key for info in inner.list("packs/")] == ["packs/0", "packs/3", "packs/4"]


def test_torn_and_lost_writes(inner: LocalStore) -> None:
    """Goal: the lies are what they say; tear one create and lose the reply of another."""
    store = FaultyStore(inner, [Fault("torn"), Fault("lost_reply", at=2)])
    for key in ("torn", "lost"):
        with pytest.raises(StoreUnreachable):
            store.create(key, [b"0123", b"4567"])
    assert inner.get("torn") == b"0123"
    assert inner.get("lost") == b"01234567"


def test_reads_that_lie(inner: LocalStore) -> None:
    """Goal: damage in silence can be made; truncate, empty and flip in turn."""
    inner.put("k", [b"0123456789"])
    store = FaultyStore(inner, [Fault("truncated_get"), Fault("empty_get", at=2), Fault("flipped_get", at=3)], seed=1)
    assert store.get("k") == b"01234"
    assert store.get("k") == b""
    flipped = store.get("k")
    assert sum((a ^ b).bit_count() for a, b in zip(flipped, b"0123456789", strict=True)) == 1
    assert store.get("k") == b"0123456789"


def test_lists_that_lie(inner: LocalStore) -> None:
    """Goal: stale and truncated listings can be made; list after a create and a delete, then half."""
    store = FaultyStore(inner, [Fault("stale_list"), Fault("truncated_list", at=2)])
    for number in range(12):
        inner.put(f"k/{number:02d}", [b""])
    store.delete("k/00")
    store.put("k/99", [b""])
    now = [f"k/{number:02d}" for number in (*range(1, 12), 99)]
    assert [info.key for info in store.list("k/")] == [f"k/{number:02d}" for number in range(12)]
    assert [info.key for info in store.list("k/")] == now[:6]
    assert [info.key for info in store.list("k/")] == now


def test_dead_stays_dead(inner: LocalStore) -> None:
    """Goal: a crash in mid-work can be made in one process; nothing is written after it."""
    store = FaultyStore(inner, [Fault("dead", at=3)])
    store.put("a", [b""])
    store.put("b", [b""])
    for operation in OPERATIONS.values():
        with pytest.raises(StoreUnreachable):
            operation(store)
    assert [info.key for info in inner.list("")] == ["a", "b"]


# ---------------------------------------------------------------- the probe


class Overwriting(LocalStore):
    """A store whose conditional create is a put."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.put(key, parts)


def test_the_probe_finds_a_store_that_overwrites(tmp_path: Path) -> None:
    """Goal: no repository on a store that cannot decide; probe one, and see that it may hold copies and is left clean."""
    store = Overwriting.make(LocalConfig(path=str(tmp_path / "store")))
    probe = probe_store(store)
    assert not probe.conditional
    assert probe.usable
    assert [(step.name, "cannot be a primary" in step.hint) for step in probe.steps if step.state == "missing"] == [
        ("refuse", True)
    ]
    assert list(store.list("")) == []


@pytest.mark.parametrize("fault", ["truncated_get", "empty_get", "flipped_get", "truncated_list", "error", "denied"])
def test_the_probe_finds_other_lies(fault: str, inner: LocalStore) -> None:
    """Goal: bad stores are met on saving, not on restoring; probe through each fault."""
    with pytest.raises(StoreError):
        probe_store(FaultyStore(inner, [Fault(fault, operations=frozenset({"create", "get", "list"}))])).require()  # type: ignore[arg-type]


def test_the_probe_tells_what_append_only_credentials_lack(inner: LocalStore) -> None:
    """Goal: a store that may not delete is a store; refuse every deletion, and read what the probe says."""
    probe = probe_store(FaultyStore(inner, [Fault("denied", times=99, operations=frozenset({"delete"}))]))
    assert probe.usable
    assert probe.conditional
    assert not probe.deletes
    assert [step.name for step in probe.steps if step.state == "missing"] == ["delete"]
