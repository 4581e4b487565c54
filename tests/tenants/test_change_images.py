"""Change images leave the store with the undo's term, and when nobody names them."""

import datetime
import os
from typing import Any

import pytest

from core import clock
from core.errors import Conflict
from engine.errors import ObjectMissing
from engine.images import ImageReader, ImageWriter, images_list
from operations.models import Operation
from tenants import wiring
from tenants.models import Restore, RestoreSource, RestoreSourceState, RestoreState, Tenant
from tenants.services.backups import backup_deletable, prune_start
from tests.tenants.conftest import ACTOR, House


def _image(house: House, tenant: Tenant, name: str, *, age_days: float = 0.0) -> str:
    with wiring.repository_open(tenant) as repository:
        sink = ImageWriter(repository, name)
        sink.table({"name": "users", "columns": ["id"], "key": ["id"], "rows": "before"})
        sink.rows([b"1"])
        sink.close()
    at = (clock.now() - datetime.timedelta(days=age_days)).timestamp()
    for path in (house.data / "store").rglob(f"images/{name}/*"):
        os.utime(path, (at, at))
    return name


def _restore(tenant: Tenant, backup: Any, image: str, *, days_ago: float | None, state: str) -> RestoreSource:
    finished = None if days_ago is None else clock.now() - datetime.timedelta(days=days_ago)
    restore = Restore.objects.create(tenant=tenant, backup=backup, state=state, finished_at=finished)
    return RestoreSource.objects.create(
        restore=restore, name="db", kind="sqlite", state=RestoreSourceState.NEW, image=image
    )


def _stored(tenant: Tenant) -> set[str]:
    with wiring.repository_open(tenant) as repository:
        return {name for name, _ in images_list(repository)}


def _prune(house: House, tenant: Tenant, *, dry_run: bool = False) -> dict[str, int]:
    operation: Operation = house.run(prune_start(tenant, dry_run=dry_run, actor=ACTOR, here=True))
    images: dict[str, int] = operation.result["change_images"]
    return images


def test_images_leave_with_the_term_of_their_undo(house: House) -> None:
    """Goal: an image stays while an undo or a retry may ask for it, and no longer; prune among all sorts."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    fresh = _restore(tenant, backup, _image(house, tenant, "fresh", age_days=29), days_ago=29, state="succeeded")
    failed = _restore(tenant, backup, _image(house, tenant, "failed", age_days=2), days_ago=2, state="failed")
    open_ = _restore(tenant, backup, _image(house, tenant, "open", age_days=50), days_ago=None, state="applying")
    over = _restore(tenant, backup, _image(house, tenant, "over", age_days=31), days_ago=31, state="succeeded")
    undone = _restore(tenant, backup, _image(house, tenant, "undone"), days_ago=1, state=RestoreState.UNDONE)
    _image(house, tenant, "orphan", age_days=1.1)
    _image(house, tenant, "just-written", age_days=0.5)
    everything = _stored(tenant)
    assert _prune(house, tenant, dry_run=True) == {"expired": 2, "orphaned": 1}
    assert _stored(tenant) == everything
    assert _prune(house, tenant) == {"expired": 2, "orphaned": 1}
    assert _stored(tenant) == {"fresh", "failed", "open", "just-written"}
    for row, image in ((fresh, "fresh"), (failed, "failed"), (open_, "open"), (over, ""), (undone, "")):
        row.refresh_from_db()
        assert row.image == image
    assert _prune(house, tenant) == {"expired": 0, "orphaned": 0}


def test_a_half_dropped_image_is_dropped_by_the_next_prune(house: House) -> None:
    """Goal: a kill between the head and the segments leaves garbage only; take the head away, prune a day later."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    _image(house, tenant, "half", age_days=2)
    next((house.data / "store").rglob("images/half/head")).unlink()
    with wiring.repository_open(tenant) as repository, pytest.raises(ObjectMissing):
        ImageReader(repository, "half")
    assert _prune(house, tenant) == {"expired": 0, "orphaned": 1}
    assert _stored(tenant) == set()


def test_a_safety_backup_stays_while_it_may_be_asked_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nobody deletes the way back by mistake; delete a safety backup within the undo's term, and after it."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup = house.backup(tenant)
    (folder / "a").write_text("changed")
    restore = house.restore(backup)
    saved = restore.safety_backup
    assert saved is not None
    with pytest.raises(Conflict, match=f"what undoes restore {restore.pk}"):
        backup_deletable(saved)
    late = clock.now() + datetime.timedelta(days=31)
    monkeypatch.setattr(clock, "now", lambda: late)
    backup_deletable(saved)
