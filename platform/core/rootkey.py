"""The installation's root key: from the environment, or from a file made on first use."""

import functools
from typing import TYPE_CHECKING

from django.conf import settings

from core.durable import read_or_create
from core.errors import CatalogueError
from core.models import Fact

if TYPE_CHECKING:
    from engine.keys import RootKey

ROOT_KEY_FACT = "root_key_id"
ROOT_KEY_FILE = "root.key"


class RootKeyMismatch(CatalogueError):
    """The key at hand is not the one that sealed this catalogue's secrets."""

    code = "keys.root_mismatch"


class RootKeyMissing(CatalogueError):
    code = "keys.root_missing"


@functools.cache
def root_key() -> "RootKey":
    """Load the root key; on the very first use make one, in $LASTRO_DATA/keys/root.key.

    A file that exists is never replaced, and none is made when the catalogue already knows a key. Raises
    RootKeyMismatch or RootKeyMissing then, UsageError for a text that is no key.
    """
    # Here, so that commands which only read the catalogue do not pay for the cryptography.
    from engine.keys import RootKey

    known = Fact.objects.filter(pk=ROOT_KEY_FACT).values_list("value", flat=True).first()
    key = RootKey.from_text(settings.LASTRO_ROOT_KEY or _from_file(known))
    if known is None:
        known = Fact.objects.get_or_create(pk=ROOT_KEY_FACT, defaults={"value": key.key_id})[0].value
    if key.key_id != known:
        raise RootKeyMismatch(
            f"the root key at hand is {key.key_id}, but this catalogue's secrets are sealed by {known}",
            hint="give the right one in LASTRO_ROOT_KEY_FILE, or take it from the recovery kit (kit import)",
        )
    return key


def root_key_put(key: "RootKey") -> bool:
    """Put a key from elsewhere in the place of the lost file; False when it is there already.

    Nothing is ever replaced. Raises RootKeyMismatch when this catalogue's secrets, or the file, are another key's.
    """
    from engine.keys import RootKey

    known = Fact.objects.filter(pk=ROOT_KEY_FACT).values_list("value", flat=True).first()
    if known not in (None, key.key_id):
        raise RootKeyMismatch(
            f"the kit holds {key.key_id}, but this catalogue's secrets are sealed by {known}",
            hint="look for the kit that was made on this installation",
        )
    path = settings.LASTRO_DATA / "keys" / ROOT_KEY_FILE
    there = path.exists()
    standing = RootKey.from_text(read_or_create(path, f"{key.to_text()}\n".encode).decode())
    if standing.key_id != key.key_id:
        raise RootKeyMismatch(
            f"{path} holds {standing.key_id}, the kit {key.key_id}", hint="move that file away if it is not needed"
        )
    root_key.cache_clear()
    return not there


def _from_file(known: str | None) -> str:
    path = settings.LASTRO_DATA / "keys" / ROOT_KEY_FILE
    if known is not None and not path.exists():
        raise RootKeyMissing(
            f"the root key {known} of this installation is missing: no LASTRO_ROOT_KEY, no {path}",
            hint="copy it from another host, or take it from the recovery kit (kit import); a new one would open nothing",
        )
    return read_or_create(path, _generate).decode()


def _generate() -> bytes:
    from engine.keys import RootKey

    return f"{RootKey.generate().to_text()}\n".encode()
