"""Identifiers: a prefix that names the kind, then 128 bits that sort by time of creation."""

import datetime
import os
import re
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_DIGITS = 26
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHAPE = re.compile(rf"[a-z]{{3}}_[{_ALPHABET}]{{{_DIGITS}}}")

ID_LENGTH_MAX = 32
"""Width of the database columns that hold an id: prefix, underscore, 26 characters, room to spare."""

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Make `<prefix>_` and 26 lower-case base32 characters: 48 bits of milliseconds, 80 random ones.

    The alphabet is Crockford's, whose digits are in ASCII order, so ids sort as text by time (ULID
    specification). Within one process every id is greater than the one before, also in one millisecond
    and when the clock steps back.
    """
    global _last
    fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
    with _lock:
        _last = value = max(fresh, _last + 1)
    return f"{prefix}_{_digits(value)}"


def first_id(prefix: str, at: datetime.datetime) -> str:
    """The least id that could be made at this time: ids of rows made before it sort before it."""
    return f"{prefix}_{_digits(max(0, int(at.timestamp() * 1000)) << _RANDOM_BITS)}"


def is_id(text: str, prefix: str = "") -> bool:
    """Tell whether the text has the shape of an id (of this prefix)."""
    return _SHAPE.fullmatch(text) is not None and text.startswith(f"{prefix}_" if prefix else "")


def _digits(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range((_DIGITS - 2) * 5, -1, -10)])


def _forget_last() -> None:
    # A forked child that counted on from its parent's last id would give out the same ids as its siblings.
    global _last, _lock
    _last = 0
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_last)
