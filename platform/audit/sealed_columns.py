"""The seal on the head of the audit log, and the key of its checkpoints, are the root key's."""

from typing import TYPE_CHECKING

from audit.checkpoints import KEY_CONTEXT
from audit.models import CheckpointKey, Head
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


def _rewrapped_key(root: "RootKey", key: CheckpointKey) -> bytes:
    from engine.keys import sealed_by

    sealed, context = bytes(key.sealed), KEY_CONTEXT + key.public
    return sealed if sealed_by(sealed) == root.key_id else root.seal(root.open(sealed, context), context)


_HEAD_NEEDS = ("size", "root_hash", "log_id", "lineage", "first", "frontier", "checkpoint_size")
register(SealedColumn("seals of the audit log", "audit.Head", "seal", _rewrapped, needs=_HEAD_NEEDS))
register(SealedColumn("keys of audit checkpoints", "audit.CheckpointKey", "sealed", _rewrapped_key, needs=("public",)))
