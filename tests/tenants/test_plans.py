"""Plans: say what would be done, change nothing, bind what is then done, once and for a while."""

import datetime
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core import serializers

from audit.models import Entry
from core import clock
from core.errors import Conflict, NotFound
from engine.errors import UsageError
from operations.models import Operation
from tenants import plan_outputs, restore_outputs, selectors
from tenants.models import Backup, Restore, RestorePlan, Validation
from tenants.plan_selectors import plan_get
from tenants.plan_text import plan_text
from tenants.reports import restore_report_html
from tenants.services.backups import prune_start
from tenants.services.plans import PlanExpired
from tenants.services.replans import plan_again_start
from tenants.services.restore_recording import report_of
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def _broken(house: House) -> tuple[Path, Backup]:
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, a="one", b="two", c="three"))
    backup = house.backup(tenant)
    (folder / "a").unlink()
    (folder / "b").write_text("changed")
    (folder / "new").write_text("new")
    return folder, backup


def test_a_plan_says_what_is_then_done_and_changes_nothing(house: House, content: Content) -> None:
    """Goal: what was previewed is what is done; plan, look at the folder, run, compare the counts."""
    folder, backup = _broken(house)
    before = content(folder)
    plan = house.plan(backup)
    assert content(folder) == before
    said = plan_outputs.plan(plan)
    assert (said["plan"], said["state"], said["mode"], said["tables"]) == (plan.pk, "ready", "full", [])
    counts = {name: said["files"][name] for name in ("created", "replaced", "removed", "unchanged")}
    assert counts == {"created": 1, "replaced": 1, "removed": 1, "unchanged": 1}
    assert said["loss"] == [
        f"1 file of assets made since {backup.taken_at:%Y-%m-%d %H:%M} UTC would be lost, 1 changed since would go back"
    ]
    restore = house.run_plan(plan)
    done = report_of(restore.sources.get())["files"]
    assert {name: done[name] for name in counts} == counts
    assert restore.plan_id == plan.pk
    with pytest.raises(Conflict, match="was used by"):
        house.run_plan(plan)


def test_a_stale_plan_changes_nothing_and_says_how_to_go_on(house: House, content: Content) -> None:
    """Goal: nothing is done that nobody saw; change a file between plan and run, then a file the plan leaves alone."""
    folder, backup = _broken(house)
    plan = house.plan(backup)
    (folder / "b").write_text("changed again")
    before = content(folder)
    restore = house.run_plan(plan, ok=False)
    assert (restore.state, restore.error_code) == ("failed", "plan.stale")
    assert restore.error.startswith("source assets: ")
    assert restore.error_hint.endswith(f"restore plan {restore.pk}")
    assert Operation.objects.get(pk=restore.operation_id).error["exit"] == 10
    assert content(folder) == before
    with pytest.raises(Conflict, match=f"used by {restore.pk}, which is failed") as used:
        house.run_plan(plan)
    assert used.value.hint == f"plan again: restore plan {plan.pk}"
    again, operation = plan_again_start(restore, actor=ACTOR, here=True)
    house.run(operation)
    assert house.run_plan(again).state == "succeeded"


def test_an_expired_plan_is_refused(house: House) -> None:
    """Goal: nobody approves today what was seen last week; let the clock pass the term."""
    _, backup = _broken(house)
    plan = house.plan(backup)
    with clock.held(clock.now()) as advance:
        advance(datetime.timedelta(hours=25))
        with pytest.raises(PlanExpired) as refused:
            house.run_plan(plan)
        assert refused.value.hint == f"plan again: restore plan {plan.pk}"
        assert not Restore.objects.exists()
        assert "it has expired" in plan_text(plan_outputs.plan(plan))
        house.run(prune_start(plan.tenant, dry_run=False, actor=ACTOR, here=True))
        assert plan_outputs.plan(plan_get(plan.pk))["files"]["created"] == 1
        advance(datetime.timedelta(days=30))
        house.run(prune_start(plan.tenant, dry_run=False, actor=ACTOR, here=True))
        told = plan_text(plan_outputs.plan(plan_get(plan.pk)))
    assert "what it showed was dropped some time after it expired" in told


@pytest.mark.parametrize(
    ("again", "agrees"),
    [
        ({"mode": "full"}, True),
        ({"mode": "merge"}, False),
        ({"sources": ("assets",)}, True),
        ({"sources": ("assets",), "mode": "full"}, True),
        ({"sources": ("config",)}, False),
        ({"targets": ("path=/tmp/elsewhere",)}, False),
        ({"base": "bkp_other"}, False),
        ({"modules": ("x",)}, False),
    ],
)
def test_what_is_said_beside_a_plan_must_agree(house: House, again: dict[str, Any], agrees: bool) -> None:
    """Goal: no doubt about what was meant; run a plan of one of two sources with words that fit and that do not."""
    tenant = house.tenant()
    house.files(tenant)
    house.files(tenant, "config")
    plan = house.plan(house.backup(tenant), sources=("assets",))
    if agrees:
        assert house.run_plan(plan, **again).state == "succeeded"
    else:
        with pytest.raises(UsageError):
            house.run_plan(plan, **again)
        assert not Restore.objects.exists()


def test_nothing_of_the_data_lies_in_clear(house: House) -> None:
    """Goal: the catalogue and the audit log hold no tenant data; plan over telling names, look for them everywhere."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, **{"salary-of-ana.txt": "4711 euros"}))
    backup = house.backup(tenant)
    (folder / "salary-of-ana.txt").write_text("1147 euros")
    plan = house.plan(backup)
    assert "salary-of-ana.txt" in json.dumps(plan_outputs.plan(plan))
    house.run_plan(plan)
    rows = [
        *RestorePlan.objects.all(),
        *Restore.objects.all(),
        *Validation.objects.all(),
        *Operation.objects.all(),
        *Entry.objects.all(),
    ]
    clear = serializers.serialize("json", [*rows, *Restore.objects.get().sources.all()])
    assert "salary" not in clear
    assert "euros" not in clear


def test_a_plan_may_be_made_beside_a_backup(house: House) -> None:
    """Goal: looking does not stop the backups; hold the tenant's lease by a running backup and plan."""
    _, backup = _broken(house)
    from django.db import transaction

    from operations import leases

    with transaction.atomic():
        leases.lease_take(f"tenant:{backup.tenant.slug}", holder="opr_other")
    assert house.plan(backup).state == "ready"


def test_a_plan_of_another_place(house: House, content: Content) -> None:
    """Goal: a plan carries its target; plan a copy, run it without naming the target again."""
    folder, backup = _broken(house)
    before = content(folder)
    out = house.data / "out"
    plan = house.plan(backup, targets=(f"path={out}",))
    assert not out.exists()
    restore = house.run_plan(plan, confirmed=None)
    assert (restore.in_place, restore.safety_backup_id) == (False, None)
    assert set(content(out)) == {"a", "b", "c"}
    assert content(folder) == before


def test_a_failed_plan_says_why_and_cannot_be_run(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no preview, no plan; damage the manifest the catalogue knows, plan."""
    _, backup = _broken(house)
    Backup.objects.filter(pk=backup.pk).update(manifest_sha256="0" * 64)
    backup.refresh_from_db()
    plan = house.plan(backup, ok=False)
    assert (plan.state, plan.error_code) == ("failed", "damage.manifest")
    with pytest.raises(Conflict):
        house.run_plan(plan)
    with pytest.raises(NotFound):
        plan_get("pln_nothing")


def test_people_can_read_it(house: House) -> None:
    """Goal: the terminal says counts, loss, time and the next step; print a plan before and after the first restore."""
    _, backup = _broken(house)
    plan = house.plan(backup)
    text = "\n".join(plan_text(plan_outputs.plan(plan)))
    assert "files: 1 created, 1 replaced, 1 removed, 1 unchanged" in text
    assert "would be lost" in text
    assert "not known" in text
    assert f"restore run {plan.pk} --confirm aurora" in text
    house.run_plan(plan)
    text = "\n".join(plan_text(plan_outputs.plan(house.plan(backup))))
    assert "nothing would be lost" in text
    assert "by the last 1 restore of this kind for this tenant" in text


def test_what_the_backup_lacks_is_said(house: House) -> None:
    """Goal: nobody takes "the whole tenant" for more than the backup holds; a source is younger than the backup."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    house.database(tenant)
    plan = house.plan(backup)
    said = plan_outputs.plan(plan)
    assert said["not_in_backup"] == ["db"]
    assert "not in this backup, and left as it is: db" in plan_text(said)
    restore = house.run_plan(plan)
    assert restore_outputs.restore(restore)["not_in_backup"] == ["db"]
    assert "db: left as it was" in restore_report_html(restore)
    whole = house.backup(tenant)
    assert plan_outputs.plan(house.plan(whole))["not_in_backup"] == []
    assert plan_outputs.plan(house.plan(whole, sources=("assets",)))["not_in_backup"] == []


def test_a_row_that_stays_deleted_is_not_said_to_stay(house: House) -> None:
    """Goal: "stays" is said of rows that are there; delete one since the base of a three-way merge, change another."""
    tenant = house.tenant()
    source = house.database(tenant)
    backup = house.backup(tenant)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute("DELETE FROM users WHERE id = 7")
        connection.execute("UPDATE users SET name = 'other' WHERE id = 8")
    text = plan_text(plan_outputs.plan(house.plan(backup, mode="merge", base=backup.pk)))
    assert "  users id=7 stays away (the tenant deleted it)" in text
    assert any(line.startswith("  users id=8 stays (only the tenant changed it)") for line in text)


def test_an_id_of_something_else_is_called_by_its_name(house: House) -> None:
    """Goal: a wrong kind of id is not taken for a lost thing; ask for each by the others' ids."""
    _, backup = _broken(house)
    plan = house.plan(backup)
    restore = house.run_plan(plan)
    with pytest.raises(NotFound) as caught:
        selectors.backup_get(restore.pk)
    assert caught.value.hint.startswith(f"that is the id of a restore: restore show {restore.pk};")
    with pytest.raises(NotFound) as caught:
        selectors.restore_get(plan.pk)
    assert caught.value.hint.startswith(f"that is the id of a plan: restore show {plan.pk};")
    with pytest.raises(NotFound) as caught:
        selectors.restore_get("rst_0")
    assert caught.value.hint == "restore list TENANT shows them"


def test_a_total_loss_can_be_planned(house: House, content: Content) -> None:
    """Goal: whoever has lost everything sees what would come back; delete folder and database, plan, run, try to undo."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    database = Path(house.database(tenant).config["path"])
    backup, want, rows = house.backup(tenant), content(folder), database.read_bytes()
    shutil.rmtree(folder)
    database.unlink()
    plan = house.plan(backup)
    said = plan_outputs.plan(plan)
    assert (said["files"]["created"], said["tables"][0]["insert"], said["loss"]) == (2, 100, [])
    restore = house.run_plan(plan)
    assert content(folder) == want
    assert len(rows) == database.stat().st_size
    assert restore.safety_backup_id is None
    with pytest.raises(Conflict, match="nothing was saved"):
        house.undo(restore)
