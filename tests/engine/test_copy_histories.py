"""Backups, prunes, copies, their prunes, damage, repairs and reads in any order over stores that fail: nothing is lost."""

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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.copy_prune import copy_prune
from engine.errors import LastroError
from engine.fallback import Place, ReadingRepository
from engine.progress import NullProgress
from engine.prune import prune
from engine.repair import repository_repair
from engine.repository import Repository
from engine.selections import selection_read
from engine.verify_store import CIRCLE, Share, store_verify_bytes, store_verify_structure
from stores._faulty import Fault, FaultyStore
from tests.engine.copy_places import Places
from tests.engine.memory_source import content

STEPS = 20
EXAMPLES = 12 * int(os.environ.get("LASTRO_TEST_SCALE", "1"))
FAULTS = ["error", "full", "lost_reply", "dead", "truncated_list", "stale_list", "truncated_get", "flipped_get"]
KINDS = ["flip", "cut", "lose", "empty"]


class Life(RuleBasedStateMachine):
    """A primary and one copy; `held` are the backups that the copy promises, `hurt` the place that was damaged."""

    def __init__(self) -> None:
        super().__init__()
        self._fsync, os.fsync = os.fsync, lambda fd: None
        self.folder = Path(tempfile.mkdtemp(prefix="lastro-copies-"))
        self.places = Places(self.folder / "x")
        self.hurt = ""
        self.held: frozenset[int] = frozenset()
        self.gone: dict[int, dict[str, Any]] = {}
        """Backups that the primary has ended and the copy may still hold."""

    def teardown(self) -> None:
        os.fsync = self._fsync
        shutil.rmtree(self.folder)

    def _all(self) -> dict[int, dict[str, Any]]:
        return {**self.places.expected, **self.gone}

    @rule(seed=st.integers(0, 1 << 20))
    def change(self, seed: int) -> None:
        rng = random.Random(seed)
        self.places.change(*(f"f{rng.randrange(8)}" for _ in range(rng.randrange(1, 5))), size=rng.choice((9, 20_000)))

    @rule(plain=st.booleans())
    def back_up(self, plain: bool) -> None:
        try:
            self.places.backup(encrypt=not plain)
        except LastroError:
            assert self.hurt == "primary"

    @precondition(lambda self: not self.hurt)
    @rule(seed=st.integers(0, 1 << 20))
    def prune_the_primary(self, seed: int) -> None:
        rng = random.Random(seed)
        ending = {n: "x" for n in self.places.expected if rng.random() < 0.4}
        self._prune(ending)
        for number in ending:
            self.gone[number] = self.places.expected.pop(number)

    def _prune(self, ending: dict[int, str]) -> None:
        prune(self.places.repository(), forget=ending, head=self.places.head, dry_run=False, progress=NullProgress())

    @rule(
        look=st.booleans(), kind=st.sampled_from([None, *FAULTS]), at=st.integers(1, 40), seed=st.integers(0, 1 << 20)
    )
    def copy(self, look: bool, kind: Any, at: int, seed: int) -> None:
        """Copy some or all; a store that fails leaves a copy that a second run completes."""
        rng = random.Random(seed)
        numbers = frozenset(n for n in self.places.expected if rng.random() < 0.8)
        wanted = numbers or frozenset(self.places.expected)
        if kind is not None:
            faulty = FaultyStore(self.places.store("copy"), [Fault(kind, at=at)])
            with suppress(LastroError):
                self.places.copy(store=faulty, wanted=wanted, look=look, workers=2)
            self._known()
        report = self.places.copy(wanted=wanted, look=look or kind is not None)
        assert self.hurt or not report.failed
        assert self.hurt or report.held >= wanted
        self.held = report.held

    def _known(self) -> None:
        """What a run that failed had promised: the catalogue's number of the selection lags behind at the most."""
        repository = self.places.repository("copy")
        with suppress(LastroError):
            self.places.serials["copy"] = selection_read(repository).serial

    @precondition(lambda self: not self.hurt and self.held)
    @rule(seed=st.integers(0, 1 << 20), kind=st.sampled_from([None, *FAULTS]), at=st.integers(1, 40))
    def prune_the_copy(self, seed: int, kind: Any, at: int) -> None:
        rng = random.Random(seed)
        drop = {n for n in self.held if n in self.gone or rng.random() < 0.2}
        faulty = FaultyStore(self.places.store("copy"), [Fault(kind, at=at)] if kind else [])
        for store in (faulty, None):
            try:
                report = copy_prune(
                    self.places.repository("copy", store), drop=drop, copy="copy",
                    selection=self.places.serials["copy"], dry_run=False, progress=NullProgress(),
                )  # fmt: skip
            except LastroError:
                assert store is not None
                self._known()
                continue
            self.places.serials["copy"] = report.selection
            break
        self.held -= drop
        for number in drop & self.gone.keys():
            del self.gone[number]

    @precondition(lambda self: not self.hurt and self.places.expected and self.held == frozenset(self._all()))
    @rule(place=st.sampled_from(["primary", "copy"]), kind=st.sampled_from(KINDS), seed=st.integers(0, 1 << 20))
    def damage(self, place: str, kind: str, seed: int) -> None:
        """Hurt some objects of one place while the other holds everything."""
        rng = random.Random(seed)
        if self.gone:
            return  # Of what the primary has ended only the copy has all.
        top = self.places.folder / place / "r/r"
        files = sorted(each for each in top.rglob("*") if each.is_file() and each.relative_to(top).parts[0] in _HURT)
        for path in rng.sample(files, min(len(files), rng.randrange(1, 6))):
            blob = bytearray(path.read_bytes())
            if kind == "flip":
                blob[rng.randrange(len(blob))] ^= 1
            path.write_bytes({"flip": blob, "cut": blob[: len(blob) // 2], "empty": b""}.get(kind, b""))
            if kind == "lose":
                path.unlink()
        self.hurt = place

    @precondition(lambda self: self.hurt)
    @rule()
    def repair(self) -> None:
        """Verify, mend from the other place, bring what is left, and find nothing more."""
        name, other = self.hurt, "copy" if self.hurt == "primary" else "primary"
        keys = {each.key for each in self._findings(name)}
        place = Place(other, lambda: self.places.repository(other))
        report = repository_repair(
            self.places.repository(name),
            [place],
            keys,
            is_primary=name == "primary",
            name=name,
            numbers=list(self.places.expected),
            progress=NullProgress(),
        )
        if name == "copy":
            self.held = self.places.copy(recheck=frozenset(self.places.expected)).held
        left = self._findings(name)
        assert not left, (left, report)
        self.hurt = ""

    def _findings(self, name: str) -> list[Any]:
        repository = self.places.repository(name)
        numbers = self.places.expected if name == "primary" else self.held
        report = store_verify_structure(repository, dict.fromkeys(numbers, ""), progress=NullProgress())
        read = store_verify_bytes(repository, Share(0, CIRCLE), deep=True, progress=NullProgress())
        return [*report.findings, *read.findings]

    @invariant()
    def everything_can_be_read(self) -> None:
        """What the primary has acknowledged, through any of the two; what the copy promises, from it alone while it is whole."""

        def opened(name: str) -> Repository:
            return Repository.open(self.places.store(name), repository_id="r", keyring=self.places.keyring)

        reading = ReadingRepository(
            [Place(name, lambda name=name: opened(name)) for name in ("primary", "copy")],
            keyring=self.places.keyring,
            cache=None,
        )
        for number, expected in self.places.expected.items():
            assert content(reading, reading.manifest(number)) == expected
        if self.hurt != "copy":
            for number in self.held:
                repository = self.places.repository("copy")
                assert content(repository, repository.manifest(number)) == self._all()[number]


_HURT = ("data", "meta", "plain", "index", "manifests")

Life.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCopies = pytest.mark.seeded(Life.TestCase)
