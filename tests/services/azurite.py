"""Azure's storage for tests: azurite, with signatures, conditional puts and snapshots (docs/testing.md)."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from tests.services import cached_programs
from tests.services.shared import SharedServer, answers

ACCOUNT = "lastrotests"
KEY = "bGFzdHJvIHRlc3RzOiBhIGtleSBvZiBubyBhY2NvdW50IGFueXdoZXJlIGVsc2U="
CONTAINER = "lastro-plain"
"""A container that every test shares, each under a prefix of its own."""
_numbers = itertools.count(1)


class Azurite:
    """The server of this test run; `values` gives the settings of an azure store for a place that nobody else has."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self.admin = BlobServiceClient(self.endpoint, credential={"account_name": ACCOUNT, "account_key": KEY})

    @property
    def connection_string(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.endpoint};"

    def values(self, container: str = CONTAINER, **more: str) -> dict[str, str]:
        """Settings of `--kind azure` under a fresh prefix; `more` adds or replaces."""
        return {
            "container": container, "account": ACCOUNT, "account_key": KEY, "endpoint": self.endpoint,
            "prefix": f"t{os.getpid()}-{next(_numbers)}", **more,
        }  # fmt: skip

    def make(self, container: str) -> None:
        """Make a container; one that is there stays."""
        try:
            self.admin.create_container(container)
        except ResourceExistsError:
            pass


def command(folder: Path, facts: Mapping[str, Any]) -> Sequence[str]:
    """How the server is started; telemetry off."""
    return [
        "env", f"AZURITE_ACCOUNTS={ACCOUNT}:{KEY}", *(cached_programs.azurite() or ()), "--blobHost", "127.0.0.1",
        "--blobPort", str(facts["port"]), "--location", str(folder), "--skipApiVersionCheck",
        "--disableTelemetry", "--silent",
    ]  # fmt: skip


@functools.cache
def azurite() -> Azurite | None:
    """The server of this run, started by the first test that asks; None where it was not fetched."""
    if cached_programs.azurite() is None:
        return None
    server = SharedServer("azurite", command=command, ports=("port",), ready=lambda facts: answers(facts["port"]))
    found = Azurite(server.facts()["port"])
    found.make(CONTAINER)
    return found
