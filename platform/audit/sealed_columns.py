"""The seal on the head of the audit log is the root key's."""

from typing import TYPE_CHECKING

from audit.models import Head
from audit.services import seal_context
from core.rewrapping import SealedColumn, register

if TYPE_CHECKING:
    from engine.keys import RootKey


def _rewrapped(root: "RootKey", head: Head) -> bytes:
    from engine.keys import sealed_by

    seal = bytes(head.seal)
    if sealed_by(seal) == root.key_id:
        return seal
    root.open(seal, seal_context(head))  # A forged head is not made a good one.
    return root.seal(b"", seal_context(head))


register(SealedColumn("seals of the audit log", "audit.Head", "seal", _rewrapped, needs=("size", "root_hash")))
