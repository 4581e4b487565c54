"""The settings of an s3 store, checked before anything is opened, and the client that they make."""

import functools
import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from engine.adapters import setting
from engine.errors import UsageError
from stores._keys import check_prefix

POOL_CONNECTIONS = 32
"""More than the engine has threads that read or write at once, parts of large objects included."""
TIMEOUT_SECONDS_MAX = 3600
LOCK_DAYS_MAX = 36_500
PREFIX_CHARS_MAX = 200

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]\Z")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z|[0-9a-f.]*:[0-9a-f:.]*\Z"
)
_CLASS = re.compile(r"[A-Z0-9_]{1,60}\Z")
_WORD = re.compile(r"[!-~]{1,2048}\Z")
"""What may stand in a header: printable ASCII without spaces."""


@dataclass(frozen=True)
class S3Config:
    """Where the bucket is, who asks, and how objects are kept in it."""

    bucket: str = setting(label="Bucket", help="Must exist; Lastro makes none.")
    region: str = setting(label="Region", default="us-east-1")
    endpoint: str = setting(label="Endpoint", default="", help="URL of an S3-compatible server; empty for AWS.")
    prefix: str = setting(
        label="Prefix", default="", help="Folder in the bucket that is all Lastro's; empty for the whole."
    )
    access_key: str = setting(
        label="Access key", default="", help="Empty: the SDK finds credentials (environment, role)."
    )
    secret_key: str = setting(label="Secret key", default="", secret=True)
    path_style: bool = setting(label="Path style", default=False, help="Bucket in the path, not in the host name.")
    sse: str = setting(label="Encryption by the server", default="none", choices=("none", "s3", "kms"))
    sse_key: str = setting(label="KMS key", default="", help="Id or ARN, with sse=kms; empty for the account's own.")
    storage_class: str = setting(
        label="Storage class", default="", help="STANDARD_IA …; empty for the bucket's default."
    )
    lock_mode: str = setting(
        label="Object Lock", default="none", choices=("none", "governance", "compliance"),
        help="The bucket must have been made with Object Lock.",
    )  # fmt: skip
    lock_days: int = setting(label="Lock days", default=0, help="How long every new object is kept from deletion.")
    connect_seconds: int = setting(label="Connect timeout", default=10)
    read_seconds: int = setting(label="Read timeout", default=60)

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be right, whatever the server."""
        if not _BUCKET.match(self.bucket):
            raise UsageError(
                f"{self.bucket[:80]!r} cannot be a bucket's name", hint="3 to 63 of a-z, 0-9, dot and hyphen"
            )
        if not _REGION.match(self.region):
            raise UsageError(f"{self.region[:80]!r} cannot be a region", hint="for example eu-central-1")
        self._check_endpoint()
        if self.prefix:
            check_prefix(self.prefix)
            if len(self.prefix) > PREFIX_CHARS_MAX or not self.prefix.strip("/"):
                raise UsageError(f"the prefix is longer than {PREFIX_CHARS_MAX} characters or empty")
        if bool(self.access_key) != bool(self.secret_key):
            raise UsageError("access_key and secret_key go together", hint="or neither: the SDK looks for its own")
        if self.storage_class and not _CLASS.match(self.storage_class):
            raise UsageError(f"{self.storage_class[:60]!r} cannot be a storage class", hint="for example STANDARD_IA")
        for name in ("access_key", "secret_key", "sse_key"):
            value = getattr(self, name)
            if value and not _WORD.match(value):
                raise UsageError(f"{name} has spaces or signs that no key has", hint="is there a line break too many?")
        if self.sse_key and self.sse != "kms":
            raise UsageError("sse_key is only for sse=kms")
        if not 0 <= self.lock_days <= LOCK_DAYS_MAX:
            raise UsageError(f"lock_days={self.lock_days} is not between 0 and {LOCK_DAYS_MAX}")
        if self.lock_days and self.lock_mode == "none":
            raise UsageError("lock_days needs lock_mode=governance or compliance")
        for name in ("connect_seconds", "read_seconds"):
            if not 1 <= getattr(self, name) <= TIMEOUT_SECONDS_MAX:
                raise UsageError(f"{name} is not between 1 and {TIMEOUT_SECONDS_MAX}")

    def _check_endpoint(self) -> None:
        if not self.endpoint:
            return
        try:
            parts = urlsplit(self.endpoint)
            bad = parts.scheme not in ("http", "https") or not _HOST.match(parts.hostname or "") or parts.port == 0
        except ValueError:
            bad = True
        if bad or parts.username or parts.query or parts.fragment or parts.path.strip("/"):
            raise UsageError(
                f"{self.endpoint[:80]!r} is no endpoint", hint="scheme, host and port only: https://s3.example.org:9000"
            )

    @property
    def root(self) -> str:
        """What stands before every key in the bucket."""
        return f"{self.prefix.strip('/')}/" if self.prefix else ""

    @property
    def place(self) -> str:
        """Bucket, prefix and endpoint for people."""
        return f"s3://{self.bucket}/{self.root}" + (f" at {self.endpoint}" if self.endpoint else f" ({self.region})")


def client_of(config: S3Config) -> Any:
    """Make the SDK's client: tries once (stores._retry tries again), signs every body, waits for a bounded time.

    A signed body is checked by every S3 server against its SHA-256, so that a damaged or cut upload is refused.
    """
    from botocore.config import Config

    options = Config(
        connect_timeout=config.connect_seconds,
        read_timeout=config.read_seconds,
        max_pool_connections=POOL_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": "path" if config.path_style else "auto", "payload_signing_enabled": True},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
    )
    with _session_lock:  # Making a client changes its session.
        return _session().create_client(
            "s3",
            region_name=config.region,
            endpoint_url=config.endpoint or None,
            aws_access_key_id=config.access_key or None,
            aws_secret_access_key=config.secret_key or None,
            config=options,
        )


_session_lock = threading.Lock()


@functools.cache
def _session() -> Any:
    """The SDK's session of this process: importing it takes 0.15 s, its first client 0.1 s, every further one 4 ms."""
    import botocore.session

    return botocore.session.get_session()
