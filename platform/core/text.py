"""Free text of people, as the catalogue, the audit log and a terminal can hold it."""

import re
import unicodedata

from engine.errors import UsageError

REASON_CHARS_MAX = 1_000
_LAYOUT = "\n\t"


def reason_checked(reason: str) -> str:
    """Return a reason as it is kept; UsageError when it is too long or holds control characters."""
    reason = reason.strip()
    if len(reason) > REASON_CHARS_MAX:
        raise UsageError(f"the reason has {len(reason)} characters", hint=f"{REASON_CHARS_MAX} at the most")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in _LAYOUT for c in reason):
        raise UsageError("the reason holds control characters", hint="write it in plain text")
    return reason


def url_without_secrets(text: str) -> str:
    """An address for a record: what stands behind the question mark, or before the @, is a secret in many a one."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", text, maxsplit=1)[0])


def counted(count: int, noun: str, verb: str = "") -> str:
    """A number with its noun, and a verb that goes with both: `1 backup stays`, `2 backups stay`."""
    said = f"{count} {noun}{'' if count == 1 else 's'}"
    return f"{said} {verb}{'s' if count == 1 else ''}" if verb else said
