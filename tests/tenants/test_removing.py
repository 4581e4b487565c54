"""Removing sources and tenants: nothing in a store goes, and everything can be brought back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from access.models import Account, Token
from access.services import token_add
from core.errors import Busy, Conflict, NotFound
from tenants import selectors
from tenants.diagnosis import diagnose
from tenants.management.commands.source import Command as SourceCommand
from tenants.management.commands.tenant import Command as TenantCommand
from tenants.services.backups import BackupWish, backup_start
from tenants.services.sources import source_add, source_archive, source_reinstate
from tenants.services.tenants import tenant_add, tenant_archive, tenant_reinstate
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def test_a_removed_source_leaves_its_backups(house: House, content: Content) -> None:
    """Goal: removing deletes nothing; remove a source, look at store, backups and ages, bring it back, restore."""
    tenant = house.tenant()
    source, other = house.files(tenant), house.files(tenant, "other")
    backup, kept = house.backup(tenant), content(house.folder(source))
    stored = content(house.data / "store")
    source_archive(source, actor=ACTOR)
    assert content(house.data / "store") == stored
    assert [row.name for row in selectors.source_list(tenant)] == ["other"]
    assert [row.name for row in house.backup(tenant).sources.all()] == [other.name]
    assert [row.name for row in selectors.backup_get(backup.pk).sources.all()] == ["assets", "other"]
    with pytest.raises(NotFound) as caught:
        selectors.source_get(tenant, "assets")
    assert "reinstate" in caught.value.hint
    for path in house.folder(source).iterdir():
        path.unlink()
    again = source_reinstate(tenant, "assets", actor=ACTOR)
    assert again.pk == source.pk
    house.restore(backup, sources=("assets",))
    assert content(house.folder(source)) == kept


def test_the_name_of_a_removed_source_is_free(house: House, tmp_path: Path) -> None:
    """Goal: a slip can be mended; remove a source, use its name for another kind, then try to bring the first back."""
    tenant = house.tenant()
    source_archive(house.files(tenant, "data"), actor=ACTOR)
    new = house.database(tenant, "data")
    with pytest.raises(Conflict):
        source_reinstate(tenant, "data", actor=ACTOR)
    backup = house.backup(tenant)
    assert [(row.name, row.kind, row.source_id) for row in backup.sources.all()] == [("data", "sqlite", new.pk)]
    with pytest.raises(NotFound):
        source_reinstate(tenant, "never", actor=ACTOR)


def test_a_removed_tenant_is_kept_and_takes_nothing_new(house: House, content: Content) -> None:
    """Goal: archive, not delete; remove a tenant, look at lists, store and doctor, restore from it, bring it back."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup, kept = house.backup(tenant), content(house.folder(source))
    stored = content(house.data / "store")
    tenant = tenant_archive(tenant, actor=ACTOR)
    assert content(house.data / "store") == stored
    assert selectors.tenant_list() == []
    assert [row.pk for row in selectors.backup_list(tenant)] == [backup.pk]
    with pytest.raises(Conflict, match="removed") as caught:
        backup_start(tenant, BackupWish(), actor=ACTOR, here=True)
    assert "reinstate" in caught.value.hint
    with pytest.raises(Conflict, match="removed"):
        tenant_add("aurora", name="Another", actor=ACTOR)
    ages = next(sign for sign in diagnose() if sign.name == "backup ages")
    assert ages.figures["sources"] == 0
    (house.folder(source) / "a").unlink()
    house.restore(backup)
    assert content(house.folder(source)) == kept
    tenant = tenant_reinstate(tenant, actor=ACTOR)
    assert [row.tenant.slug for row in selectors.tenant_list()] == ["aurora"]
    assert house.backup(tenant, "incremental").type == "incremental"


def test_nothing_is_removed_under_an_operation(house: House) -> None:
    """Goal: a running backup keeps what it works on; queue one, then try to remove its source and its tenant."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup_start(tenant, BackupWish(), actor=ACTOR)
    with pytest.raises(Busy):
        source_archive(source, actor=ACTOR)
    with pytest.raises(Busy):
        tenant_archive(tenant, actor=ACTOR)


def test_backups_make_removing_ask_for_a_confirmation(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: exit 6 without the slug, and with another one; remove by the command line, without and with backups."""
    tenant = house.tenant()
    house.files(tenant)
    house.files(tenant, "new")
    house.backup(tenant, sources=("assets",))
    assert SourceCommand().run(["remove", "aurora", "new", "--no-input"]) == 0
    for confirm in ([], ["--confirm", "assets"]):
        assert SourceCommand().run(["remove", "aurora", "assets", "--no-input", *confirm]) == 6
        assert TenantCommand().run(["remove", "aurora", "--no-input", *confirm]) == 6
    assert "1 backup;" in capsys.readouterr().err
    assert SourceCommand().run(["remove", "aurora", "assets", "--confirm", "aurora", "--json"]) == 0
    assert TenantCommand().run(["remove", "aurora", "--confirm", "aurora", "--json"]) == 0
    assert TenantCommand().run(["remove", "aurora", "--json"]) == 0  # Twice is no error.
    assert SourceCommand().run(["remove", "aurora", "assets"]) == 4
    assert TenantCommand().run(["reinstate", "aurora"]) == 0
    assert SourceCommand().run(["reinstate", "aurora", "assets"]) == 0


def test_a_source_is_changed_by_command_and_tested(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: a moved server needs no new source; change a path well, then badly, then a secret, then nothing."""
    tenant = house.tenant()
    source = house.files(tenant)
    moved = house.data / "moved"
    house.folder(source).rename(moved)
    command = SourceCommand()
    assert command.run(["set", "aurora", "assets", "--set", "path=/none/at/all"]) == 1
    assert selectors.source_get(tenant, "assets").config == source.config
    assert command.run(["set", "aurora", "assets", "--set", f"path={moved}", "--class", "critical"]) == 0
    changed = selectors.source_get(tenant, "assets")
    assert (changed.config, changed.criticality) == ({"path": str(moved)}, "critical")
    assert command.run(["set", "aurora", "assets"]) == 2
    dead, secret = "postgresql://who:old@127.0.0.1:1/none", "postgresql://who:hidden-7d1f@127.0.0.1:1/none"
    source_add(tenant, "db", kind="postgresql", category="database", values={"dsn": dead}, actor=ACTOR, test=False)
    before = selectors.source_get(tenant, "db").sealed
    capsys.readouterr()
    assert command.run(["set", "aurora", "db", "--set", f"dsn={secret}"]) == 1
    assert selectors.source_get(tenant, "db").sealed == before
    assert command.run(["set", "aurora", "db", "--set", f"dsn={secret}", "--no-test"]) == 0
    assert selectors.source_get(tenant, "db").sealed != before
    said = capsys.readouterr()
    assert "hidden-7d1f" not in said.out + said.err
    assert "hint" in said.err


def test_a_token_is_for_tenants_that_there_are(house: House) -> None:
    """Goal: a slip gives no token; name an unknown tenant, a removed one, then a real one."""
    Account.objects.create(username="boss", is_master=True)
    tenant_archive(house.tenant("gone"), actor=ACTOR)
    house.tenant()
    for slug in ("arora", "gone", ""):
        with pytest.raises(NotFound):
            token_add("t", scopes=["read"], tenants=["aurora", slug], actor=ACTOR)
    assert not Token.objects.exists()
    assert token_add("t", scopes=["read"], tenants=["aurora"], actor=ACTOR)[0].tenants == ["aurora"]
