"""A real local store, a root key and an empty repository for the engine's tests."""

from pathlib import Path

import pytest

from engine.keys import Keyring, RootKey
from engine.repository import Repository
from stores.local import LocalConfig, LocalStore


@pytest.fixture
def root_key() -> RootKey:
    return RootKey.generate()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.make(LocalConfig(path=str(tmp_path / "store")))


@pytest.fixture
def repository(store: LocalStore, root_key: RootKey, tmp_path: Path) -> Repository:
    keyring = Keyring.create(root_key, tenant_id="ten_test", repository_id="rep_test")
    return Repository.create(
        store,
        repository_id="rep_test",
        tenant_id="ten_test",
        keyring=keyring,
        root=root_key,
        cache=tmp_path / "cache",
    )
