"""Restores of SQLite files against a model: whatever two sides did, what is decided, shown, done and undone is right.

LASTRO_TEST_HISTORIES=1000 asks for 700 histories.
"""

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors._sqlite.connect import connect
from connectors._sqlite.planner import Planner
from connectors._sqlite.read import Layout
from connectors.sqlite import SqliteConnector
from engine.errors import TargetError
from engine.plans import POLICIES, ChangeDigest
from engine.ports import RestoreRequest
from engine.progress import NullProgress
from tests.connectors.row_model import Merger, Outcome
from tests.connectors.sqlite_histories import (
    MODELS,
    NAMELESS,
    NAMES,
    MemoryImage,
    MemoryView,
    Playground,
    empty,
    operate,
    operations,
    world,
)
from tests.connectors.sqlite_samples import database, everything, query, tenant

HISTORIES = max(20, int(os.environ.get("LASTRO_TEST_HISTORIES", "60")) * 7 // 10)
SHARDS = 4
SOAK = 10_000
histories = st.fixed_dictionaries(
    {
        "layout": st.sampled_from(["rows", "database"]),
        "mode": st.sampled_from(["merge", "merge", "merge", "selective", "selective", "full"]),
        "apart": st.booleans(),
        "based": st.booleans(),
        "policies": st.fixed_dictionaries({name: st.sampled_from(POLICIES) for name in NAMES}),
        "modules": st.lists(st.sampled_from(NAMES), unique=True),
        "begin": operations((1, 2), 12),
        "backup_side": operations((1,), 6),
        "tenant_side": operations((1, 2), 8),
    }
)


class History:
    """One history: the file as the tenant's side left it, a backup of the other side, and perhaps their base."""

    def __init__(self, ground: Playground, story: dict[str, Any], *, modelled: bool = True) -> None:
        self.story, self.path = story, ground.path
        self.tenant = 1 if story["layout"] == "rows" else None
        self.connector: SqliteConnector = tenant(self.path, "1") if self.tenant else database(self.path)
        ground.reset()
        operate(self.path, story["begin"])
        base, based_world = MemoryView(self.connector), world(self.path, self.tenant) if modelled else empty()
        ground.keep()
        operate(self.path, story["backup_side"])
        self.view: Any = MemoryView(self.connector)
        self.backup = world(self.path, self.tenant) if modelled else empty()
        if story["apart"]:
            ground.back()
        operate(self.path, story["tenant_side"])
        self.based = story["mode"] == "merge" and story["apart"] and story["based"]
        self.base = base if self.based else None
        self.base_world = based_world if self.based else None
        self.others = world(self.path, self.tenant, others=True) if self.tenant and modelled else empty()

    def expected(self) -> Outcome:
        story = self.story
        models = [replace(each, ignored="tenant_id" if self.tenant else "") for each in MODELS]
        return Merger(
            models, live=world(self.path, self.tenant), backup=self.backup, others=self.others, base=self.base_world,
            mode=story["mode"], modules=story["modules"], policies=story["policies"],
        ).run()  # fmt: skip

    def request(self, digest: str = "") -> RestoreRequest:
        story = self.story
        return RestoreRequest(
            "rst_1", mode=story["mode"], modules=tuple(story["modules"]), policies=story["policies"], base=self.base,
            digest=digest, prove=self.tenant is not None,
        )  # fmt: skip

    def play(self) -> None:
        """Preview, restore, undo and undo of undo, each compared with the model or with what was there."""
        expected, before = self.expected(), everything(self.path, rowids=not self.tenant)
        refused = expected.refused and self.tenant is not None
        if refused:
            for attempt in (self.preview, self.restore):
                with pytest.raises(TargetError):
                    attempt()
            assert everything(self.path, rowids=not self.tenant) == before
            return
        shown = self.preview()
        assert self._digest() == shown.digest
        assert everything(self.path, rowids=not self.tenant) == before, "a preview changes nothing"
        report, image = self.restore(shown.digest)
        assert world(self.path, self.tenant) == expected.final
        assert report.tables == shown.tables, "what is applied is what was previewed"
        assert report.digest == shown.digest
        if self.tenant:
            assert world(self.path, self.tenant, others=True) == self.others
        if self.story["mode"] != "full":
            for change in report.tables:
                if change.name in NAMES:
                    counts = expected.counts(change.name)
                    assert {name: getattr(change, name) for name in counts} == counts, change.name
        after = everything(self.path, rowids=not self.tenant)
        back = self.undo(image)
        assert everything(self.path, rowids=not self.tenant) == before, "an undo is exact"
        self.undo(back)
        assert everything(self.path, rowids=not self.tenant) == after, "so is its undo"

    def preview(self) -> Any:
        """What the connector says it would do."""
        return self.connector.preview(self.view, self.request(), NullProgress())

    def _digest(self) -> str:
        """Over the change set as it was stored; a plan takes its own on the way."""
        with closing(connect(str(self.path), "ro", timeout=0)) as connection:
            connection.execute("BEGIN")
            layout = Layout("tenant_id", "1") if self.tenant else Layout()
            plan = Planner(connection, self.view, layout, self.request(), NullProgress()).plan()
            digest = ChangeDigest()
            for changes in plan.changes:
                changes.digest(digest)
            return digest.hexdigest()

    def restore(self, digest: str = "") -> tuple[Any, MemoryImage]:
        """Its report and its change image."""
        image = MemoryImage()
        with self.connector.prepare(self.view, self.request(digest), NullProgress()) as prepared:
            prepared.image(image)
            prepared.commit()
        return prepared.report, image

    def undo(self, image: MemoryImage) -> MemoryImage:
        """Take it back; the image of that."""
        back = MemoryImage()
        if not image.stored:
            return back  # Nothing was changed, so nothing was written down.
        with self.connector.prepare_undo(image, RestoreRequest("rst_2"), NullProgress()) as prepared:
            prepared.image(back)
            prepared.commit()
        return back


QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)


@pytest.mark.parametrize("shard", range(SHARDS))
@given(story=histories)
@settings(max_examples=HISTORIES // SHARDS, deadline=None, suppress_health_check=QUIET)
def test_histories(tmp_path: Path, shard: int, story: dict[str, Any]) -> None:
    """Goal: no newer row lost, none resurrected against the policy, neighbours untouched, undo exact. Method: the model."""
    History(Playground(tmp_path), story).play()


def theirs(path: Path) -> list[list[tuple[Any, ...]]]:
    """Whatever is the other tenant's by queries of the test's own."""
    named = [
        query(path, f"SELECT * FROM {name} WHERE tenant_id = 2 ORDER BY 1, 2, 3") for name in NAMES if name != "tag"
    ]
    return [*named, query(path, "SELECT tag.* FROM tag JOIN item ON item.id = item WHERE tenant_id = 2 ORDER BY 1")]


@given(story=histories)
@settings(max_examples=max(15, HISTORIES // 7), deadline=None, suppress_health_check=QUIET)
def test_rows_that_are_a_tenants_through_references(tmp_path: Path, story: dict[str, Any]) -> None:
    """Goal: children pass in and out of the scope unharmed. Method: tags name no tenant; refusals agree, undo is exact."""
    history = History(Playground(tmp_path, NAMELESS), {**story, "layout": "rows"}, modelled=False)
    before, others = everything(history.path, rowids=False), theirs(history.path)
    try:
        shown = history.preview()
    except TargetError:
        with pytest.raises(TargetError):
            history.restore()
        assert everything(history.path, rowids=False) == before
        return
    report, image = history.restore(shown.digest)
    assert report.tables == shown.tables
    assert theirs(history.path) == others
    after = everything(history.path, rowids=False)
    back = history.undo(image)
    assert everything(history.path, rowids=False) == before
    history.undo(back)
    assert everything(history.path, rowids=False) == after


@pytest.mark.soak
@given(story=histories)
@settings(max_examples=SOAK, deadline=None, suppress_health_check=QUIET)
def test_many_histories(tmp_path: Path, story: dict[str, Any]) -> None:
    """Goal and method as above, ten thousand times."""
    History(Playground(tmp_path), story).play()
