"""The settings of an sftp store, and the keys they hold, checked before anything is opened."""

import base64
import binascii
import hashlib
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.adapters import setting
from engine.errors import UsageError

PATH_CHARS_MAX = 1024
HOST_KEYS_MAX = 16
_NAME = re.compile(r"[^\s\0-\x1f]{1,255}\Z")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?\Z")


@dataclass(frozen=True)
class SftpConfig:
    """Which folder of which server, as whom, and how the server is known again."""

    host: str = setting(label="Host", help="Name or address of the server.")
    user: str = setting(label="User")
    folder: str = setting(
        label="Folder", help="Made when the store is added; relative to the login's folder without a /."
    )
    host_key: str = setting(
        label="Host key",
        default="",
        help="Line of ssh-keyscan or a .pub file, or SHA256:…; required. Several, one a line, while it is changed.",
    )
    port: int = setting(label="Port", default=22)
    password: str = setting(label="Password", default="", secret=True)
    key: str = setting(label="Private key", default="", secret=True, help="Its text (@FILE): OpenSSH or PEM.")
    key_passphrase: str = setting(label="Passphrase of the key", default="", secret=True)
    connect_seconds: int = setting(label="Connect timeout", default=15)
    answer_seconds: int = setting(label="Answer timeout", default=60)

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be right, whatever the server."""
        for name in ("host", "user"):
            if not _NAME.match(getattr(self, name)):
                raise UsageError(f"{getattr(self, name)[:60]!r} cannot be a {name}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"port={self.port} is not between 1 and 65535")
        if not self.folder.strip("/. ") or len(self.folder) > PATH_CHARS_MAX or re.search(r"[\0-\x1f]", self.folder):
            raise UsageError(f"{self.folder[:60]!r} cannot be a store's folder", hint="for example /backups/lastro")
        if not self.password and not self.key:
            raise UsageError(
                "neither password nor key is set", hint="--set key=@FILE with a private key, or password=@FILE"
            )
        for name in ("connect_seconds", "answer_seconds"):
            if not 1 <= getattr(self, name) <= 3600:
                raise UsageError(f"{name} is not between 1 and 3600")
        self.host_keys()

    @property
    def place(self) -> str:
        """User, host and folder for people."""
        port = "" if self.port == 22 else f":{self.port}"
        return f"sftp://{self.user}@{self.host}{port}/{self.folder.lstrip('/')}"

    def host_keys(self) -> dict[str, str]:
        """Fingerprints of the keys by which the server is known, each with its type; "" where only the print is known.

        Raises UsageError for a line that is none.
        """
        lines = [line for line in self.host_key.splitlines() if line.strip() and not line.startswith("#")]
        return dict(_host_key(line) for line in lines[:HOST_KEYS_MAX])


def _host_key(line: str) -> tuple[str, str]:
    """Fingerprint and type of `[host] TYPE BASE64 [comment]`, or of `SHA256:…`."""
    words = line.split()
    for word in words:
        if _FINGERPRINT.match(word):
            return word.rstrip("="), ""
    for kind, text in itertools.pairwise(words):
        try:
            blob = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        name = kind.encode()
        if blob.startswith(len(name).to_bytes(4, "big") + name):
            return fingerprint(blob), kind
    raise UsageError(
        f"host_key: {line[:60]!r} is no host key",
        hint="the line itself: of `ssh-keyscan HOST`, of the server's /etc/ssh/ssh_host_…_key.pub, or SHA256:…",
    )


def fingerprint(blob: bytes) -> str:
    """What `ssh-keygen -l` prints for a public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def private_key(text: str, passphrase: str) -> Any:
    """The SDK's key for a private key's text. Raises UsageError; no part of the text gets into its message."""
    import paramiko

    kinds: Sequence[Any] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    for kind in kinds:
        try:
            return kind.from_private_key(io.StringIO(text), password=passphrase or None)
        except paramiko.PasswordRequiredException:
            raise UsageError(
                "the private key is under a passphrase, and none is set", hint="--set key_passphrase=@FILE"
            ) from None
        except (paramiko.SSHException, ValueError, IndexError, TypeError):
            continue  # Another type of key, or none at all.
    said = "or its passphrase is another one" if passphrase else "or it is cut off"
    raise UsageError(
        f"the private key cannot be read: it is not Ed25519, ECDSA or RSA in OpenSSH's or PEM form, {said}",
        hint="--set key=@FILE with the private half; ssh-keygen -y -f FILE tries it",
    )
