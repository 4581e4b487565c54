"""The primary of a tenant moves: planned, after a loss, killed at each step, with workers that wake up late, and back again."""

import datetime
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import load_command_class
from django.db import connections

from audit.models import Entry
from core import clock
from core.errors import Conflict, Exit
from engine import faults
from operations.models import ACTIVE_STATES, Lease, Operation
from operations.services import operations_reap
from tenants.copy_selectors import copy_get, copy_primary
from tenants.diagnosis import diagnose
from tenants.models import Backup, Copy, KeyringPlace, Promotion, StoreConfig, Tenant
from tenants.selectors import backup_get, tenant_get
from tenants.services.backups import BackupWish, backup_start, prune_start
from tenants.services.copies import copy_add, copy_run_start, copy_verify_start
from tenants.services.erasures import erasure_add
from tenants.services.promoting import promote_start
from tenants.services.stores import store_add, store_get
from tenants.services.tenants import tenant_add
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


class Moving:
    """A tenant with files, three backups (one in the trash's way), and a copy that lacks the newest."""

    def __init__(self, house: House) -> None:
        self.house, self.data = house, house.data
        self.tenant = house.tenant()
        self.files = house.files(self.tenant, a="one", b="two" * 20_000)
        self.second = self.store("second")
        self.copy = copy_add(self.tenant, self.second, actor=ACTOR, afterwards=False)
        self.backups = [house.backup(self.tenant)]
        house.run(copy_run_start(self.copy, actor=ACTOR, here=True))
        self.backups.append(self.change("three"))

    def store(self, name: str) -> StoreConfig:
        return store_add(name, kind="local", values={"path": str(self.data / name)}, actor=ACTOR)

    def change(self, text: str) -> Backup:
        (self.house.folder(self.files) / "a").write_text(text * 20_000)
        return self.house.backup(self.now, "incremental")

    @property
    def now(self) -> Tenant:
        return tenant_get("aurora")

    def promote(self, store: str, *, ok: bool = True, **more: Any) -> Operation:
        return self.house.run(promote_start(self.now, store_get(store), actor=ACTOR, here=True, **more), ok=ok)

    def prune(self, *, ok: bool = True) -> Operation:
        return self.house.run(prune_start(self.now, dry_run=False, actor=ACTOR, here=True), ok=ok)

    def objects(self, store: str, sort: str) -> list[str]:
        top = self.data / store / "r" / self.tenant.repository_id / sort
        return sorted(str(each.relative_to(top)) for each in top.rglob("*") if each.is_file())

    def whole(self, store: str) -> bool:
        copy = copy_get(self.now, store_get(store))
        verify = copy_verify_start(copy, mode="deep", actor=ACTOR, here=True, repair=False)
        return not (self.house.run(verify).result or {})["findings"]

    def restored(self, backup: Backup, text: str) -> None:
        self.house.restore(backup)
        assert (self.house.folder(self.files) / "a").read_text() == text

    def settled(self, store: str) -> None:
        """The tenant lives in that store: backups, prune, restore and verification work."""
        assert self.now.store.name == store and not Promotion.objects.filter(settled_at=None).exists()
        assert copy_primary(self.now).store.name == store
        assert self.objects(store, "selections") == []
        newest = self.change("four")
        self.prune()
        assert self.whole(store)
        self.restored(self.backups[0], "one")
        self.restored(newest, "four" * 20_000)


@pytest.fixture
def moving(house: House) -> Moving:
    return Moving(house)


def test_a_copy_becomes_the_primary_and_the_primary_a_copy(moving: Moving, run: Run) -> None:
    """Goal: a planned promotion loses nothing and can be taken back; promote a copy that is behind, look at both stores,
    go on in it, and promote the former primary again."""
    waiting = copy_run_start(moving.copy, actor=ACTOR)
    code, done = run("copy", "promote", "aurora", "second", "--deep", "--here")
    assert (code, done["brought"], done["left_count"], done["former"]) == (Exit.OK, 1, 0, "copy"), done
    assert Operation.objects.get(pk=waiting.pk).state == "cancelled", "nobody copies into a primary"
    moving.settled("second")
    first = copy_get(moving.now, store_get("default"))
    assert (first.health, first.enabled, first.selection > 0) == ("whole", True, True)
    assert moving.objects("store", "selections") and not moving.objects("store", "tombstones")
    moving.house.run(copy_run_start(first, actor=ACTOR, here=True))
    assert moving.whole("default")
    moving.promote("default")
    moving.settled("default")
    assert Entry.objects.filter(type="tenant.promoted").count() == 2
    code, answer = run("copy", "promote", "aurora", "default", "--here")
    assert (code, "already" in answer["detail"]) == (Exit.FAILED, True), answer


def test_a_tenant_moves_to_a_store_that_held_nothing(moving: Moving, run: Run) -> None:
    """Goal: `tenant set --store` copies, verifies, switches and ends the former primary; the further copy goes on."""
    moving.store("third")
    moving.house.run(copy_run_start(moving.copy, actor=ACTOR, here=True))
    trashed = moving.backups[0]
    assert run("backup", "delete", trashed.pk, "--here", "--confirm", "aurora")[0] == Exit.OK
    code, done = run("tenant", "set", "aurora", "--store", "third", "--end-old", "--here")
    assert (code, done["brought"], done["former"]) == (Exit.OK, 2, "ended"), done
    assert not Copy.objects.filter(tenant=moving.tenant, store__is_default=True).exists()
    assert run("backup", "undelete", trashed.pk, "--reason", "wanted")[0] == Exit.OK, "the trash came along"
    moving.settled("third")
    moving.house.run(copy_run_start(moving.copy, actor=ACTOR, here=True))
    assert moving.whole("second")
    assert KeyringPlace.objects.filter(tenant=moving.tenant, store__name="third", state="written").exists()
    assert run("tenant", "set", "aurora", "--lost")[0] == Exit.USAGE
    assert run("tenant", "set", "aurora", "--store", "second", "--name", "x")[0] == Exit.USAGE


@pytest.mark.parametrize(
    ("label", "switched"),
    [
        ("copy.pack_stored", False),
        ("copy.manifest_stored", False),
        ("promote.verified", False),
        ("promote.switched", True),
        ("reconcile.taken_over", True),
        ("promote.reconciled", True),
    ],
)
def test_a_killed_promotion_is_repeated(moving: Moving, label: str, switched: bool) -> None:
    """Goal: killed anywhere the tenant has one primary that takes backups, nothing is deleted by half, and a repeat ends it."""
    operation = promote_start(moving.now, moving.second, actor=ACTOR, here=True)
    killed(lambda: moving.house.run(operation), label=label)
    assert moving.now.store.name == ("second" if switched else "default")
    moving.restored(moving.backups[1], "three" * 20_000)
    extra = moving.change("five")
    if label == "promote.switched":
        assert "second" in str(moving.prune(ok=False).error), "not before catalogue and store are reconciled"
        assert any("promote" in sign.hint for sign in diagnose() if sign.status != "ok")
        with pytest.raises(Conflict, match="on its way"):
            promote_start(moving.now, store_get("default"), actor=ACTOR)
    moving.promote("second")
    moving.settled("second")
    moving.restored(extra, "five" * 20_000)


def _stopped(work: Callable[[], object], label: str) -> int:
    """A child that stops (SIGSTOP) at the label; afterwards it is taken for dead."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        try:
            faults._wanted, _, faults._nth = label.partition(":")
            faults._passages, faults._signal = 0, signal.SIGSTOP
            ended: Any = work()
            os._exit(0 if ended.state in ("succeeded", "warned") else 4)
        except BaseException:  # The child ends here, whatever it was.
            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"{label} was not reached"
    long_ago = clock.now() - datetime.timedelta(hours=1)
    Operation.objects.filter(state__in=(*ACTIVE_STATES, "queued")).update(heartbeat_at=long_ago)
    Lease.objects.update(expires_at=long_ago)
    operations_reap()
    return child


@pytest.mark.parametrize(
    ("kind", "label", "lost"),
    [
        ("backup", "backup.chunks_stored", False),
        ("backup", "backup.before_manifest", False),
        ("backup", "backup.before_manifest", True),
        ("prune", "index.generation_claimed", False),
        ("prune", "prune.index_rewritten", False),
        ("prune", "prune.index_rewritten", True),
        ("copy", "copy.before_manifests", False),
        ("copy", "copy.indexed", True),
    ],
)
def test_workers_of_before_do_nothing_late(moving: Moving, kind: str, label: str, lost: bool) -> None:
    """Goal: no worker of the former primary commits or sweeps, none of the copy promises, after the move; stop it (SIGSTOP),
    move the primary with the former one at hand or away, go on there, wake the worker up, and look at both stores."""
    house, tenant = moving.house, moving.now
    if kind == "backup":
        (house.folder(moving.files) / "b").write_text("late" * 20_000)
        _, operation = backup_start(tenant, BackupWish(type="full"), actor=ACTOR, here=True)
    elif kind == "prune":
        Backup.objects.filter(pk=moving.backups[0].pk).update(state="expired")
        operation = prune_start(tenant, dry_run=False, actor=ACTOR, here=True)
    else:
        operation = copy_run_start(moving.copy, actor=ACTOR, here=True)
    child = _stopped(lambda: house.run(operation, ok=False), label)
    aside = moving.data / "aside"
    try:
        if lost:
            (moving.data / "store").rename(aside)
        moving.promote("second", lost=lost)
        newest = moving.change("six")
        if lost:
            aside.rename(moving.data / "store")
        before = {name: moving.objects(name, "") for name in ("store", "second")}
    finally:
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 4, "what was taken over must not succeed"
    after = {name: moving.objects(name, "") for name in ("store", "second")}
    assert set(before["store"]) <= set(after["store"]), "swept late"
    assert set(before["second"]) <= set(after["second"]), "swept late in the new primary"
    for sort in ("manifests", "selections"):
        for name in ("store", "second"):
            late = [key for key in set(after[name]) - set(before[name]) if key.startswith(sort)]
            assert not late, f"{late} in {name}"
    moving.restored(newest, "six" * 20_000)
    moving.prune()
    assert moving.whole("second")
    if not lost:
        house.run(copy_run_start(copy_get(moving.now, store_get("default")), actor=ACTOR, here=True))
        assert moving.whole("default")


def test_a_copy_takes_the_place_of_a_primary_that_is_away_and_gives_it_back(moving: Moving, run: Run) -> None:
    """Goal: what only the lost primary held is told and stays listed; go on without it, have it come back, give it its place."""
    code, answer = run("copy", "promote", "aurora", "second", "--lost", "--here", "--confirm", "aurora")
    assert (code, "not lost" in answer["detail"]) == (Exit.FAILED, True), answer
    aside = moving.data / "aside"
    (moving.data / "store").rename(aside)
    assert run("copy", "promote", "aurora", "second", "--here")[0] == Exit.STORE_UNREACHABLE
    code, answer = run("copy", "promote", "aurora", "second", "--lost", "--here")
    assert (code, moving.backups[1].pk in answer["detail"]) == (Exit.CONFIRM, True), answer
    code, done = run("copy", "promote", "aurora", "second", "--lost", "--here", "--confirm", "aurora")
    assert (code, done["left"], done["ended_count"], done["former"]) == (Exit.OK, [moving.backups[1].pk], 0, "away"), (
        done
    )
    assert backup_get(moving.backups[1].pk).state == "succeeded"
    alone = moving.change("four")
    moving.prune()
    aside.rename(moving.data / "store")
    moving.restored(moving.backups[1], "three" * 20_000)
    moving.promote("default")
    moving.settled("default")
    moving.restored(moving.backups[1], "three" * 20_000)
    moving.restored(alone, "four" * 20_000)
    assert not Backup.objects.exclude(left_at=None).exists()


def test_a_tenant_whose_only_store_is_gone_begins_anew(house: House, run: Run) -> None:
    """Goal: nobody is stuck with a store that is gone; lose the only one for two tenants (one empty disk, one held), with
    erasures recorded, be told, be killed half-way, begin anew in another store, and give the old one up."""
    tenant = house.tenant()
    database = house.database(tenant)
    backup = house.backup(tenant)
    erasure_add(database, "users", ["7"], actor=ACTOR)
    other = house.tenant("boreal")
    files = house.files(other)
    kept = house.backup(other)
    shutil.rmtree(house.data / "store")
    code, answer = run("backup", "create", "aurora", "--here")
    assert (code, "--store" in answer["hint"]) == (Exit.STORE_UNREACHABLE, True), answer
    run("store", "add", "fresh", "--kind", "local", "--set", f"path={house.data / 'fresh'}")
    operation = promote_start(tenant_get("aurora"), store_get("fresh"), lost=True, actor=ACTOR, here=True)
    killed(lambda: house.run(operation), label="promote.verified")
    code, done = run("tenant", "set", "aurora", "--store", "fresh", "--lost", "--here", "--confirm", "aurora")
    assert (code, done["left"], len(done["erasures_lost"])) == (Exit.WARNED, [backup.pk], 1), done
    again = house.backup(tenant_get("aurora"))
    assert again.type == "full"
    house.restore(again)
    with sqlite3.connect(house.folder(database)) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (100,)
    Backup.objects.filter(pk=kept.pk).update(held=True)
    code, answer = run("store", "remove", "default", "--lost", "--to", "fresh", "--confirm", "default")
    assert (code, kept.pk in answer["detail"]) == (Exit.FAILED, True), answer
    Backup.objects.update(held=False)
    assert run("store", "remove", "default", "--lost", "--to", "fresh")[0] == Exit.CONFIRM
    code, done = run("store", "remove", "default", "--lost", "--to", "fresh", "--confirm", "default")
    assert (code, done["moved"]) == (Exit.OK, ["boreal"]), done
    assert (backup_get(backup.pk).state, backup_get(kept.pk).state) == ("deleted", "deleted")
    assert StoreConfig.objects.get().name == "fresh" and StoreConfig.objects.get().is_default
    assert house.backup(tenant_get("boreal")).state == "succeeded" and files.pk
    for slug in ("aurora", "boreal"):
        house.run(prune_start(tenant_get(slug), dry_run=False, actor=ACTOR, here=True))
    assert Entry.objects.filter(type="store.lost").count() == 1
    house.tenant("cedar")


def test_lost_erasures_come_back_with_the_store_that_held_them(moving: Moving) -> None:
    """Goal: an erased row never returns unseen; lose the primary that alone had the record, go on, have it back, restore."""
    database = moving.house.database(moving.tenant)
    backup = moving.house.backup(moving.now)
    moving.house.run(copy_run_start(moving.copy, actor=ACTOR, here=True))
    erasure_add(database, "users", ["7"], actor=ACTOR)
    for each in Operation.objects.filter(state="queued"):
        Operation.objects.filter(pk=each.pk).update(state="cancelled")
    aside = moving.data / "aside"
    (moving.data / "store").rename(aside)
    warned = moving.promote("second", lost=True)
    assert any("erasure" in each["message"] for each in warned.warnings), warned.warnings
    aside.rename(moving.data / "store")

    def names() -> set[str]:
        with sqlite3.connect(moving.house.folder(database)) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM users")}

    moving.house.restore(backup, sources=("db",))
    assert "u7" not in names(), "the record is read where it is"
    copy = copy_get(moving.now, store_get("default"))
    Copy.objects.filter(pk=copy.pk).update(enabled=True)
    moving.house.run(copy_run_start(copy, actor=ACTOR, here=True))
    shutil.rmtree(moving.data / "store")
    moving.house.restore(backup, sources=("db",))
    assert "u7" not in names(), "and was brought to where it was missing"


def test_a_primary_that_is_full_is_left(house: House, run: Run) -> None:
    """Goal: the usual reason to move works although the old place takes no byte; fill a file system of its own."""
    small = house.data / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        store_add("small", kind="local", values={"path": str(small / "store")}, actor=ACTOR)
        tenant = tenant_add("aurora", name="Aurora", actor=ACTOR, store_name="small")
        files = house.files(tenant, a="one")
        backup = house.backup(tenant)
        (small / "ballast").write_bytes(b"x" * (shutil.disk_usage(small).free - 4096))
        (house.folder(files) / "b").write_bytes(os.urandom(500_000))
        assert house.backup(tenant, ok=False).state == "failed"
        code, done = run("tenant", "set", "aurora", "--store", "default", "--end-old", "--here")
        assert (code in (Exit.OK, Exit.WARNED), done["brought"]) == (True, 1), done
        assert house.backup(tenant_get("aurora"), "incremental").state == "succeeded"
        house.restore(backup)
    finally:
        subprocess.run(["umount", small], check=True)
