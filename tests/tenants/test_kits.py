"""The recovery kit: what was lost with the host comes back from it."""

import pytest

from core.rootkey import RootKeyMismatch, RootKeyMissing, root_key
from engine.errors import ObjectDamaged, WrongKey
from engine.keys import RootKey
from engine.kit import kit_export
from tenants.services.kits import kit_make, kit_take
from tests.tenants.conftest import ACTOR, House

PASSPHRASE = "five words that nobody guesses"


def test_a_lost_root_key_comes_back_from_the_kit(house: House) -> None:
    """Goal: the advice given at night works; lose the key's file, take it from the kit, restore."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    kit, path = kit_make(PASSPHRASE, actor=ACTOR), house.data / "keys" / "root.key"
    before = path.read_bytes()
    path.unlink()
    root_key.cache_clear()
    with pytest.raises(RootKeyMissing, match="kit import"):
        root_key()
    assert kit_take(kit, PASSPHRASE, actor=ACTOR) == (backup_key_id(), True)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (before, 0o600)
    (house.folder(source) / "a").unlink()
    assert house.restore(backup).state == "succeeded"
    assert kit_take(kit, PASSPHRASE, actor=ACTOR)[1] is False


def backup_key_id() -> str:
    root_key.cache_clear()
    return root_key().key_id


def test_a_kit_never_replaces_a_key(house: House) -> None:
    """Goal: a wrong kit does no harm; offer another installation's, another passphrase, and a torn file."""
    house.tenant()
    path = house.data / "keys" / "root.key"
    before = path.read_bytes()
    other = kit_export(RootKey.generate(), PASSPHRASE, [])
    own = kit_make(PASSPHRASE, actor=ACTOR)
    for kit, passphrase, error in (
        (other, PASSPHRASE, RootKeyMismatch),
        (own, "five words that are not it", WrongKey),
        (own[:100], PASSPHRASE, ObjectDamaged),
    ):
        with pytest.raises(error):
            kit_take(kit, passphrase, actor=ACTOR)
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(RootKeyMismatch):
        kit_take(other, PASSPHRASE, actor=ACTOR)
    assert not path.exists()
