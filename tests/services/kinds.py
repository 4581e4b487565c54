"""One table of the kinds of stores that tests can have a place in, and the real server behind each.

A new kind joins with one function here: it starts its server (once a run) and gives the settings of a place that is
empty and nobody else's, as `store add --kind KIND --set KEY=VALUE` takes them. The contract suite runs over the table.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import stores
from engine.adapters import parse_config
from engine.ports import Store
from tests.services.absent import absent
from tests.services.azurite import azurite
from tests.services.fake_gcs import fake_gcs
from tests.services.seaweed import seaweed
from tests.services.sshd import sshd

StoreValues = Callable[[str], dict[str, str]]
"""Given a kind, the settings of a new place; the fixture `store_values`."""
_numbers = itertools.count(1)


def _local(folder: Path) -> dict[str, str]:
    return {"path": str(folder / f"store-{next(_numbers)}")}


def _s3(folder: Path) -> dict[str, str]:
    server = seaweed()
    if server is None:
        absent("SeaweedFS", remedy="install the project's test extra")
    return server.values()


def _sftp(folder: Path) -> dict[str, str]:
    server = sshd()
    if server is None:
        absent("sshd")
    return server.values()


def _gcs(folder: Path) -> dict[str, str]:
    server = fake_gcs()
    if server is None:
        absent("fake-gcs-server", remedy="install the project's test extra")
    return server.values()


def _azure(folder: Path) -> dict[str, str]:
    server = azurite()
    if server is None:
        absent("azurite")
    return server.values()


KINDS: dict[str, Callable[[Path], dict[str, str]]] = {
    "local": _local,
    "s3": _s3,
    "gcs": _gcs,
    "azure": _azure,
    "sftp": _sftp,
}


def store_made(kind: str, values: Mapping[str, str]) -> Store:
    """Make the place as `store add` does, and open it."""
    adapter: Any = stores.load_all().get(kind)
    store: Store = getattr(adapter, "make", adapter)(parse_config(adapter.Config, values))
    return store
