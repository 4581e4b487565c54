"""`doctor`: says what is wrong and what to do, as text, JSON and a monitoring plugin."""

import datetime
import shutil
import sqlite3

import pytest
from django.db import connection

from core import clock
from core.rootkey import root_key
from stores.local import LocalConfig, LocalStore
from tenants.diagnosis import diagnose, worst
from tenants.management.commands.doctor import Command
from tenants.models import Backup, Source
from tests.tenants.conftest import House


def _signs(name: str) -> dict[str, str]:
    return {sign.status: sign.message + sign.hint for sign in diagnose() if sign.name == name}


def test_a_fresh_installation_is_told_what_is_still_missing(house: House) -> None:
    """Goal: the first look is useful; look at an empty installation and at one with a tenant."""
    assert "ok" in _signs("catalogue")
    assert "ok" in _signs("root key")
    assert "ok" in _signs("store default")
    assert "worker" in _signs("workers")["warning"]
    house.tenant()
    assert "single store" in _signs("store copies")["warning"]


def test_ages_are_judged_by_class(house: House) -> None:
    """Goal: 4 h for critical sources, 24 h for others; let time pass over a backup."""
    tenant = house.tenant()
    source = house.files(tenant)
    assert "aurora/assets" in _signs("backup ages")["critical"]
    backup = house.backup(tenant)
    assert "ok" in _signs("backup ages")
    assert backup.taken_at is not None
    with clock.held(backup.taken_at + datetime.timedelta(hours=5)):
        assert "ok" in _signs("backup ages")
        Source.objects.filter(pk=source.pk).update(criticality="critical")
        assert "critical" in _signs("backup ages")
    Source.objects.filter(pk=source.pk).update(criticality="normal")
    with clock.held(backup.taken_at + datetime.timedelta(hours=25)):
        assert "critical" in _signs("backup ages")


def test_a_store_that_cannot_be_written_is_critical(house: House) -> None:
    """Goal: a broken store is seen before the next backup; put a file in its place."""
    house.tenant()
    shutil.rmtree(house.data / "store")
    (house.data / "store").write_text("no folder")
    assert _signs("store default")["critical"]


def test_a_store_that_is_not_mounted_is_critical(house: House) -> None:
    """Goal: an empty folder in the store's place is not taken for the store; take the folder away and look twice."""
    house.tenant()
    (house.data / "store").rename(house.data / "elsewhere")
    for there in ("nothing", "an empty mount point"):
        if there != "nothing":
            (house.data / "store").mkdir()
        said = _signs("store default")["critical"]
        assert "aurora" in said
        assert "mounted" in said
    (house.data / "store").rmdir()
    LocalStore.make(LocalConfig(path=str(house.data / "store"))).close()  # Another store in its place.
    assert "aurora" in _signs("store default")["critical"]
    shutil.rmtree(house.data / "store")
    (house.data / "elsewhere").rename(house.data / "store")
    assert "ok" in _signs("store default")


def test_a_library_that_can_damage_the_catalogue_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nobody has to know `check --deploy`; pretend to have SQLite before and after the WAL-reset fix."""
    if connection.vendor != "sqlite":
        pytest.skip("the catalogue lies in PostgreSQL")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    assert "WAL-reset" in _signs("settings")["warning"]
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert not [sign for sign in diagnose() if "WAL-reset" in sign.message]


def test_a_missing_root_key_is_critical(house: House) -> None:
    """Goal: the loss of the key is said at once; take its file away."""
    house.tenant()
    (house.data / "keys" / "root.key").unlink()
    root_key.cache_clear()
    assert "missing" in _signs("root key")["critical"]
    assert worst(diagnose()) == "critical"


def test_the_plugin_speaks_in_one_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: monitoring systems understand it; run it with something late."""
    house.files(house.tenant())
    code = Command().run(["--nagios"])
    out = capsys.readouterr().out
    assert code == 2
    assert out.startswith("LASTRO CRITICAL - ")
    assert " | sources=1 late=1 alerts_critical=0 alerts_other=0 watch_silence=U" in out
    assert out.count("\n") == 1
    assert Command().run(["--nagios", "--foo"]) == 3
    assert capsys.readouterr().out.startswith("LASTRO UNKNOWN - ")


def test_damage_of_a_backup_that_ended_alarms_nobody(house: House) -> None:
    """Goal: an alarm asks for something to be done; end the backup that was found damaged."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    Backup.objects.filter(pk=backup.pk).update(damaged=True)
    assert backup.pk in _signs("damage")["critical"]
    Backup.objects.filter(pk=backup.pk).update(state="deleted")
    assert _signs("damage") == {}
