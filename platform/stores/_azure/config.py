"""The settings of an azure store, checked before anything is opened, and the client that they make."""

import base64
import binascii
import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from engine.adapters import setting
from engine.errors import UsageError
from stores._keys import check_prefix
from stores._sdk import sdk_of

SINGLE_BYTES_MAX = 32 << 20
"""Larger objects go up in blocks, which a last request commits."""
BLOCK_BYTES = 8 << 20
READ_BYTES_MAX = 256 << 20
"""No object is larger: each read is one request."""
POOL_CONNECTIONS = 32
TIMEOUT_SECONDS_MAX = 3600
PREFIX_CHARS_MAX = 200
_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")


@dataclass(frozen=True)
class AzureConfig:
    """Where the container is, and who asks: a connection string, an account's key, or a shared access signature."""

    container: str = setting(label="Container", help="Must exist; Lastro makes none.")
    prefix: str = setting(label="Prefix", default="", help="Folder in it that is all Lastro's; empty for the whole.")
    account: str = setting(label="Storage account", default="", help="Its name; not needed with a connection string.")
    account_key: str = setting(label="Account key", default="", secret=True)
    sas: str = setting(label="Shared access signature", default="", secret=True, help="Of the container: racwdl.")
    connection_string: str = setting(label="Connection string", default="", secret=True)
    endpoint: str = setting(
        label="Endpoint", default="", help="URL of the account elsewhere; empty for Azure's public cloud."
    )
    connect_seconds: int = setting(label="Connect timeout", default=10)
    read_seconds: int = setting(label="Read timeout", default=60)

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be right, whatever the server."""
        if not _CONTAINER.match(self.container):
            raise UsageError(f"{self.container[:80]!r} cannot be a container's name", hint="3 to 63 of a-z, 0-9 and -")
        if self.prefix:
            check_prefix(self.prefix)
            if len(self.prefix) > PREFIX_CHARS_MAX or not self.prefix.strip("/"):
                raise UsageError(f"the prefix is longer than {PREFIX_CHARS_MAX} characters or empty")
        for name in ("connect_seconds", "read_seconds"):
            if not 1 <= getattr(self, name) <= TIMEOUT_SECONDS_MAX:
                raise UsageError(f"{name} is not between 1 and {TIMEOUT_SECONDS_MAX}")
        self._check_credentials()
        self._check_endpoint()

    def _check_credentials(self) -> None:
        given = [name for name in ("account_key", "sas", "connection_string") if getattr(self, name)]
        if len(given) != 1:
            raise UsageError(
                f"{' and '.join(given) or 'none of account_key, sas and connection_string'} given",
                hint="give exactly one",
            )
        if self.connection_string:
            return
        if not _ACCOUNT.match(self.account):
            raise UsageError(
                f"{self.account[:60]!r} cannot be a storage account", hint="its name: 3 to 24 of a-z and 0-9"
            )
        try:
            base64.b64decode(self.account_key, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError(
                "account_key is no account's key: it is not base64", hint="--set account_key=@FILE"
            ) from None

    def _check_endpoint(self) -> None:
        if not self.endpoint:
            return
        try:
            parts = urlsplit(self.endpoint)
            bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            bad = True
        if bad or parts.username or parts.query or parts.fragment:
            raise UsageError(
                f"{self.endpoint[:80]!r} is no endpoint", hint="for example https://ACCOUNT.blob.core.usgovcloudapi.net"
            )

    @property
    def root(self) -> str:
        """What stands before every key in the container."""
        return f"{self.prefix.strip('/')}/" if self.prefix else ""

    @property
    def place(self) -> str:
        """Container, prefix and account for people."""
        of = self.account or "the connection string's account"
        return f"azure://{self.container}/{self.root} of {of}" + (f" at {self.endpoint}" if self.endpoint else "")


def client_of(config: AzureConfig) -> Any:
    """Make the SDK's client of the container: it tries once (stores._retry tries again) and waits for a bounded time."""
    with sdk_of("azure", package="azure-storage-blob"):
        from azure.core.pipeline.transport import RequestsTransport
        from azure.storage.blob import ContainerClient
    import requests
    from requests.adapters import HTTPAdapter

    logging.getLogger("azure").setLevel(logging.WARNING)  # Else every request is a page of the log.
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=POOL_CONNECTIONS, max_retries=0))
    options: dict[str, Any] = {
        "transport": RequestsTransport(session=session, session_owner=True),
        "retry_total": 0,
        "connection_timeout": config.connect_seconds,
        "read_timeout": config.read_seconds,
        "max_single_put_size": SINGLE_BYTES_MAX,
        "max_block_size": BLOCK_BYTES,
        "max_single_get_size": READ_BYTES_MAX,
        "max_chunk_get_size": BLOCK_BYTES,
    }
    try:
        if config.connection_string:
            return ContainerClient.from_connection_string(config.connection_string, config.container, **options)
        url = config.endpoint.rstrip("/") or f"https://{config.account}.blob.core.windows.net"
        credential: Any = config.sas.lstrip("?")
        if config.account_key:
            credential = {"account_name": config.account, "account_key": config.account_key}
        return ContainerClient(url, config.container, credential=credential, **options)
    except (ValueError, KeyError, IndexError) as error:  # Its text may hold the string.
        raise UsageError(
            f"the connection string cannot be read ({type(error).__name__})",
            hint="copy it from the account's page “Access keys”: DefaultEndpointsProtocol=…;AccountName=…;AccountKey=…",
        ) from None
