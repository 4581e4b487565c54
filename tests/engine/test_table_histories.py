"""Random histories of a table: every backup reads back exactly, and its digest is that of the rows alone."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import table_compare, table_runs, table_spans, table_write
from engine.progress import NullProgress
from engine.table_backup import backup_table
from engine.table_runs import table_digest
from engine.table_view import TableView, walk_table
from tests.engine.table_sources import KEYS, MemoryChunks, MemoryPart, any_field


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make buckets, blocks, spans and lists so small that a few hundred rows meet every boundary."""
    for module, names in (
        (table_runs, {"BUCKET_MASK": 3, "BUCKET_ROWS_MAX": 7}),
        (table_write, {"BLOCK_WEIGHT_MIN": 150, "BLOCK_WEIGHT_MAX": 1200, "BLOCK_WEIGHT_MEAN": 400}),
        (table_write, {"SPAN_BYTES": 600, "SPAN_BYTES_MIN": 150, "LIST_SPANS_MAX": 3, "SPANS_IN_FLIGHT_MAX": 1}),
        (table_spans, {"CHANGED_SHARE_MAX": 3}),
        (table_compare, {"TAKE_LINES_MAX": 60, "PIECE_LINES_MAX": 20, "REREAD_ROWS_MIN": 40}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)


class History:
    """A table, its backups, and what each must give back."""

    def __init__(self, kind: str, seed: int, *, versioned: bool) -> None:
        self.rng = random.Random(seed)
        self.part = MemoryPart(KEYS[kind], versioned=versioned)
        self.chunks = MemoryChunks()
        self.backups: list[tuple[dict[str, Any], list[bytes]]] = []
        self.silent = 0

    def key(self) -> bytes:
        return b"\t".join(any_field(kind, self.rng) for kind in self.part.key.kinds)

    def step(self, action: str, amount: int) -> None:
        getattr(self, f"_{action}")(amount)

    def _some(self, amount: int) -> list[bytes]:
        known = self.part.ordered()
        return self.rng.sample(known, min(amount, len(known)))

    def _insert(self, amount: int) -> None:
        for _ in range(amount):
            self.part.set(self.key(), b"v%d" % self.rng.randrange(5) * self.rng.randrange(9))

    def _append(self, amount: int) -> None:
        if self.part.key.kinds == ("int",):
            top = max((int(each) for each in self.part.content if int(each) < 1 << 40), default=0)
            for at in range(amount * 3):
                self.part.set(b"%d" % (top + at + 1), b"appended")

    def _update(self, amount: int) -> None:
        for text in self._some(amount):
            self.part.set(text, b"u%d" % self.rng.randrange(1 << 20))

    def _touch(self, amount: int) -> None:
        for text in self._some(amount):
            self.part.set(text, self.part.content[text][1])

    def _delete(self, amount: int) -> None:
        known = self.part.ordered()
        begin = self.rng.randrange(len(known) + 1)
        for text in known[begin : begin + amount]:
            del self.part.content[text]

    def _scatter(self, amount: int) -> None:
        for text in self._some(amount):
            del self.part.content[text]

    def _truncate(self, _: int) -> None:
        self.part.content.clear()

    def _domain(self, _: int) -> None:
        self.part.version_domain += "x" if self.part.versioned else ""

    def _fingerprint(self, _: int) -> None:
        self.part.fingerprint += "x"

    def _nothing(self, _: int) -> None:
        pass

    def backup(self, *, full: bool) -> dict[str, Any]:
        parent = self.backups[-1][0] if self.backups else None
        node = backup_table(
            self.chunks, self.part, parent=parent, reader=self.chunks, full=full, progress=NullProgress()
        )
        self.backups.append((node, self.part.plain()))
        self.check(node, self.part.plain())
        return node

    def check(self, node: dict[str, Any], expected: list[bytes]) -> None:
        view = TableView(self.chunks, node)
        assert [row for batch in view.rows() for row in batch] == expected
        assert table_digest([expected], self.part.key) == (node["sha256"], node["rows"], node["bytes"])
        assert node["bytes"] == sum(map(len, expected)) + len(expected)
        runs = node["runs"]
        assert runs["deltas"] <= 8
        assert runs["delta_rows"] * 5 <= runs["base_rows"]
        assert runs["delta_bytes"] * 5 <= runs["base_bytes"]


ACTIONS = ["insert", "append", "update", "touch", "delete", "scatter", "nothing", "domain", "fingerprint", "truncate"]
WEIGHTED = ACTIONS[:7] * 4 + ACTIONS[7:]
STEPS = st.lists(
    st.tuples(st.sampled_from(WEIGHTED), st.sampled_from([1, 1, 2, 3, 9, 40, 130]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=14,
)


@pytest.mark.usefixtures("tiny")
@given(kind=st.sampled_from(sorted(KEYS)), versioned=st.booleans(), seed=st.integers(0, 1 << 30), steps=STEPS)
@settings(max_examples=150)
def test_every_backup_of_a_history_reads_back(kind: str, versioned: bool, seed: int, steps: Any) -> None:
    """Goal: promise 1 for tables. Method: random writes between backups of both types, all read back at the end."""
    history = History(kind, seed, versioned=versioned)
    history.step("insert", seed % 400)
    history.backup(full=False)
    for action, amount, back_up, full in steps:
        history.step(action, amount)
        if back_up:
            assert history.backup(full=full and seed % 3 == 0)["missed"] == 0
    for node, expected in history.backups:
        history.check(node, expected)


@pytest.mark.usefixtures("tiny")
@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(["int", "pair"]), count=st.integers(1, 30))
@settings(max_examples=40)
def test_full_finds_what_versions_hide(seed: int, kind: str, count: int) -> None:
    """Goal: a full backup reports rows that changed under the same version. Method: write rows without a new one."""
    history = History(kind, seed, versioned=True)
    history.step("insert", 300)
    history.backup(full=False)
    history.step("update", 5)
    history.backup(full=False)
    hidden = history.rng.sample(history.part.ordered(), min(count, len(history.part.content)))
    for text in hidden:
        history.part.set(text, b"hidden", silent=True)
    visible = [text for text in history.part.ordered() if text not in hidden]
    for text in visible[:3]:
        del history.part.content[text]
    for text in visible[50:53]:
        history.part.set(text, b"seen")
    assert history.backup(full=True)["missed"] == len(hidden)


@pytest.mark.usefixtures("tiny")
@given(seed=st.integers(0, 1 << 30), versioned=st.booleans())
@settings(max_examples=30)
def test_many_small_changes_keep_runs_few(seed: int, versioned: bool) -> None:
    """Goal: at most eight deltas, under a fifth of the base, however long the chain. Method: 60 incrementals."""
    history = History("int", seed, versioned=versioned)
    history.step("insert", 600)
    history.backup(full=False)
    for _ in range(60):
        history.step(history.rng.choice(["insert", "update", "scatter", "delete"]), 2)
        history.backup(full=False)
    for node, expected in history.backups[::7]:
        history.check(node, expected)


@pytest.mark.usefixtures("tiny")
@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(sorted(KEYS)))
@settings(max_examples=30)
def test_rows_are_found_by_key_and_by_page(seed: int, kind: str) -> None:
    """Goal: browsing gives the rows of the backup. Method: pages and random keys against the whole list."""
    history = History(kind, seed, versioned=False)
    history.step("insert", 300)
    history.backup(full=False)
    history.step("update", 20)
    history.step("scatter", 20)
    node = history.backup(full=False)
    part, view = history.part, TableView(history.chunks, node)
    paged: list[bytes] = []
    after = None
    while page := view.rows_after(after, limit=17):
        paged += page
        after = part.key.text(page[-1])
    assert paged == part.plain()
    wanted = [history.key() for _ in range(50)] + history.rng.sample(part.ordered(), min(9, len(part.content)))
    found = [row for batch in view.rows_for(wanted) for row in batch]
    assert found == [part.row(text) for text in part.ordered() if text in set(wanted)]


@pytest.mark.usefixtures("tiny")
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=20)
def test_walk_reaches_every_chunk_that_reading_needs(seed: int) -> None:
    """Goal: prune keeps what a backup needs. Method: keep only the walked chunks, read the table from them."""
    history = History("int", seed, versioned=True)
    history.step("insert", 400)
    for _ in range(4):
        history.backup(full=False)
        history.step("update", 9)
    for node, expected in history.backups:
        reached: set[bytes] = set()
        walk_table(
            history.chunks, node, lambda chunk, _meta, reached=reached: (chunk not in reached, reached.add(chunk))[0]
        )
        kept = MemoryChunks()
        kept.chunks = {chunk: history.chunks.chunks[chunk] for chunk in reached}
        assert [row for batch in TableView(kept, node).rows() for row in batch] == expected
        following = backup_table(kept, history.part, parent=node, reader=kept, full=False, progress=NullProgress())
        assert following["sha256"] == table_digest([history.part.plain()], history.part.key)[0]
