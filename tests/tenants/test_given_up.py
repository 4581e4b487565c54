"""Stores that were given up as lost stand in certificates of shredding until somebody declares them destroyed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import load_command_class

from audit.models import Entry
from engine.certificate import certificate_sign
from engine.errors import WrongKey
from tenants.diagnosis import diagnose
from tenants.models import GivenUpStore, StoreConfig, Tenant
from tenants.owning import catalogue_keyring, installation_get
from tenants.services.key_rotation import root_rotate_start
from tenants.services.keys import keys_settle
from tenants.services.lost_stores import store_give_up
from tenants.services.shredding import certificate_verify, installation_public_key
from tenants.services.stores import store_add
from tests.tenants.conftest import ACTOR, House

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


@pytest.fixture
def hotel(house: House) -> Tenant:
    """A tenant whose keyring lies in two stores, the second of which is gone."""
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    keys_settle(tenant)
    (house.data / "second").rename(house.data / "somewhere")
    return tenant


def given_up() -> GivenUpStore:
    store_give_up(StoreConfig.objects.get(name="second"), actor=ACTOR, reason="flooded")
    return GivenUpStore.objects.get()


def shred(run: Run) -> dict[str, Any]:
    code, done = run("key", "shred", "aurora", "--confirm", "aurora", "--reason", "over", "--here")
    assert code in (0, 3), done
    return run("key", "certificate", "show", "aurora")[1]


@pytest.mark.parametrize("first", ["shredded", "given up"])
def test_a_certificate_names_it_until_it_is_declared_destroyed(
    house: House, hotel: Tenant, run: Run, first: str
) -> None:
    """Goal: out of reach is not destroyed. Method: give the store up before or after shredding, shred again, declare, once more."""
    if first == "shredded":
        assert {each["place"] for each in shred(run)["pending"]} == {"store second"}
    store = given_up()
    for _ in range(2):
        document = shred(run)
        assert document["state"] == "pending"
        (pending,) = document["pending"]
        assert (pending["place"], pending["what"]) == (store.words, f"r/{hotel.repository_id}/keyring")
        assert "declared it destroyed" in pending["why"]
    (sign,) = (each for each in diagnose() if each.name == "given-up stores")
    assert (sign.status, store.words in sign.message, store.pk in sign.hint) == ("warning", True, True)
    (row,) = run("store", "lost")[1]["data"]
    assert (row["id"], row["shredded"], row["destroyed_at"]) == (store.pk, ["aurora"], None)

    assert run("store", "destroyed", "second", "--reason", "shredded, protocol 17")[0] == 6
    code, done = run("store", "destroyed", store.pk, "--confirm", "second", "--reason", "shredded, protocol 17")
    assert (code, done["shredded"]) == (0, ["aurora"])
    assert run("store", "destroyed", "second", "--confirm", "second", "--reason", "again")[0] == 1
    assert run("store", "destroyed", "nowhere", "--confirm", "nowhere", "--reason", "x")[0] == 4
    document = shred(run)
    assert (document["state"], document["pending"]) == ("complete", [])
    (declared,) = (each for each in document["destroyed"] if each["place"] == store.words)
    assert "protocol 17" in declared["what"] and certificate_verify(json.dumps(document).encode())
    assert Entry.objects.filter(type="store.declared_destroyed").count() == 1
    assert not [each for each in diagnose() if each.name == "given-up stores"]


def test_a_tenant_that_never_had_anything_there_waits_for_nothing(house: House, hotel: Tenant, run: Run) -> None:
    """Goal: certificates name what is so. Method: a tenant made after the store was given up is shredded whole."""
    given_up()
    later = house.tenant("boreal")
    house.files(later)
    house.backup(later)
    code, done = run("key", "shred", "boreal", "--confirm", "boreal", "--reason", "over", "--here")
    assert (code, done["state"]) == (0, "complete")
    (sign,) = (each for each in diagnose() if each.name == "given-up stores")
    assert sign.status == "ok" and "never declared destroyed" in sign.message


def test_a_certificate_of_a_former_key_is_genuine_only_where_it_is_known(house: House, hotel: Tenant, run: Run) -> None:
    """Goal: who has a former root key forges no certificate. Method: shred, rotate the root key, forge by the old key, verify."""
    (house.data / "somewhere").rename(house.data / "second")
    document = shred(run)
    former = catalogue_keyring(installation_get())
    house.run(root_rotate_start(actor=ACTOR, here=True)[1])
    assert certificate_verify(json.dumps(document).encode())["id"] == document["id"]
    forged = certificate_sign({**document, "reason": "another"}, former)
    with pytest.raises(WrongKey, match="former key"):
        certificate_verify(json.dumps(forged).encode())
    other = house.tenant("boreal")
    house.files(other)
    house.backup(other)
    run("key", "shred", "boreal", "--confirm", "boreal", "--reason", "over", "--here")
    newer = run("key", "certificate", "show", "boreal")[1]
    assert newer["public_key"] == installation_public_key() != document["public_key"]
    assert certificate_verify(json.dumps(newer).encode())["id"] == newer["id"]
