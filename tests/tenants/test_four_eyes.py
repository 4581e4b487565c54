"""Four eyes: what the setting names is done only after another master has agreed to exactly that."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from access.approvals import Action, ApprovalNeeded, approval_ask, approval_decide, approval_get, approval_use
from access.management.commands.approval import Command as ApprovalCommand
from access.models import Approval
from access.services import master_add
from audit.models import Entry
from core import clock
from core.errors import Conflict, NotAllowed
from tenants.management.commands.key import Command as KeyCommand
from tenants.management.commands.restore import Command as RestoreCommand
from tenants.models import Tenant
from tenants.services.shredding import shred_start
from tests.tenants.conftest import House

Run = Callable[..., tuple[int, dict[str, Any]]]
ACTION = Action("keys", "key.shred", "aurora", {"reason": "over"}, tenant_id="ten_aurora")


@pytest.fixture
def masters(house: House, settings: Any) -> dict[str, str]:
    """Two masters with the files that hold their passwords; keys and restores need both."""
    settings.LASTRO_FOUR_EYES = ("keys", "restores")
    files = {}
    for name in ("ana", "bruno"):
        path = house.data / f"{name}.password"
        path.write_text(master_add(name, actor="test")[1])
        files[name] = f"@{path}"
    return files


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb as the command line does; its exit code and JSON."""

    def run_verb(command: Any, *argv: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = command().run([*argv, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run_verb


def test_a_shredding_waits_for_a_second_master(house: House, masters: dict[str, str], run: Run) -> None:
    """Goal: one person alone destroys nothing; ask, agree as oneself, as the other, do it, and only it, once."""
    tenant = house.tenant()
    argv = ["shred", "aurora", "--confirm", "aurora", "--reason", "over", "--here"]
    code, said = run(KeyCommand, *argv)
    assert (code, "--master" in said["error"]["hint"]) == (8, True)
    ana, bruno = (("--master", name, "--password", masters[name]) for name in ("ana", "bruno"))
    code, said = run(KeyCommand, *argv, *ana)
    assert (code, said["error"]["code"]) == (8, "access.approval_needed")
    (row,) = Approval.objects.all()
    assert row.pk in said["error"]["detail"]
    assert run(KeyCommand, *argv, *ana)[0] == 8
    assert Approval.objects.count() == 1
    assert run(ApprovalCommand, "approve", row.pk, *ana)[0] == 8
    assert run(ApprovalCommand, "approve", row.pk, "--master", "bruno", "--password", masters["ana"])[0] == 8
    assert Entry.objects.filter(type="master.refused").count() == 1
    code, said = run(ApprovalCommand, "list", "--pending")
    assert [each["id"] for each in said["data"]] == [row.pk]
    code, said = run(ApprovalCommand, "approve", row.pk, *bruno, "--reason", "seen the contract")
    assert (code, said["state"], said["details"]) == (0, "approved", {"reason": "over"})
    other = [*argv[:4], "--reason", "another reason", "--here"]
    assert run(KeyCommand, *other, *ana)[0] == 8  # What was agreed to is something else.
    with pytest.raises(ApprovalNeeded):  # No way past the command line, either.
        shred_start(tenant, confirmed="aurora", reason="over", actor="ana", here=True)
    with pytest.raises(ApprovalNeeded):
        shred_start(tenant, confirmed="aurora", reason="other", actor="ana", approval=approval_get(row.pk), here=True)
    code, said = run(KeyCommand, *argv, *ana)
    assert (code, said["state"]) == (0, "complete")
    assert approval_get(row.pk).state == "used"
    code, said = run(KeyCommand, "certificate", "show", "aurora")
    assert (said["requested_by"], said["approved_by"]) == ("ana", "bruno")
    assert Tenant.objects.get(slug="aurora").shredded_at is not None


def test_an_agreement_expires_is_taken_back_and_serves_once(masters: dict[str, str]) -> None:
    """Goal: an old yes is no yes; let it expire, reject it, use it twice."""

    def asked() -> Approval:
        with pytest.raises(ApprovalNeeded) as caught:
            approval_ask(ACTION, requested_by="ana")
        return approval_get(caught.value.approval)

    with pytest.raises(NotAllowed, match="who asks"):
        approval_ask(ACTION, requested_by="cli:root")
    row = approval_decide(asked(), approve=True, master="bruno")
    with clock.held(clock.now() + datetime.timedelta(hours=25)):
        again = asked()
        assert again.pk != row.pk
        with pytest.raises(Conflict, match="expired"):
            approval_use(row, ACTION, actor="ana")
    approval_decide(approval_get(row.pk), approve=False, master="ana")
    row = approval_decide(again if again.expires_at > clock.now() else asked(), approve=True, master="bruno")
    approval_use(approval_ask(ACTION, requested_by="ana"), ACTION, actor="ana")
    with pytest.raises(Conflict):
        approval_use(row, ACTION, actor="ana")
    assert asked().pk != row.pk


def test_a_restore_in_place_needs_two_and_one_elsewhere_does_not(
    house: House,
    masters: dict[str, str],
    run: Run,
    tmp_path: Path,
) -> None:
    """Goal: live data is changed by two; restore elsewhere alone, in place with a second master."""
    source = house.files(house.tenant())
    backup = house.backup(Tenant.objects.get(slug="aurora"))
    (house.folder(source) / "a").unlink()
    argv = ["run", backup.pk, "--confirm", "aurora", "--here"]
    assert run(RestoreCommand, "run", backup.pk, "--target", f"path={tmp_path}/out", "--here")[0] == 0
    assert run(RestoreCommand, *argv)[0] == 8
    ana = ("--master", "ana", "--password", masters["ana"])
    assert run(RestoreCommand, *argv, *ana)[0] == 8
    assert not (house.folder(source) / "a").exists()
    (row,) = Approval.objects.all()
    assert (row.area, row.details["from"], row.details["sources"]) == ("restores", backup.pk, ["assets"])
    approval_decide(row, approve=True, master="bruno")
    code, said = run(RestoreCommand, *argv, *ana)
    assert (code, said["state"]) == (0, "succeeded")
    assert (house.folder(source) / "a").read_text() == "one"
    assert run(RestoreCommand, *argv, *ana)[0] == 8
