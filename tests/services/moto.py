"""S3 and KMS that are quick to start: moto's server. It accepts any secret, so rights are never tested with it."""

import functools
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from tests.services.shared import SharedServer, answers

REGION = "us-east-1"
WHO = ("moto-key", "moto-secret")
_numbers = itertools.count(1)


class Moto:
    """The server of this test run."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def client(self, service: str) -> Any:
        """A client of the SDK for `s3`, `kms` …"""
        return botocore.session.get_session().create_client(
            service, region_name=REGION, endpoint_url=self.endpoint, aws_access_key_id=WHO[0],
            aws_secret_access_key=WHO[1], config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def values(self, **more: str) -> dict[str, str]:
        """Settings of `--kind s3` for a new bucket; `more` adds or replaces."""
        bucket = f"lastro-{os.getpid()}-{next(_numbers)}"
        self.client("s3").create_bucket(Bucket=bucket)
        return {
            "bucket": bucket, "region": REGION, "endpoint": self.endpoint, "path_style": "yes",
            "access_key": WHO[0], "secret_key": WHO[1], **more,
        }  # fmt: skip

    def key(self) -> str:
        """A new KMS key's id."""
        return str(self.client("kms").create_key()["KeyMetadata"]["KeyId"])


def _command(folder: Path, ports: Mapping[str, Any]) -> Sequence[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports["port"])]


@functools.cache
def moto() -> Moto:
    """The server of this run, started by the first test that asks."""
    server = SharedServer("moto", command=_command, ports=["port"], ready=lambda facts: answers(facts["port"]))
    return Moto(server.facts()["port"])
