"""The installation's root key: which one it is, where it is kept, and the two of them while one takes the other's place.

The catalogue knows the key by its id. The key itself is in the environment, wrapped by KMS (core.kms), or in a file that
is made on first use. During a rotation a second id is known: the new key seals, the former one still opens.
"""

import base64
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import transaction

from core.durable import read_or_create, sync_folder
from core.errors import CatalogueError, Conflict
from core.models import Fact
from engine.errors import UsageError
from engine.faults import kill_point

if TYPE_CHECKING:
    from engine.keys import RootKey

ROOT_KEY_FACT = "root_key_id"
FORMER_FACT = "root_key_former"
"""Id of the key that something may still need, as long as a rotation is not finished."""
NEXT_FACT = "root_key_next"
"""Id of a key that was wrapped by KMS for a rotation that has not begun yet."""
KMS_FACT = "root_key_kms:"
ROOT_KEY_FILE = "root.key"
NEXT_KEY_FILE = "root-next.key"


class RootKeyMismatch(CatalogueError):
    """The key at hand is not the one that sealed this catalogue's secrets."""

    code = "keys.root_mismatch"


class RootKeyMissing(CatalogueError):
    code = "keys.root_missing"


@dataclass(frozen=True)
class KeyPlace:
    """One place that a root key can be in: what people call it, and how it is read there."""

    name: str
    read: "Callable[[], RootKey | None]"


class _RootKey:
    """`root_key()`; the keys are kept in the process, which of them counts is asked each time."""

    def __call__(self) -> "RootKey":
        """Load the root key; on the very first use make one, where the settings say.

        None that exists is ever replaced, and none is made when the catalogue already knows one. Raises
        RootKeyMismatch or RootKeyMissing then, UsageError for a text that is no key, core.kms errors.
        """
        # A process that has the key at hand must see that another one has taken its place meanwhile, or it would seal
        # under a key that is about to go: hence one look-up by primary key for each use.
        return self.named(*_known())

    def named(self, known: str, former: str) -> "RootKey":
        """The same for a caller who has just read the values of ROOT_KEY_FACT and FORMER_FACT; empty for none."""
        key = _held(known or _first())
        return key.succeeding(_held(former)) if former and _at_hand(former) else key

    def cache_clear(self) -> None:
        """Forget the keys at hand."""
        _held.cache_clear()


root_key = _RootKey()


def _known() -> tuple[str, str]:
    facts = dict(Fact.objects.filter(pk__in=(ROOT_KEY_FACT, FORMER_FACT)).values_list("name", "value"))
    return facts.get(ROOT_KEY_FACT, ""), facts.get(FORMER_FACT, "")


@functools.lru_cache(maxsize=4)
def _held(key_id: str) -> "RootKey":
    return _found(key_id)[1]


def _at_hand(key_id: str) -> bool:
    try:
        _held(key_id)
    except (RootKeyMissing, RootKeyMismatch):
        return False
    return True


def _found(key_id: str) -> "tuple[str, RootKey]":
    others = []
    for place in _places(key_id):
        key = place.read()
        if key is not None and key.key_id == key_id:
            return place.name, key
        if key is not None:
            others.append(f"{key.key_id} ({place.name})")
    if others:
        raise RootKeyMismatch(
            f"the root key at hand is {', '.join(others)}, but this catalogue's secrets are sealed by {key_id}",
            hint="give the right one in LASTRO_ROOT_KEY_FILE, or take it from the recovery kit (kit import)",
        )
    raise RootKeyMissing(
        f"the root key {key_id} of this installation is missing: no LASTRO_ROOT_KEY, no {_file(ROOT_KEY_FILE)}",
        hint="copy it from another host, or take it from the recovery kit (kit import); a new one would open nothing",
    )


def _places(key_id: str) -> Iterator[KeyPlace]:
    """Where a key may be, the cheap places first; KMS is asked only for a key that it is known to have wrapped."""
    yield KeyPlace("LASTRO_ROOT_KEY", lambda: _of_text(settings.LASTRO_ROOT_KEY))
    yield KeyPlace("LASTRO_ROOT_KEY_OLD", lambda: _of_text(settings.LASTRO_ROOT_KEY_OLD))
    for name in (ROOT_KEY_FILE, NEXT_KEY_FILE):
        yield KeyPlace(str(_file(name)), functools.partial(_of_file, name))
    wrapped = Fact.objects.filter(pk=KMS_FACT + key_id).values_list("value", flat=True).first()
    if wrapped is not None:
        yield KeyPlace("KMS", lambda: _of_kms(wrapped, key_id))


def root_key_place() -> str:
    """Where the root key was found: the name of a variable, a path, or `KMS`."""
    root_key()
    return _found(_known()[0])[0]


def root_key_former() -> str:
    """Id of the former key while a rotation is unfinished, else empty."""
    return _known()[1]


# ------------------------------------------------------------ making and taking in


def _first() -> str:
    """Take or make the first key and write its id down; of several processes that start at once, one's holds."""
    if settings.LASTRO_ROOT_KEY:
        key = _of_text(settings.LASTRO_ROOT_KEY)
        assert key is not None
    elif settings.LASTRO_KMS_KEY_ID:
        key = _wrapped_new()
    else:
        key = _text_key(read_or_create(_file(ROOT_KEY_FILE), _generate))
    return Fact.objects.get_or_create(pk=ROOT_KEY_FACT, defaults={"value": key.key_id})[0].value


def root_key_put(key: "RootKey") -> bool:
    """Put a key from elsewhere in the place of the lost one, as a file; False when it is there already.

    Nothing is ever replaced. Raises RootKeyMismatch when this catalogue's secrets, or the file, are another key's.
    """
    known, former = _known()
    if known and key.key_id not in (known, former):
        raise RootKeyMismatch(
            f"the kit holds {key.key_id}, but this catalogue's secrets are sealed by {known}",
            hint="look for the kit that was made on this installation; one made before a rotation of the root key is old",
        )
    path = _file(ROOT_KEY_FILE)
    there = path.exists()
    standing = _text_key(read_or_create(path, f"{key.to_text()}\n".encode))
    if standing.key_id != key.key_id:
        raise RootKeyMismatch(
            f"{path} holds {standing.key_id}, the kit {key.key_id}", hint="move that file away if it is not needed"
        )
    root_key.cache_clear()
    return not there


# ------------------------------------------------------------ rotation


def root_key_prepare(given: "RootKey | None" = None) -> "RootKey":
    """The key that shall take the present one's place, made or taken in and durable; a killed call finds it again.

    Raises UsageError when the key comes from the environment and no other one was given there.
    """
    present, env = root_key(), _of_text(settings.LASTRO_ROOT_KEY)
    if env is not None and env.key_id != present.key_id and given is None:
        return env
    if env is not None and (given is None or given.key_id != env.key_id):
        raise UsageError(
            f"the root key {env.key_id} comes from the environment, so the new one must, too",
            hint="key generate --output FILE; then, on every host, set LASTRO_ROOT_KEY_FILE to the new key and "
            "LASTRO_ROOT_KEY_OLD_FILE to the old one, restart the workers, and run key rotate-root again",
        )
    if given is not None and given.key_id == present.key_id:
        raise Conflict(f"{given.key_id} is the root key already", hint="give another one, or none to have it made")
    if settings.LASTRO_KMS_KEY_ID:
        key = _wrapped_new(given)
    else:
        key = _text_key(read_or_create(_file(NEXT_KEY_FILE), given.to_text().encode if given else _generate))
        if given is not None and key.key_id != given.key_id:
            raise Conflict(
                f"{_file(NEXT_KEY_FILE)} holds {key.key_id}, which an earlier call has prepared",
                hint="run key rotate-root without a key to go on with that one, or move the file away",
            )
    kill_point("key.next_stored")
    return key


def root_key_switch(*, old: str, new: str) -> None:
    """From here on the new key seals, and the old one opens what it sealed. Inside the caller's transaction.

    Raises Conflict when another process has changed the key meanwhile.
    """
    changed = Fact.objects.filter(pk=ROOT_KEY_FACT, value=old).update(value=new)
    if not changed or Fact.objects.filter(pk=FORMER_FACT).exists():
        raise Conflict("another rotation of the root key has begun meanwhile", hint="key list shows it")
    Fact.objects.create(pk=FORMER_FACT, value=old)
    Fact.objects.filter(pk=NEXT_FACT).delete()


def root_key_retire() -> None:
    """Destroy the former key wherever Lastro keeps it. Repeating it is safe; what the environment holds is not ours."""
    known, former = _known()
    following, standing = _file(NEXT_KEY_FILE), _file(ROOT_KEY_FILE)
    if _id_in(following) == known:
        other = _id_in(standing)
        if other not in ("", known, former):  # Nobody knows what that one opens.
            standing.rename(_file(f"root-{other}.key"))
        os.replace(following, standing)
        sync_folder(standing.parent)
    elif former and _id_in(standing) == former:
        standing.unlink()
        sync_folder(standing.parent)
    kill_point("key.old_file_gone")
    with transaction.atomic():
        Fact.objects.filter(pk__in=(FORMER_FACT, KMS_FACT + former)).delete()
    root_key.cache_clear()


# ------------------------------------------------------------ single places


def _wrapped_new(given: "RootKey | None" = None) -> "RootKey":
    """A key that KMS has wrapped for us, its wrapped form in the catalogue."""
    from core.kms import kms_wrap
    from engine.keys import RootKey

    prepared = Fact.objects.filter(pk=NEXT_FACT).values_list("value", flat=True).first()
    if prepared is not None and given is None:
        return _held(prepared)
    key = given or RootKey.generate()
    blob = base64.b64encode(kms_wrap(key.secret_bytes(), root_key_id=key.key_id)).decode()
    with transaction.atomic():
        Fact.objects.update_or_create(pk=KMS_FACT + key.key_id, defaults={"value": blob})
        Fact.objects.update_or_create(pk=NEXT_FACT, defaults={"value": key.key_id})
    return key


def _of_kms(wrapped: str, key_id: str) -> "RootKey":
    from core.kms import kms_unwrap
    from engine.keys import RootKey

    return RootKey(kms_unwrap(base64.b64decode(wrapped), root_key_id=key_id))


def _of_text(text: str) -> "RootKey | None":
    return _text_key(text) if text else None


def _of_file(name: str) -> "RootKey | None":
    try:
        return _text_key(_file(name).read_bytes())
    except FileNotFoundError:
        return None


def _text_key(text: str | bytes) -> "RootKey":
    # Here, so that commands which only read the catalogue do not pay for the cryptography.
    from engine.keys import RootKey

    return RootKey.from_text(text if isinstance(text, str) else text.decode("ascii", "replace"))


def _id_in(path: Path) -> str:
    key = _of_file(path.name)
    return key.key_id if key else ""


def _file(name: str) -> Path:
    return Path(settings.LASTRO_DATA) / "keys" / name


def _generate() -> bytes:
    from engine.keys import RootKey

    return f"{RootKey.generate().to_text()}\n".encode()
