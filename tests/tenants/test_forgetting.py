"""The catalogue forgets what is past its term, and nothing else."""

import datetime
import json

import pytest
from django.core.management import get_commands, load_command_class

from audit.models import Entry
from core import clock
from core.errors import Conflict
from core.ids import first_id
from core.models import StateChange
from operations import history
from operations.models import HookRun, Operation
from tenants.models import Backup, Drill, Restore, RestorePlan, Tenant, Validation
from tests.tenants.conftest import ACTOR, House

LONG_AGO = datetime.timedelta(days=1000)


THEN = datetime.datetime(2020, 2, 29, tzinfo=datetime.UTC)


def _id(prefix: str, number: int) -> str:
    """An id as it was made then; the last digits tell rows apart."""
    return f"{first_id(prefix, THEN)[:-5]}{number:05d}"


def _drills(tenant: Tenant, backup: Backup) -> None:
    rows = [
        Drill(id=_id("drl", n), tenant=tenant, backup=backup, state="passed", cleared=n != 3, evidence=b"x")
        for n in range(14)
    ]
    Drill.objects.bulk_create(rows)
    Validation.objects.bulk_create(
        Validation(id=_id("val", n), tenant=tenant, backup=backup, drill=row, status="passed")
        for n, row in enumerate(rows)
    )


def test_what_is_past_its_term_goes_in_batches_and_on_record(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: neither too much nor too little; rows of three years and of today, one of each kind that must stay."""
    monkeypatch.setattr(history, "BATCH_ROWS", 100)
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    unused, used = house.plan(backup), house.plan(backup)
    restore = house.run_plan(used)
    proof = restore.validations.get()
    for plan in (unused, used):
        RestorePlan.objects.filter(pk=plan.pk).update(expires_at=clock.now() - LONG_AGO)
    _drills(tenant, backup)
    HookRun.objects.bulk_create(
        HookRun(
            id=_id("hkr", n),
            hook_name="on",
            tenant="aurora",
            event="before",
            started_at=clock.now() - LONG_AGO,
            passed=True,
            status="0",
        )
        for n in range(250)
    )
    finished = clock.now() - LONG_AGO
    Operation.objects.bulk_create(
        Operation(
            id=_id("opr", n),
            kind="backup",
            state=state,
            tenant="aurora",
            actor=ACTOR,
            requested_at=finished,
            finished_at=end,
        )
        for n, (state, end) in enumerate(
            (("succeeded", finished), ("lost", finished), ("queued", None), ("failed", clock.now()))
        )
    )
    StateChange.objects.create(
        subject_type="operation", subject_id=_id("opr", 0), from_state="queued", to_state="running"
    )
    today = Operation.objects.filter(pk__gt=_id("opr", 9)).count()

    command = load_command_class(get_commands()["operation"], "operation")
    assert command.run(["forget", "--dry-run", "--json"], noun="operation") == 0
    would = json.loads(capsys.readouterr().out)["rows"]
    expected = {"drills": 3, "operations": 2, "plans": 0, "runs of hooks": 250, "validations": 0}
    assert {noun: would[noun] for noun in expected} == expected
    assert (HookRun.objects.count(), Drill.objects.count()) == (250, 14)
    gone = history.history_forget(actor=ACTOR)
    assert {noun: gone[noun] for noun in expected} == expected
    assert sorted(Drill.objects.values_list("pk", flat=True)) == [_id("drl", n) for n in (3, *range(4, 14))]
    assert Validation.objects.exclude(drill=None).count() == 11
    assert set(Operation.objects.filter(pk__lt=_id("opr", 9)).values_list("state", flat=True)) == {"queued", "failed"}
    assert Operation.objects.filter(pk__gt=_id("opr", 9)).count() == today
    assert not StateChange.objects.filter(subject_id=_id("opr", 0)).exists()
    (entry,) = Entry.objects.filter(type="history.forgotten")
    assert (entry.user_id, entry.data["rows"]["runs of hooks"]) == (ACTOR, 250)
    assert set(RestorePlan.objects.values_list("pk", flat=True)) == {unused.pk, used.pk}
    assert not any(history.history_forget(actor=ACTOR).values())
    assert Entry.objects.filter(type="history.forgotten").count() == 1

    monkeypatch.setattr(clock, "now", lambda: finished + 2 * LONG_AGO)
    with pytest.raises(Conflict, match="the clock is not believed"):
        history.history_forget(actor=ACTOR)
    monkeypatch.setattr(history, "_guards", [])
    gone = history.history_forget(actor=ACTOR)
    assert (gone["plans"], gone["validations"]) == (1, 1)
    assert set(RestorePlan.objects.values_list("pk", flat=True)) == {used.pk}
    assert not Validation.objects.filter(pk=proof.pk).exists()
    assert Restore.objects.filter(pk=restore.pk).exists()
