"""Find out whether a store keeps the promises that a repository rests on, before it is trusted."""

import datetime
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine.errors import LastroError, ObjectExists, ObjectLocked, StoreDenied, StoreError, StoreUnreachable
from engine.ports import LockingStore, Store, VersionedStore

PROBE_FOLDER = "probe"
PROBE_BYTES = 1024
LEFTOVERS_MAX = 50
LEFTOVER_SECONDS = 600
LOCK_SECONDS = 60
"""So long a probe of the lock stays; the next test clears it away."""
SKEW_SECONDS_MAX = 60.0

StepState = Literal["ok", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found: `missing` is something that a store can do without, `failed` is not."""

    name: str
    state: StepState
    said: str
    hint: str = ""
    error: LastroError | None = None


@dataclass(frozen=True, slots=True)
class StoreProbe:
    """What a test of a store found out, step by step."""

    steps: tuple[Step, ...]
    conditional: bool
    """The store itself refused a second create of a taken key: it can be a primary."""
    deletes: bool
    """False for append-only credentials: backups work, prune does not."""
    versions: bool
    """It keeps older versions behind deletions."""
    locked_until: datetime.datetime | None
    """How long the probe of the lock stays."""
    free_bytes: int | None

    @property
    def usable(self) -> bool:
        """Everything that a copy needs is there."""
        return not any(step.state == "failed" for step in self.steps)

    @property
    def warned(self) -> bool:
        """Something is missing that a store can do without."""
        return any(step.state == "missing" for step in self.steps)

    def require(self) -> None:
        """Raise the error of the first step that failed."""
        for step in self.steps:
            if step.state == "failed":
                raise step.error or StoreError(step.said, hint=step.hint)


def probe_store(store: Store, *, lock: bool = False) -> StoreProbe:
    """Write, read, list, refuse, lock (when asked to) and delete one small object.

    Refusals become findings, in words; StoreUnreachable is raised. The store must not lock what it is given by
    itself: with `lock` the probe is locked for LOCK_SECONDS, and stays so long. Leftovers of earlier probes go.
    """
    return _Probing(store).run(lock=lock)


class _Probing:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.key = f"{PROBE_FOLDER}/{secrets.token_hex(12)}"
        self.content = secrets.token_bytes(PROBE_BYTES)
        self.steps: list[Step] = []
        self.conditional = self.deletes = self.versions = False
        self.until: datetime.datetime | None = None

    def run(self, *, lock: bool) -> StoreProbe:
        if self._step("write", self._write):
            try:
                self._step("read", self._read)
                self._step("list", self._list)
                self._step("refuse", self._refuse, missing=True)
                if lock:
                    self._step("lock", self._lock)
            finally:
                self._step("delete", self._delete, missing=True)
        free = getattr(self.store, "free_bytes", None)
        return StoreProbe(
            tuple(self.steps), self.conditional, self.deletes, self.versions, self.until, free() if free else None
        )

    def _step(self, name: str, work: Callable[[], str], *, missing: bool = False) -> bool:
        """Take a step; a refusal is `missing` where a store can do without it."""
        try:
            self.steps.append(Step(name, "ok", work()))
        except StoreUnreachable:
            raise
        except LastroError as error:
            state: StepState = "missing" if missing and isinstance(error, _Without | StoreDenied) else "failed"
            self.steps.append(Step(name, state, error.message, error.hint, error))
            return False
        return True

    def _write(self) -> str:
        began = time.monotonic()
        self.store.create(self.key, [self.content[:10], self.content[10:]])
        return f"{PROBE_BYTES} bytes in {(time.monotonic() - began) * 1000:.0f} ms"

    def _read(self) -> str:
        if self.store.get(self.key) != self.content or self.store.get(self.key, 3, 7) != self.content[3:10]:
            raise StoreError("the store gave back other bytes than were written", hint="do not use it")
        info = self.store.stat(self.key)
        if info.size != len(self.content):
            raise StoreError("the store reports another size than was written", hint="do not use it")
        skew = abs((datetime.datetime.now(datetime.UTC) - info.modified).total_seconds())
        return "whole and in part" if skew < SKEW_SECONDS_MAX else f"whole and in part; its clock is {skew:.0f} s away"

    def _list(self) -> str:
        if [info.key for info in self.store.list(self.key)] != [self.key]:
            raise StoreError("the store does not list what was just written", hint="its listings lag behind")
        return "what was just written"

    def _refuse(self) -> str:
        """The double create is the point: a store that takes a second one cannot tell two workers apart."""
        self.store.create(self.key, [self.content])  # The same bytes again: a reply that was lost.
        try:
            self.store.create(self.key, [self.content[::-1]])
        except ObjectExists:
            if self.store.get(self.key) == self.content:
                self.conditional = True
                return "double creates"
        raise _Without(
            "the store overwrote an object on a conditional create", hint="it cannot be a primary; it may hold copies"
        )

    def _lock(self) -> str:
        if not isinstance(self.store, LockingStore):
            raise StoreError("this kind of store has no locks", hint="set it up without them")
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=LOCK_SECONDS)
        self.store.lock(self.key, until)
        held = self.store.locked_until(self.key)
        if held is None:
            raise StoreError("the store took the lock and does not show it", hint="does the bucket have Object Lock?")
        self.until = held
        try:
            self.store.delete(self.key)
        except ObjectLocked:
            return f"a deletion was refused; the probe stays until {held:%H:%M:%S} UTC"
        raise StoreError(
            "the store deleted an object that was locked", hint="its locks protect nothing: do not rely on them"
        )

    def _delete(self) -> str:
        self._clear_leftovers()
        if self.until is not None:
            self.deletes = True  # Refused for the lock alone, as the step before has shown.
            return "after the lock has run out"
        self.store.delete(self.key)
        if any(info.key == self.key for info in self.store.list(self.key)):
            raise StoreError("the store still lists what was deleted", hint="its listings lag behind")
        self.deletes = True
        return "what was written" + self._purged()

    def _purged(self) -> str:
        if not isinstance(self.store, VersionedStore):
            return ""
        try:
            self.versions = self.store.purge(self.key) > 0
        except StoreDenied:
            self.versions = True
            return "; older versions stay, the credentials may not delete them"
        return "; the bucket keeps older versions behind deletions" if self.versions else ""

    def _clear_leftovers(self) -> None:
        """Remove probes whose locks have run out; what cannot be removed is a kilobyte."""
        oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=LEFTOVER_SECONDS)
        for _, info in zip(range(LEFTOVERS_MAX), self.store.list(f"{PROBE_FOLDER}/"), strict=False):
            if info.modified < oldest:  # A younger one may be somebody's who tests just now.
                try:
                    self.store.delete(info.key)
                except ObjectLocked:
                    continue
                except StoreDenied:
                    return


class _Without(StoreError):
    """The store lacks something that it can do without."""
