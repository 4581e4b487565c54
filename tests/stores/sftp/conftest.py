"""A real OpenSSH for each test of the sftp store."""

from collections.abc import Iterator

import pytest

from stores.sftp import SftpStore
from tests.services.absent import absent
from tests.services.cached_programs import sshd as sshd_program
from tests.services.sshd import Sshd, sshd
from tests.stores.sftp.places import Asked, made


@pytest.fixture(scope="module")
def server() -> Sshd:
    found = sshd()
    if found is None:
        absent("sshd")
    return found


@pytest.fixture
def own_server() -> Iterator[Sshd]:
    """A server that this test may stop and cut."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start()
    yield server
    server.discard()


@pytest.fixture
def values(server: Sshd) -> dict[str, str]:
    return server.values()


@pytest.fixture
def store(values: dict[str, str]) -> Iterator[SftpStore]:
    store = made(values)
    yield store
    store.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)
