"""Keys open only what they sealed, in the place it was sealed for."""

import json

import pytest

from engine.errors import DamageError, LastroError, ObjectDamaged, RepositoryNewer, UsageError, WrongKey
from engine.keys import Keyring, RootKey
from engine.kit import kit_export, kit_open


def test_root_key_survives_its_text_form():
    """Print, type in again, compare; a changed character is refused."""
    root = RootKey.generate()
    text = root.to_text()
    assert RootKey.from_text(f"  {text}\n").to_text() == text
    digit = "0" if text[20] != "0" else "1"
    with pytest.raises(UsageError):
        RootKey.from_text(text[:20] + digit + text[21:])
    with pytest.raises(UsageError):
        RootKey.from_text("lastro-root-v1:zz")


def test_no_secret_in_repr():
    """A root key and a keyring that end up in a log show nothing."""
    root = RootKey.generate()
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    shown = repr(root) + repr(keyring)
    secrets = [root.to_text()[15:40], keyring.id_key.hex(), repr(keyring.id_key), repr(keyring.epochs[1])]
    assert not [s for s in secrets if s in shown]


def test_sealed_secret_opens_with_its_key_and_context_only():
    """Every flipped bit, another context, another key: each is a typed error."""
    root, other = RootKey.generate(), RootKey.generate()
    blob = root.seal(b"dsn=secret", "source:1:dsn")
    assert root.open(blob, "source:1:dsn") == b"dsn=secret"
    with pytest.raises(ObjectDamaged):
        root.open(blob, "source:2:dsn")
    with pytest.raises(WrongKey):
        other.open(blob, "source:1:dsn")
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LastroError):
            root.open(bytes(changed), "source:1:dsn")


def test_keyring_round_trip_and_refusals():
    """The wrapped keyring opens under its root key, and says what is wrong otherwise."""
    root = RootKey.generate()
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    blob = keyring.to_bytes(root)
    assert Keyring.from_bytes(blob, root) == keyring
    assert keyring.id_key.hex() not in blob.decode()
    with pytest.raises(WrongKey):
        Keyring.from_bytes(blob, RootKey.generate())
    newer = json.dumps({**json.loads(blob), "version": 99}).encode()
    with pytest.raises(RepositoryNewer):
        Keyring.from_bytes(newer, root)
    for damaged in (b"", b"{}", blob[:-10], blob.replace(b'"1": "4c', b'"1": "4d'), b"[1]", b"null"):
        with pytest.raises(DamageError):
            Keyring.from_bytes(damaged, root)


def test_recovery_kit_opens_with_its_passphrase_only():
    """Export, open, compare; wrong passphrase and altered kit are told apart from damage."""
    root = RootKey.generate()
    rows = [{"repository_id": "r", "tenant_id": "t", "tenant_name": "Aurora", "public_key": "00"}]
    kit = kit_export(root, "five words make it long", rows)
    opened, listed = kit_open(kit, "five words make it long")
    assert opened.to_text() == root.to_text()
    assert listed == rows
    with pytest.raises(WrongKey):
        kit_open(kit, "five words make it wrong")
    with pytest.raises(ObjectDamaged):
        kit_open(kit[:50], "five words make it long")
    with pytest.raises(UsageError):
        kit_export(root, "short", rows)
