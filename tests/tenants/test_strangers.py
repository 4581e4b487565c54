"""Rubbish under numbers to come: it stops what comes upon it, is named, and is set aside without anything being lost."""

from typing import Any

import pytest

from core.errors import Exit
from tenants.models import Backup
from tenants.selectors import tenant_get
from tenants.services.backups import backup_delete_start, prune_start
from tests.tenants.conftest import ACTOR, House
from tests.tenants.test_promoting import Run, run  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    "key", ["manifests/9999999999", "manifests/0000000003", "forgets/0000000004", "erasures/0000000001"]
)
def test_rubbish_among_the_numbers_is_named_and_set_aside(house: House, run: Run, key: str) -> None:  # noqa: F811
    """Goal: whoever may write to a store stops a tenant for a command's time, not for ever; put an object under a number to
    come, come upon it, set it aside, and go on with every backup there."""
    tenant = house.tenant()
    files = house.files(tenant)
    first, second = house.backup(tenant), house.backup(tenant)
    folder = house.data / "store" / "r" / tenant.repository_id
    path = folder / key
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"rubbish")

    def prune() -> Any:
        operation = prune_start(tenant_get("aurora"), dry_run=False, actor=ACTOR, here=True)
        return house.run(operation, ok=False)

    stopped = prune()
    if key.startswith("manifests"):
        assert key in stopped.error["detail"] and "copy strangers aurora" in stopped.error["hint"]
        code, answer = run("store", "reconcile", "default", "--tenant", "aurora")
        assert (code, key in str(answer)) == (Exit.FAILED, True), answer
    code, answer = run("copy", "strangers", "aurora")
    assert (code, [each["key"] for each in answer["strangers"]]) == (Exit.INTEGRITY, [key]), answer
    code, answer = run("copy", "strangers", "aurora", "--set-aside", "--here", "--reason", "who was that?")
    assert (code, [each["key"] for each in answer["set_aside"]]) == (Exit.OK, [key]), answer
    assert not path.exists()
    assert [each.read_bytes() for each in (folder / "damaged").iterdir()] == [b"rubbish"], "nothing is just deleted"
    assert run("copy", "strangers", "aurora")[0] == Exit.OK
    run("store", "reconcile", "default", "--tenant", "aurora")
    assert prune().state == "succeeded"
    third = house.backup(tenant_get("aurora"), "incremental")
    house.run(backup_delete_start(first, actor=ACTOR, here=True, now=True))
    assert prune().state == "succeeded"
    for backup in (second, third):
        house.restore(backup)
        assert (house.folder(files) / "a").read_text() == "one"


def test_damage_is_no_stranger(house: House, run: Run) -> None:  # noqa: F811
    """Goal: what the catalogue knows is never set aside; damage a manifest, and lose the catalogue's memory of another."""
    tenant = house.tenant()
    house.files(tenant)
    first, second = house.backup(tenant), house.backup(tenant)
    folder = house.data / "store" / "r" / tenant.repository_id / "manifests"
    (folder / f"{first.number:010d}").write_bytes(b"damaged")
    Backup.objects.filter(pk=second.pk).delete()
    type(tenant).objects.update(number_reserved=1, numbers_closed=1)
    code, answer = run("copy", "strangers", "aurora", "--set-aside", "--here")
    assert (code, answer["set_aside"]) == (Exit.OK, []), answer
    assert (folder / f"{first.number:010d}").exists() and (folder / f"{second.number:010d}").exists()
