"""Losses that are accepted: stores that are gone for good, and backups that no store holds any more."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import load_command_class

from audit.models import Entry
from core.errors import Conflict, Exit
from operations.models import Operation, OperationState
from tenants.copy_outputs import backup_copies
from tenants.copy_selectors import protections
from tenants.diagnosis import diagnose
from tenants.models import Backup, Copy, KeyringPlace, Source, StoreConfig
from tenants.selectors import backup_get, tenant_get
from tenants.services.backups import backup_delete_start, backup_hold, prune_start
from tenants.services.copies import copies_queue_after, copy_add, copy_run_start, copy_set
from tenants.services.keys import keys_settle
from tenants.services.losses import loss_accept_start
from tenants.services.shredding import shred_start
from tenants.services.stores import store_add
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

Run = Callable[..., tuple[int, dict[str, Any]]]


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


class Pair:
    """A tenant with two backups in the default store, and both copied to a second one."""

    def __init__(self, house: House) -> None:
        self.house, self.tenant = house, house.tenant()
        self.files = house.files(self.tenant)
        second = store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
        self.copy = copy_add(self.tenant, second, actor=ACTOR, afterwards=False)
        keys_settle(self.tenant)
        self.first, self.last = house.backup(self.tenant), house.backup(self.tenant)
        house.run(copy_run_start(self.copy, actor=ACTOR, here=True))

    def lose(self, store: str, backup: Backup) -> None:
        """Delete a manifest by hand."""
        (found,) = (self.house.data / store).rglob(f"manifests/{backup.number:010d}")
        found.unlink()

    def prune(self, *, ok: bool = True) -> Operation:
        return self.house.run(prune_start(self.tenant, dry_run=False, actor=ACTOR, here=True), ok=ok)


@pytest.fixture
def pair(house: House) -> Pair:
    return Pair(house)


def test_a_store_that_is_gone_for_good_is_given_up(pair: Pair, run: Run) -> None:
    """Goal: nothing counts on a lost store any more; try while it answers, unconfirmed, under a hold, then for good."""
    code, answer = run("store", "remove", "second", "--lost", "--confirm", "second")
    assert (code, "not lost" in answer["detail"]) == (Exit.FAILED, True), answer
    shutil.rmtree(pair.house.data / "second")
    Backup.objects.filter(pk=pair.first.pk).update(left_at=pair.first.created_at, held=True)
    code, answer = run("store", "remove", "second", "--confirm", "second")
    assert (code, "--lost" in answer["hint"]) == (Exit.FAILED, True), answer
    code, answer = run("store", "remove", "second", "--lost", "--confirm", "second")
    assert (code, pair.first.pk in answer["detail"]) == (Exit.FAILED, True), answer
    Backup.objects.update(held=False)
    waiting = copy_run_start(pair.copy, actor=ACTOR)
    code, answer = run("store", "remove", "second", "--lost")
    assert (code, pair.first.pk in answer["detail"]) == (Exit.CONFIRM, True), answer
    assert StoreConfig.objects.filter(name="second").exists()
    code, answer = run("store", "remove", "second", "--lost", "--confirm", "second", "--reason", "fire")
    assert (code, answer["alone"], answer["copies"], answer["keyrings"]) == (Exit.OK, [pair.first.pk], 1, 1), answer
    assert backup_get(pair.first.pk).state == "deleted" and backup_get(pair.last.pk).state == "succeeded"
    assert Operation.objects.get(pk=waiting.pk).state == OperationState.CANCELLED
    assert not Copy.objects.filter(tenant=pair.tenant, position__gt=0).exists()
    assert KeyringPlace.objects.count() == 1
    assert Entry.objects.filter(type="store.lost").count() == 1
    assert not any("in second" in sign.message or "store second" in sign.hint for sign in diagnose())
    code, answer = run("store", "remove", "default", "--lost", "--confirm", "default")
    assert code == Exit.FAILED, answer


def test_a_backup_that_no_store_holds_is_given_up(pair: Pair, run: Run) -> None:
    """Goal: prune goes on after a loss that was accepted, and only then; lose the last good one store by store, be
    killed half-way, and end with a source that names the one before."""
    code, answer = run("backup", "delete", pair.last.pk, "--lost", "--confirm", "aurora")
    assert (code, "second" in answer["detail"]) == (Exit.FAILED, True), answer
    pair.lose("store", pair.last)
    assert run("backup", "delete", pair.last.pk, "--lost", "--confirm", "aurora")[0] == Exit.FAILED, "a copy has it"
    aside = pair.house.data / "aside"
    (pair.house.data / "second").rename(aside)
    code, answer = run("backup", "delete", pair.last.pk, "--lost", "--confirm", "aurora")
    assert (code, "cannot be asked" in answer["detail"]) == (Exit.FAILED, True), answer
    aside.rename(pair.house.data / "second")
    pair.lose("second", pair.last)
    assert "--lost" in str(pair.prune(ok=False).error)
    assert run("backup", "delete", pair.last.pk, "--lost")[0] == Exit.CONFIRM
    backup_hold(pair.last, held=True, reason="court", actor=ACTOR)
    with pytest.raises(Conflict, match="hold"):
        loss_accept_start(backup_get(pair.last.pk), actor=ACTOR)
    backup_hold(pair.last, held=False, reason="", actor=ACTOR)
    operation = loss_accept_start(backup_get(pair.last.pk), actor=ACTOR, here=True)
    killed(lambda: pair.house.run(operation), label="loss.record_stored")
    code, answer = run("backup", "delete", pair.last.pk, "--lost", "--confirm", "aurora", "--reason", "bad disk")
    assert (code, answer["state"]) == (Exit.OK, "deleted"), answer
    pair.prune()
    assert Source.objects.get(pk=pair.files.pk).last_good_backup_id == pair.first.pk
    assert backup_copies(backup_get(pair.last.pk)) == [], "nothing is missing: it has ended"
    assert pair.house.backup(pair.tenant, "incremental").state == "succeeded"
    pair.house.run(copy_run_start(pair.copy, actor=ACTOR, here=True))
    assert Copy.objects.get(pk=pair.copy.pk).health == "whole"
    pair.prune()
    assert run("backup", "delete", pair.last.pk, "--lost", "--confirm", "aurora")[0] == Exit.FAILED


def test_what_ended_is_missing_nowhere(pair: Pair) -> None:
    """Goal: `missing` says that something ought to be there; end a backup for good, and look at it before and after."""
    assert [each["state"] for each in backup_copies(backup_get(pair.first.pk))] == ["present", "present"]
    pair.house.run(backup_delete_start(pair.first, actor=ACTOR, here=True, now=True))
    pair.house.run(copy_run_start(pair.copy, actor=ACTOR, here=True))
    assert backup_copies(backup_get(pair.first.pk)) == []


def test_no_hint_names_a_copy_that_is_switched_off(pair: Pair) -> None:
    """Goal: the next step can be taken; switch the only copy off, and read it."""
    pair.house.backup(pair.tenant)
    assert "copy run aurora --store second" in protections([tenant_get("aurora")])[0].next_step
    copy_set(pair.copy, actor=ACTOR, enabled=False)
    assert "add a store elsewhere" in protections([tenant_get("aurora")])[0].next_step


def test_queued_copies_do_not_stop_a_shredding(pair: Pair) -> None:
    """Goal: nobody has to empty a queue by hand; queue what follows a backup, and shred with no worker about."""
    copy_set(pair.copy, actor=ACTOR, afterwards=True)
    (queued,) = copies_queue_after(pair.tenant)
    operation = shred_start(pair.tenant, confirmed="aurora", reason="ended", actor=ACTOR, here=True)
    assert Operation.objects.get(pk=queued).state == OperationState.CANCELLED
    assert pair.house.run(operation).result["state"] == "complete"


def test_what_nobody_has_counted_is_not_said_to_be_nothing(pair: Pair, run: Run) -> None:
    """Goal: a list does not frighten; look at a primary before and after it is verified for the first time."""
    primary = run("copy", "list", "aurora")[1]["data"][0]
    assert (primary["health"], primary["stored_bytes"], primary["objects"]) == ("whole", None, None)
    assert run("copy", "verify", "aurora", "--here")[0] == Exit.OK
    assert run("copy", "list", "aurora")[1]["data"][0]["stored_bytes"] > 0


def test_copies_that_only_wait_hold_nobody_up(pair: Pair, run: Run) -> None:
    """Goal: without a worker a tenant can be put away all the same; leave copies queued, remove a source and the tenant."""
    copy_set(pair.copy, actor=ACTOR, afterwards=True)
    (queued,) = copies_queue_after(pair.tenant)
    assert run("source", "remove", "aurora", "assets", "--confirm", "aurora")[0] == Exit.OK
    assert run("tenant", "remove", "aurora", "--confirm", "aurora")[0] == Exit.OK
    assert pair.house.run(Operation.objects.get(pk=queued)).state == "succeeded", "and they still bring what there is"
    Operation.objects.filter(pk=queued).update(state="running")
    run("tenant", "reinstate", "aurora")
    code, answer = run("tenant", "remove", "aurora", "--confirm", "aurora")
    assert (code, queued in answer["hint"]) == (Exit.BUSY, True), answer
