"""Every bit and every length of small stored objects: exact bytes or a typed error, never silence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import LastroError, RepositoryNewer, WrongKey
from engine.keys import Keyring, RootKey
from engine.kit import kit_export, kit_open
from engine.manifest import Manifest
from engine.repository import Repository
from engine.sealed import Kind, open_object
from engine.verify import check_pack_bytes
from stores.local import LocalConfig, LocalStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup

Read = Callable[[bytes], object]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Repository, RootKey]:
    """A small repository with a pack of each sort, index, manifest, void and forget record, both domains."""
    root = RootKey.generate()
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    repository = Repository.create(store, repository_id="r", tenant_id="t", keyring=keyring, root=root)
    source = MemorySource([MemoryTable("rows", {1: "one", 2: "two"})], None, b"ddl")
    backup(repository, source, 1)
    backup(repository, source, 2, encrypt=False)
    repository.void(3, "test")
    backup(repository, source, 4)
    repository.forget(4, "test")
    return repository, root


def readers(repository: Repository, root: RootKey) -> dict[str, Read]:
    """Every object of the store with the function that reads its kind."""
    keyring, found = repository.keyring, dict[str, Read]()
    for info in repository.store.list("r/"):
        name = info.key.rpartition("/")[2]
        domain = repository.plain if "/plain/" in info.key else repository.sealed
        if "/data/" in info.key or "/meta/" in info.key:
            found[info.key] = lambda b, n=name, d=domain: check_pack_bytes(repository, d, n, b)
        elif "/index/" in info.key:
            found[info.key] = lambda b: open_object(keyring, b, "index", Kind.INDEX)[1]
        elif "/manifests/" in info.key or "/forgets/" in info.key:
            found[info.key] = lambda b, n=name: Manifest.read(b, keyring, number=int(n)).sha256
        elif name == "keyring":
            found[info.key] = lambda b: Keyring.from_bytes(b, root)
    return found


def test_every_bit_of_every_object(written: tuple[Repository, RootKey]) -> None:
    """Flip each bit, cut at each length, add a byte: what is read is what was written, or LastroError."""
    repository, root = written
    for key, read in readers(repository, root).items():
        blob = repository.store.get(key)
        expected = read(blob)
        for bit in range(len(blob) * 8):
            changed = bytearray(blob)
            changed[bit // 8] ^= 1 << bit % 8
            assert same_or_typed(read, bytes(changed), expected), f"{key}: bit {bit} changed what is read"
        for length in range(len(blob)):
            assert same_or_typed(read, blob[:length], expected), f"{key}: cut to {length}"
        assert same_or_typed(read, blob + b"\0", expected), f"{key}: one byte more"
    assert len(readers(repository, root)) >= 9, "an object of each kind was there"


def same_or_typed(read: Read, blob: bytes, expected: object) -> bool:
    try:
        return read(blob) == expected
    except LastroError:
        return True


def test_a_newer_repository_is_not_touched(written: tuple[Repository, RootKey]) -> None:
    """A later format's config, envelope and manifest are refused by name, not misread."""
    repository, _ = written
    config = json.loads(repository.store.get("r/r/config"))
    repository.store.put("r/r/config", [json.dumps({**config, "version": 2}).encode()])
    with pytest.raises(RepositoryNewer):
        Repository.open(repository.store, repository_id="r", keyring=repository.keyring)
    blob = bytearray(repository.store.get("r/r/manifests/0000000001"))
    blob[4] = 2
    with pytest.raises(LastroError, match=r"version 2|newer"):
        Manifest.read(bytes(blob), repository.keyring, number=1)


def test_another_keyring_is_a_wrong_key(written: tuple[Repository, RootKey]) -> None:
    """A keyring of another repository is told apart from damage."""
    repository, root = written
    other = Keyring.create(root, tenant_id="t", repository_id="r")
    with pytest.raises(WrongKey):
        Repository.open(repository.store, repository_id="r", keyring=other)


def test_every_byte_of_a_recovery_kit(written: tuple[Repository, RootKey]) -> None:
    """An altered kit gives the same root key or a typed error."""
    _, root = written
    kit = kit_export(root, "five words make it long", [])
    start = kit.index(b'"root_key"')
    for at in range(start, len(kit), 7):
        changed = bytearray(kit)
        changed[at] ^= 1
        try:
            opened, _ = kit_open(bytes(changed), "five words make it long")
        except LastroError:
            continue
        assert opened.to_text() == root.to_text()
