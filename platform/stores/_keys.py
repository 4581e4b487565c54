"""The keys that every kind of store can hold, so that a repository may be copied to any of them."""

import re

from engine.errors import UsageError

KEY_LENGTH_MAX = 512
PART_LENGTH_MAX = 200

_PART = re.compile(rf"[A-Za-z0-9_=-][A-Za-z0-9._=-]{{0,{PART_LENGTH_MAX - 1}}}\Z")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_=-][A-Za-z0-9._=-]*/)*(?:[A-Za-z0-9_=-][A-Za-z0-9._=-]*)?\Z")


def is_key_part(name: str) -> bool:
    """Tell whether `name` may stand between the slashes of a key.

    Letters, digits and `._=-`, never beginning with a dot: such names need no quoting in a URL, a shell
    or a header, and leave dot names free for a store's own use.
    """
    return _PART.match(name) is not None


def check_key(key: str) -> str:
    """Return the key, or raise UsageError when a store might refuse it, rename it or escape its folder."""
    if len(key) > KEY_LENGTH_MAX or not all(map(is_key_part, key.split("/"))):
        raise UsageError(
            f"{key[:80]!r} is no object key",
            hint="parts of letters, digits and ._=- joined by /, none beginning with a dot",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix, or raise UsageError when no key can begin with it."""
    if len(prefix) > KEY_LENGTH_MAX or _PREFIX.match(prefix) is None:
        raise UsageError(f"{prefix[:80]!r} is no prefix of object keys")
    return prefix
