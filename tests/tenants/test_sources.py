"""Sources: tested on saving, secrets write-only, nobody's data inside our own."""

import json
from pathlib import Path

import pytest

from audit.models import Entry
from core import sealing
from core.errors import Conflict, NotFound
from engine.errors import SourceError, UsageError, WrongKey
from engine.keys import RootKey
from tenants import outputs, wiring
from tenants.models import Source
from tenants.selectors import source_get, tenant_get
from tenants.services.sources import source_add, source_test, source_update
from tests.tenants.conftest import ACTOR, House

CANARY = "canary-7d1f"
DEAD_DSN = f"postgresql://who:{CANARY}@127.0.0.1:1/none"


def _dsn(house: House, *, test: bool = False, dsn: str = DEAD_DSN) -> Source:
    tenant = house.tenant()
    source, _ = source_add(
        tenant, "db", kind="postgresql", category="database", values={"dsn": dsn}, actor=ACTOR, test=test
    )
    return source


def test_a_source_that_cannot_be_reached_is_not_saved(house: House) -> None:
    """Goal: settings are tested on saving; give a server that is not there, and read what is said."""
    with pytest.raises(SourceError) as caught:
        _dsn(house, test=True)
    assert caught.value.hint
    assert CANARY not in str(caught.value)
    assert not Source.objects.exists()


def test_a_secret_goes_in_and_never_comes_out(house: House) -> None:
    """Goal: the catalogue holds no secret in clear; look at the row, the output and the audit log."""
    source = _dsn(house)
    row = json.dumps([source.config, source.sealed, outputs.source(source)])
    assert CANARY not in row
    assert outputs.source(source)["settings"]["dsn"] == "set"
    assert not [entry for entry in Entry.objects.all() if CANARY in f"{entry.message}{entry.data}"]
    config = sealing.config_of(
        wiring.connector_kind("postgresql").Config, source.config, source.sealed, owner=f"source:{source.pk}"
    )
    assert config.dsn == DEAD_DSN
    assert CANARY not in repr(source)


def test_a_sealed_secret_opens_nowhere_else(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a secret is bound to its source and its root key; move it, then change the key."""
    source = _dsn(house)
    with pytest.raises(Exception, match="altered"):
        sealing.unseal(source.sealed, owner="source:src_other")
    monkeypatch.setattr(sealing, "root_key", RootKey.generate)
    with pytest.raises(WrongKey):
        sealing.unseal(source.sealed, owner=f"source:{source.pk}")


def test_a_secret_may_be_in_a_file(house: House, tmp_path: Path) -> None:
    """Goal: no secret on a command line; name a file, then one that is not there."""
    (tmp_path / "dsn").write_text(f"{DEAD_DSN}\n")
    source = _dsn(house, dsn=f"@{tmp_path}/dsn")
    assert sealing.unseal(source.sealed, owner=f"source:{source.pk}") == {"dsn": DEAD_DSN}
    with pytest.raises(UsageError):
        source_update(source, values={"dsn": f"@{tmp_path}/none"}, actor=ACTOR, test=False)


def test_changing_one_setting_keeps_the_others(house: House) -> None:
    """Goal: secrets need not be typed again; change another setting and look."""
    source = _dsn(house)
    source_update(source, values={"schema": "x", "layout": "schema"}, actor=ACTOR, test=False)
    again = source_get(source.tenant, "db")
    assert again.config == {"schema": "x", "layout": "schema"}
    assert sealing.unseal(again.sealed, owner=f"source:{again.pk}") == {"dsn": DEAD_DSN}


def test_names_are_taken_once_whatever_their_case(house: House) -> None:
    """Goal: two sources are never one folder; add a name again in other letters, and a tenant twice."""
    tenant = house.tenant()
    house.files(tenant, "assets")
    with pytest.raises(Conflict):
        source_add(tenant, "Assets", kind="files", category="assets", values={"path": "/tmp"}, actor=ACTOR, test=False)
    with pytest.raises(Conflict):
        house.tenant()


def test_what_is_not_there_is_not_found(house: House) -> None:
    """Goal: a slip names what there is; ask for an unknown tenant and source."""
    tenant = house.tenant()
    house.files(tenant, "assets")
    with pytest.raises(NotFound, match="nobody"):
        tenant_get("nobody")
    with pytest.raises(NotFound) as caught:
        source_get(tenant, "db")
    assert "assets" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "category", "values"),
    [
        ("files", "database", {"path": "/tmp"}),
        ("nothing", "assets", {}),
        ("files", "assets", {}),
        ("files", "assets", {"path": "/tmp", "colour": "red"}),
    ],
)
def test_settings_that_cannot_be_right(house: House, kind: str, category: str, values: dict[str, str]) -> None:
    """Goal: a wrong kind, category or key ends in a usage error with a hint, and nothing saved."""
    tenant = house.tenant()
    with pytest.raises(UsageError) as caught:
        source_add(tenant, "x", kind=kind, category=category, values=values, actor=ACTOR, test=False)
    assert caught.value.hint
    assert not Source.objects.exists()


def test_a_source_may_not_hold_its_own_store_unless_it_leaves_it_out(house: House, tmp_path: Path) -> None:
    """Goal: a backup never backs itself up; take the data folder, its parent and the store as sources."""
    tenant = house.tenant()
    for path in (tmp_path, tmp_path.parent, tmp_path / "store", tmp_path / "store" / "r", tmp_path / "keys"):
        path.mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=r"Lastro's own|store"):
            source_add(tenant, "x", kind="files", category="assets", values={"path": str(path)}, actor=ACTOR)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "store")
    with pytest.raises(UsageError):
        source_add(tenant, "x", kind="files", category="assets", values={"path": str(link)}, actor=ACTOR)
    assert not Source.objects.exists()


def test_testing_a_saved_source_keeps_when_it_passed(house: House) -> None:
    """Goal: an operator can look again; test a good one, then take its folder away."""
    source = house.files(house.tenant())
    assert source.tested_at is not None
    for path in house.folder(source).iterdir():
        path.unlink()
    house.folder(source).rmdir()
    with pytest.raises(SourceError):
        source_test(source, actor=ACTOR)
