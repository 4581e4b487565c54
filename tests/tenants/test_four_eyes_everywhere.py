"""What else two masters have to agree to: kits, retention, holds, stores; and the tricks by which one would do without the other."""

import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import load_command_class

from access.approvals import Action, ApprovalNeeded, approval_ask, approval_decide, approval_get, approval_use
from access.models import Account, Approval
from access.services import master_add
from audit.models import Entry
from core import clock
from core.errors import Conflict, NotAllowed
from tenants.models import StoreConfig, Tenant
from tenants.owning import behind_put
from tenants.services.backups import backup_hold
from tenants.services.catalogue_backups import catalogue_backup_start
from tenants.services.kits import kit_make
from tenants.services.ownership import store_reconcile
from tenants.services.shredding import shred_action
from tenants.services.stores import store_add, store_update
from tests.tenants.conftest import ACTOR, House

Run = Callable[..., tuple[int, dict[str, Any]]]
PASSPHRASE = "five words that nobody guesses"


@pytest.fixture
def ana(house: House, settings: Any) -> list[str]:
    """How ana says who she is; bruno is the other master, and everything needs both."""
    settings.LASTRO_FOUR_EYES = ("keys", "restores", "retention", "stores")
    path = house.data / "ana.password"
    path.write_text(master_add("ana", actor="test")[1])
    master_add("bruno", actor="test")
    return ["--master", "ana", "--password", f"@{path}"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("store", "list")`: the exit code and the JSON that was printed, an error's too."""

    def command(noun: str, *argv: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        program: Any = load_command_class("tenants", noun)
        code = program.run([*map(str, argv), "--json", "--no-input"], noun=noun)
        answer = json.loads(capsys.readouterr().out)
        return code, answer.get("error") or answer

    return command


@pytest.fixture
def two(run: Run, ana: list[str]) -> Callable[..., dict[str, Any]]:
    """Have a command refused to one, refused to one who is known, agreed to by bruno, and done once."""

    def do(*argv: object) -> dict[str, Any]:
        assert run(*argv)[1]["code"] == "access.not_allowed"
        before = set(Approval.objects.values_list("pk", flat=True))
        assert run(*argv, *ana)[1]["code"] == "access.approval_needed"
        (row,) = Approval.objects.exclude(pk__in=before)
        with pytest.raises(NotAllowed, match="asked for it"):
            approval_decide(row, approve=True, master="ana")
        approval_decide(row, approve=True, master="bruno")
        code, done = run(*argv, *ana)
        assert code in (0, 3), done
        assert approval_get(row.pk).state == "used"
        return {**done, "details": row.details}

    return do


def test_a_kit_leaves_the_house_by_two(
    house: House, two: Callable[..., dict[str, Any]], run: Run, ana: list[str]
) -> None:
    """Goal: the root key is nobody's to take alone. Method: export a kit, and another one by the same agreement."""
    (house.data / "passphrase").write_text(PASSPHRASE)
    path, passphrase = house.data / "kit.json", ("--passphrase", f"@{house.data}/passphrase")
    two("kit", "export", "--output", path, *passphrase)
    assert path.exists()
    other = house.data / "other.json"
    assert run("kit", "export", "--output", other, *passphrase, *ana)[0] == 8 and not other.exists()
    with pytest.raises(ApprovalNeeded):
        kit_make(PASSPHRASE, actor="ana")


def test_retention_is_shortened_by_two_and_lengthened_by_one(
    house: House, two: Callable[..., dict[str, Any]], run: Run
) -> None:
    """Goal: nobody alone lets backups run out. Method: lengthen, shorten by number and by preset, dry-run, reset; hold, release."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    assert run("retention", "set", "aurora", "--set", "incremental_days=90", "--set", "kept_tags=audit")[0] == 0
    assert run("retention", "set", "aurora", "--set", "incremental_days=1", "--dry-run")[0] == 0
    assert (
        two("retention", "set", "aurora", "--set", "incremental_days=30")["details"]["after"]["incremental_days"] == 30
    )
    two("retention", "set", "aurora", "--set", "kept_tags=")
    two("retention", "reset", "aurora")
    assert run("backup", "hold", backup.pk, "--reason", "court")[0] == 0
    with pytest.raises(ApprovalNeeded):
        backup_hold(backup_held(backup.pk), held=False, reason="", actor="ana")
    two("backup", "release", backup.pk, "--reason", "over")
    assert run("tenant", "hold", "aurora", "--reason", "court")[0] == 0
    two("tenant", "release", "aurora")


def backup_held(pk: str) -> Any:
    from tenants.models import Backup

    return Backup.objects.get(pk=pk)


def test_stores_are_redirected_given_up_and_adopted_by_two(
    house: House, two: Callable[..., dict[str, Any]], run: Run
) -> None:
    """Goal: nobody alone sends backups elsewhere. Method: set settings (a secret is not shown), give up, adopt, take over."""
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    assert run("store", "set", "second", "--offsite", "yes")[0] == 0
    shutil.copytree(house.data / "second", house.data / "third")
    done = two("store", "set", "second", "--set", f"path={house.data}/third")
    assert done["details"]["set"] == {"path": f"{house.data}/third"}
    with pytest.raises(ApprovalNeeded):
        store_update(StoreConfig.objects.get(name="second"), values={"path": str(house.data / "second")}, actor="ana")
    house.run(catalogue_backup_start(actor=ACTOR, here=True))
    two("store", "adopt", "default")
    two("store", "reconcile", "default", "--take-over", "--confirm", "default")
    shutil.rmtree(house.data / "third")
    two("store", "remove", "second", "--lost", "--confirm", "second")
    two("store", "destroyed", "second", "--confirm", "second", "--reason", "burnt")


def test_a_secret_that_changed_is_another_action(house: House, ana: list[str]) -> None:
    """Goal: what was agreed to is what is done. Method: one file of a secret, two contents; the secret is not shown."""
    from tenants.services.stores import redirect_action

    row, path = StoreConfig(name="far", kind="s3"), house.data / "secret"
    digests = set()
    for secret in ("one secret of many", "another secret of many"):
        path.write_text(secret)
        action = redirect_action(row, {"secret_key": f"@{path}", "bucket": "b"})
        assert secret not in json.dumps(dict(action.details))
        digests.add(action.digest)
    assert len(digests) == 2


def test_an_agreement_is_the_tenants_and_not_its_slugs(house: House, ana: list[str]) -> None:
    """Goal: no old yes for a new tenant. Method: agree about one tenant; another one takes its slug; a slug without an id."""
    tenant = house.tenant()
    with pytest.raises(ApprovalNeeded):
        approval_ask(shred_action(tenant, "over"), requested_by="ana")
    row = approval_decide(Approval.objects.get(), approve=True, master="bruno")
    assert (row.tenant, row.tenant_id) == ("aurora", tenant.pk)
    Tenant.objects.filter(pk=tenant.pk).update(slug="former")
    later = house.tenant()
    assert later.slug == tenant.slug
    with pytest.raises(ApprovalNeeded):
        approval_use(row, shred_action(later, "over"), actor="ana")
    with pytest.raises(ApprovalNeeded):
        approval_ask(shred_action(later, "over"), requested_by="ana")
    with pytest.raises(AssertionError):
        Action("keys", "key.shred", "aurora")
    moved = dataclasses.replace(shred_action(later, "over"), tenant_id=tenant.pk)
    approval_use(row, moved, actor="ana")


def test_accounts_that_come_and_go_agree_to_nothing(house: House, ana: list[str]) -> None:
    """Goal: one is not two. Method: an account made afterwards, one that is no master, one switched off after its yes."""
    action = shred_action(house.tenant(), "over")

    def asked() -> Approval:
        with pytest.raises(ApprovalNeeded) as caught:
            approval_ask(action, requested_by="ana")
        return approval_get(caught.value.approval)

    row = asked()
    with clock.held(clock.now() + datetime.timedelta(minutes=1)):
        master_add("carla", actor="ana")
        with pytest.raises(NotAllowed, match="was made after"):
            approval_decide(row, approve=True, master="carla")
    with pytest.raises(NotAllowed, match="no master"):
        approval_decide(row, approve=True, master="nobody")
    assert Entry.objects.filter(type="approval.refused").count() == 1
    approval_decide(row, approve=True, master="bruno")
    for name in ("bruno", "ana"):
        Account.objects.filter(username=name).update(is_active=False)
        with pytest.raises(ApprovalNeeded, match="no master any more"):
            approval_use(row, action, actor="ana")
        Account.objects.filter(username=name).update(is_active=True)
    approval_use(row, action, actor="ana")


def test_a_catalogue_that_came_back_brings_no_agreement_along(house: House, ana: list[str]) -> None:
    """Goal: no old yes is used twice. Method: agree, put the catalogue back (the store knows more), reconcile, use it."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    action = shred_action(tenant, "over")
    with pytest.raises(ApprovalNeeded):
        approval_ask(action, requested_by="ana")
    row = approval_decide(Approval.objects.get(), approve=True, master="bruno")
    behind_put(tenant, "the catalogue was restored")
    store_reconcile(StoreConfig.objects.get(name="default"), tenant=None, take_over=False, actor=ACTOR)
    with pytest.raises(Conflict, match="expired"):
        approval_use(approval_get(row.pk), action, actor="ana")
    assert Entry.objects.filter(type="approval.voided").count() == 1
