"""The settings of a gcs store, checked before anything is opened, and the session that they make."""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from engine.adapters import setting
from engine.errors import StoreDenied, UsageError
from stores._keys import check_prefix
from stores._sdk import sdk_of

ENDPOINT = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
POOL_CONNECTIONS = 32
"""More than the engine has threads that read or write at once."""
TIMEOUT_SECONDS_MAX = 3600
PREFIX_CHARS_MAX = 200
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")


@dataclass(frozen=True)
class GcsConfig:
    """Where the bucket is, and who asks."""

    bucket: str = setting(label="Bucket", help="Must exist; Lastro makes none.")
    prefix: str = setting(
        label="Prefix", default="", help="Folder in the bucket that is all Lastro's; empty for the whole."
    )
    project: str = setting(label="Project", default="", help="For people; a bucket's name is unique without it.")
    key: str = setting(
        label="Key file", default="", secret=True,
        help="A service account's JSON key (@FILE). Empty: the SDK finds credentials (environment, machine).",
    )  # fmt: skip
    anonymous: bool = setting(label="Anonymous", default=False, help="No credentials: for emulators.")
    endpoint: str = setting(label="Endpoint", default="", help="URL of another server; empty for Google's.")
    connect_seconds: int = setting(label="Connect timeout", default=10)
    read_seconds: int = setting(label="Read timeout", default=60)

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be right, whatever the server."""
        if not _BUCKET.match(self.bucket):
            raise UsageError(
                f"{self.bucket[:80]!r} cannot be a bucket's name", hint="3 to 222 of a-z, 0-9, dot, - and _"
            )
        if self.prefix:
            check_prefix(self.prefix)
            if len(self.prefix) > PREFIX_CHARS_MAX or not self.prefix.strip("/"):
                raise UsageError(f"the prefix is longer than {PREFIX_CHARS_MAX} characters or empty")
        if self.anonymous and self.key:
            raise UsageError("key and anonymous exclude each other")
        for name in ("connect_seconds", "read_seconds"):
            if not 1 <= getattr(self, name) <= TIMEOUT_SECONDS_MAX:
                raise UsageError(f"{name} is not between 1 and {TIMEOUT_SECONDS_MAX}")
        check_endpoint(self.endpoint)

    @property
    def root(self) -> str:
        """What stands before every key in the bucket."""
        return f"{self.prefix.strip('/')}/" if self.prefix else ""

    @property
    def url(self) -> str:
        return (self.endpoint or ENDPOINT).rstrip("/")

    @property
    def place(self) -> str:
        """Bucket, prefix and endpoint for people."""
        return f"gs://{self.bucket}/{self.root}" + (f" at {self.endpoint}" if self.endpoint else "")


def check_endpoint(endpoint: str) -> None:
    """Raise UsageError unless it is empty or scheme, host and port."""
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        bad = True
    if bad or parts.username or parts.query or parts.fragment or parts.path.strip("/"):
        raise UsageError(f"{endpoint[:80]!r} is no endpoint", hint="scheme, host and port only: https://host:443")


def session_of(config: GcsConfig) -> Any:
    """Make the SDK's HTTP session, which signs requests and renews tokens; it tries once (stores._retry tries again)."""
    with sdk_of("gcs", package="google-cloud-storage"):
        from google.auth.transport.requests import AuthorizedSession
        from requests.adapters import HTTPAdapter

    authorized: Any = AuthorizedSession
    session = authorized(_credentials(config))
    session.trust_env = True  # HTTPS_PROXY and the like
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=POOL_CONNECTIONS, max_retries=0))
    session.headers["Accept-Encoding"] = "identity"
    return session


def _credentials(config: GcsConfig) -> Any:
    import google.auth
    import google.auth.credentials
    import google.oauth2.service_account
    from google.auth.exceptions import GoogleAuthError

    anonymous: Any = google.auth.credentials.AnonymousCredentials
    account: Any = google.oauth2.service_account.Credentials
    if config.anonymous:
        return anonymous()
    try:
        if config.key:
            return account.from_service_account_info(json.loads(config.key), scopes=[SCOPE])
        return google.auth.default(scopes=[SCOPE])[0]
    except (ValueError, KeyError, TypeError) as error:  # MalformedError is a ValueError; its text names no secret.
        raise UsageError(
            f"key is no service account's JSON key ({type(error).__name__})",
            hint="--set key=@FILE with the file Google gave",
        ) from None
    except GoogleAuthError as error:
        raise StoreDenied(
            f"{config.place}: no credentials found ({error})",
            hint="--set key=@FILE, or set GOOGLE_APPLICATION_CREDENTIALS, or run on a machine with a service account",
        ) from error
