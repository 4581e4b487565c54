"""Undo: exactly what was there, or a refusal and a plan."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import clock
from core.errors import ConfirmationNeeded, Conflict
from engine.errors import UsageError
from tenants.models import Restore
from tenants.services.undos import undo_start
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def _broken(house: House, content: Content) -> tuple[Path, dict[str, bytes], Any]:
    """A folder with a backup, then something lost, changed and new."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, a="one", b="two", c="three"))
    backup = house.backup(tenant)
    (folder / "a").unlink()
    (folder / "b").write_text("changed")
    (folder / "new").write_text("new")
    return folder, content(folder), backup


def test_undo_puts_back_exactly_what_was_there(house: House, content: Content) -> None:
    """Goal: undo is exact, and can be undone as well; restore, undo, undo the undo."""
    folder, before, backup = _broken(house, content)
    restore = house.restore(backup)
    restored = content(folder)
    assert restored != before
    undo = house.undo(restore)
    assert content(folder) == before
    assert (undo.kind, undo.state, undo.undoes_id) == ("undo", "succeeded", restore.pk)
    assert undo.safety_backup_id not in (None, restore.safety_backup_id)
    restore.refresh_from_db()
    assert restore.state == "undone"
    with pytest.raises(Conflict, match="undone already"):
        house.undo(restore)
    house.undo(undo)
    assert content(folder) == restored


@pytest.mark.parametrize("mode", ["full", "merge"])
@pytest.mark.parametrize("change", ["write", "add", "remove", "mode"])
def test_what_somebody_changed_since_is_not_lost(house: House, content: Content, mode: str, change: str) -> None:
    """Goal: an undo never throws away newer work unseen; change something after the restore, undo, plan, run the plan."""
    folder, before, backup = _broken(house, content)
    restore = house.restore(backup, mode=mode)
    {
        "write": lambda: (folder / "c").write_text("newer"),
        "add": lambda: (folder / "newest").write_text("newest"),
        "remove": (folder / "c").unlink,
        "mode": lambda: (folder / "c").chmod(0o600),
    }[change]()
    newer = content(folder)
    refused = house.undo(restore, ok=False)
    assert (refused.state, refused.error_code) == ("failed", "plan.stale")
    assert f"restore undo {restore.pk} --plan" in refused.error_hint
    assert content(folder) == newer
    restore.refresh_from_db()
    assert restore.state == "succeeded"
    plan = house.undo_plan(restore)
    assert (plan.kind, plan.state) == ("undo", "ready")
    house.run_plan(plan)
    assert content(folder) == before
    restore.refresh_from_db()
    assert restore.state == "undone"


def test_an_undo_plan_binds(house: House, content: Content) -> None:
    """Goal: what was previewed is what is done; change something between the plan of an undo and its run."""
    folder, _, backup = _broken(house, content)
    restore = house.restore(backup)
    (folder / "newest").write_text("newest")
    plan = house.undo_plan(restore)
    (folder / "later").write_text("later")
    now = content(folder)
    assert house.run_plan(plan, ok=False).error_code == "plan.stale"
    assert content(folder) == now


def test_undo_is_refused_where_it_cannot_be(house: House, monkeypatch: pytest.MonkeyPatch, content: Content) -> None:
    """Goal: no undo of what changed nothing live, without the slug, or after its term; ask for each."""
    _, _, backup = _broken(house, content)
    copy = house.restore(backup, targets=(f"path={house.data}/copy",))
    with pytest.raises(UsageError, match="another place"):
        house.undo(copy)
    restore = house.restore(backup)
    for confirmed in (None, "boreal"):
        with pytest.raises(ConfirmationNeeded):
            undo_start(restore, confirmed=confirmed, actor=ACTOR, here=True)
    late = clock.now() + datetime.timedelta(days=31)
    monkeypatch.setattr(clock, "now", lambda: late)
    with pytest.raises(Conflict, match="the term"):
        house.undo(restore)
    assert Restore.objects.count() == 2
