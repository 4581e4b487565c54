"""Erasures through the services: recorded once, obeyed by every later restore, drill and export."""

import gzip
import sqlite3

import pytest

from audit.models import Entry
from core.errors import NotFound
from engine.errors import ManifestDamaged, UsageError
from tenants.models import Source, Tenant
from tenants.services import drills
from tenants.services.backups import backup_export_start
from tenants.services.erasures import erasure_add, erasure_list
from tests.tenants.conftest import ACTOR, House


def _names(house: House, source: Source) -> set[str]:
    with sqlite3.connect(house.folder(source)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM users")}


def test_an_erased_subject_comes_back_from_no_backup(house: House) -> None:
    """Goal: erased for good; restore a backup from before, and one from after, the erasure."""
    tenant = house.tenant()
    source = house.database(tenant)
    first, second = house.backup(tenant), house.backup(tenant)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute("DELETE FROM users WHERE id IN (7, 8)")
    done = erasure_add(source, "users", ["7"], actor=ACTOR, reason="request 4711")
    assert set(done.found_in) == {first.pk, second.pk} and done.is_new
    again = erasure_add(source, "users", ["7"], actor=ACTOR)
    assert (again.found_in, again.is_new, again.number) == ((), False, done.number)
    house.restore(first)
    assert _names(house, source) == {f"u{n}" for n in range(100)} - {"u7"}
    house.restore(house.backup(tenant))
    assert "u7" not in _names(house, source)
    entry = Entry.objects.filter(type="erasure.recorded").earliest("pk")
    assert "u7" not in str(entry.data) and entry.data["reason"] == "request 4711"


def test_drills_and_exports_obey_too(house: House) -> None:
    """Goal: no way around the ledger; rehearse and export a backup that holds the subject."""
    tenant = house.tenant()
    source = house.database(tenant)
    backup = house.backup(tenant)
    erasure_add(source, "users", ["7"], actor=ACTOR)
    drills.check_add(
        source, "gone", kind="sql", ask="SELECT count(*) FROM users WHERE id = 7", expected="0", actor=ACTOR
    )
    _, operation = drills.drill_start(tenant, actor=ACTOR, here=True)
    house.run(operation)
    target = house.data / "export"
    house.run(backup_export_start(backup, str(target), actor=ACTOR, here=True))
    text = gzip.decompress((target / "db.sql.gz").read_bytes()).decode()
    assert "'u8'" in text and "'u7'" not in text


def test_a_ledger_that_lost_its_newest_record_stops_restores(house: House) -> None:
    """Goal: a rolled-back store brings nobody back; delete the record behind the catalogue's back."""
    tenant = house.tenant()
    source = house.database(tenant)
    backup = house.backup(tenant)
    erasure_add(source, "users", ["7"], actor=ACTOR)
    (record,) = (house.data / "store").rglob("erasures/*")
    record.unlink()
    house.restore(backup, ok=False)
    assert len(_names(house, source)) == 100
    with pytest.raises(ManifestDamaged):
        erasure_list(Tenant.objects.get(pk=tenant.pk))


def test_what_cannot_be_erased_is_refused(house: House) -> None:
    """Goal: nobody believes that something was erased which was not; unknown tables and impossible keys."""
    tenant = house.tenant()
    source = house.database(tenant)
    with pytest.raises(NotFound, match="no backup holds"):
        erasure_add(source, "users", ["1"], actor=ACTOR)
    house.backup(tenant)
    with pytest.raises(NotFound) as error:
        erasure_add(source, "user", ["1"], actor=ACTOR)
    assert error.value.hint == "did you mean users?"
    for key in (["x"], [], ["1", "2"]):
        with pytest.raises(UsageError):
            erasure_add(source, "users", key, actor=ACTOR)
    assert erasure_add(source, "users", ["4711"], actor=ACTOR).found_in == ()
    assert [(each.source, each.table) for each in erasure_list(tenant)] == [("db", "users")]


def test_a_text_key_is_named_as_people_type_it(house: House) -> None:
    """Goal: a subject is found by an e-mail address, too; a key of text and a number."""
    tenant = house.tenant()
    source = house.database(tenant)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute("CREATE TABLE guest (mail TEXT, room INTEGER, PRIMARY KEY (mail, room)) WITHOUT ROWID")
        connection.execute("INSERT INTO guest VALUES ('ana@x', 1), ('ana@x', 2), ('bo@x', 1)")
    backup = house.backup(tenant)
    assert erasure_add(source, "guest", ["ana@x", "2"], actor=ACTOR).found_in == (backup.pk,)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute("DELETE FROM guest")
    house.restore(backup)
    with sqlite3.connect(house.folder(source)) as connection:
        assert connection.execute("SELECT * FROM guest").fetchall() == [("ana@x", 1), ("bo@x", 1)]
