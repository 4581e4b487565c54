"""Signed checkpoints: the log's size and root at a moment, in a form that others can keep and check.

A note in the form of C2SP tlog-checkpoint (signed-note with an Ed25519 signature, docs/formats/audit-log.md). The private
key lies in the catalogue under the root key, so who can write into the database alone can sign nothing.
"""

import base64
import datetime
import functools
import hashlib
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from audit import rows
from audit.canonical import timestamp_text
from audit.models import Checkpoint, CheckpointKey, Head
from audit.services import HEAD_ID, head_get
from core import clock
from core.errors import NotFound
from core.rootkey import root_key
from engine.errors import DamageError

ORIGIN = "lastro.audit"
KEY_CONTEXT = "lastro/audit-checkpoint-key/v1/"
NOTE_CHARS_MAX = 4_000
_SIGNATURE_BYTES = 64
_ED25519 = b"\x01"
_DASH = "\u2014"


class NoteDamaged(DamageError):
    """A checkpoint that is not in the form of one, or whose signature is not its key's."""

    code = "audit.note_damaged"


@dataclass(frozen=True, slots=True)
class Note:
    """What a checkpoint says; `text` is what its signature covers."""

    log_id: str
    size: int
    root_hash: str
    at: str
    key_hash: bytes
    signature: bytes
    text: str


# ---------------------------------------------------------------- the form


def note_text(log_id: str, size: int, root_hash: str, at: datetime.datetime) -> str:
    """The text that is signed: origin, size, root, and the time as an extension line."""
    root = base64.b64encode(bytes.fromhex(root_hash)).decode()
    return f"{ORIGIN}/{log_id}\n{size}\n{root}\ntime {timestamp_text(at)}\n"


def signed(text: str, name: str, key: CheckpointKey) -> str:
    """The text with the signature line under it."""
    public = bytes.fromhex(key.public)
    signature = _private(key.pk, key.public).sign(text.encode())
    line = base64.b64encode(key_hash(name, public) + signature).decode()
    return f"{text}\n{_DASH} {name} {line}\n"


def note_read(note: str) -> Note:
    """Take a note apart; NoteDamaged when it is none."""
    try:
        if len(note) > NOTE_CHARS_MAX:
            raise ValueError
        text, _, signatures = note.rpartition("\n\n")
        origin, size, root, at, *_ = f"{text}\n".split("\n")
        dash, name, encoded = signatures.rstrip("\n").split(" ")
        blob = base64.b64decode(encoded, validate=True)
        name_of, _, log_id = origin.partition("/")
        if dash != _DASH or name != origin or name_of != ORIGIN or len(blob) != 4 + _SIGNATURE_BYTES:
            raise ValueError
        return Note(
            log_id, int(size), base64.b64decode(root, validate=True).hex(), at.removeprefix("time "), blob[:4],
            blob[4:], f"{text}\n",
        )  # fmt: skip
    except ValueError:
        raise NoteDamaged("this is no signed checkpoint of an audit log") from None


def note_check(note: Note, public: bytes) -> None:
    """Raise NoteDamaged unless this key has signed the note."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if key_hash(f"{ORIGIN}/{note.log_id}", public) != note.key_hash:
        raise NoteDamaged(f"the checkpoint of {note.size} entries was signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(note.signature, note.text.encode())
    except InvalidSignature:
        raise NoteDamaged(f"the signature of the checkpoint of {note.size} entries is not valid") from None


def key_hash(name: str, public: bytes) -> bytes:
    """The four bytes by which a signature line names its key (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def verifier_key(log_id: str, public_hex: str) -> str:
    """The public key as others keep it: name, key hash and key joined by `+` (C2SP signed-note, "vkey")."""
    name, public = f"{ORIGIN}/{log_id}", bytes.fromhex(public_hex)
    return f"{name}+{key_hash(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


# ---------------------------------------------------------------- the key


def key_current() -> CheckpointKey:
    """The key that signs now, made where there is none. In the caller's transaction, under the head's lock."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    found = CheckpointKey.objects.order_by("-id").first()
    if found is not None:
        return found
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw().hex()
    sealed = root_key().seal(private.private_bytes_raw(), KEY_CONTEXT + public)
    return CheckpointKey.objects.create(public=public, sealed=sealed)


def key_is_ours(key: CheckpointKey) -> bool:
    """Whether the root key vouches for this key: its private part opens, and belongs to the public one.

    Raises what opening raises (WrongKey, ObjectDamaged).
    """
    return _opened(key).public_key().public_bytes_raw().hex() == key.public


@functools.lru_cache(maxsize=4)
def _private(key_id: str, public: str):  # type: ignore[no-untyped-def]
    return _opened(CheckpointKey.objects.get(pk=key_id, public=public))


def _opened(key: CheckpointKey):  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(root_key().open(bytes(key.sealed), KEY_CONTEXT + key.public))


# ---------------------------------------------------------------- making them


def checkpoint_write(tip: "rows.Tip") -> Checkpoint:
    """Sign the head that `tip` describes, which is locked and says so itself already."""
    key, now = key_current(), clock.now()
    text = note_text(tip.log_id, tip.size, tip.root_hash, now)
    note = signed(text, f"{ORIGIN}/{tip.log_id}", key)
    return Checkpoint.objects.create(
        created_at=now, log_id=tip.log_id, size=tip.size, root_hash=tip.root_hash, key=key, note=note
    )


def checkpoint_make() -> Checkpoint:
    """Sign the log as it is now; the newest checkpoint when nothing was recorded since. NotFound for an empty log."""
    from audit.services import tip_context

    with transaction.atomic():
        tip = rows.tip_locked()
        if not tip.size or tip.root_key is None:
            raise NotFound("nothing was recorded yet", hint="a checkpoint says how long the log is")
        if tip.checkpoint_size != tip.size or not Checkpoint.objects.filter(size=tip.size).exists():
            tip.checkpoint_size = tip.size
            tip.log_id = tip.log_id or rows.log_id_new()
            seal = tip.root_key.seal(b"", tip_context(tip))
            Head.objects.filter(pk=HEAD_ID).update(checkpoint_size=tip.size, log_id=tip.log_id, seal=seal)
            return checkpoint_write(tip)
    return Checkpoint.objects.get(size=tip.size)


def checkpoint_if_due() -> Checkpoint | None:
    """Make one when something was recorded since the last, and that is longer ago than the settings allow."""
    head, newest = head_get(), Checkpoint.objects.order_by("-size").first()
    if head is None or not head.size or head.size == head.checkpoint_size:
        return None
    every = datetime.timedelta(minutes=settings.LASTRO_AUDIT_CHECKPOINT_MINUTES)
    if newest is not None and clock.now() - newest.created_at < every:
        return None
    return checkpoint_make()


def checkpoint_get(size: int) -> Checkpoint:
    """The checkpoint of so many entries. Raises NotFound."""
    found = Checkpoint.objects.filter(size=size).select_related("key").first()
    if found is None:
        raise NotFound(f"there is no checkpoint of {size} entries", hint="audit checkpoints lists them")
    return found


def checkpoint_list(*, limit: int, before: int | None = None) -> list[Checkpoint]:
    """Newest first."""
    found = Checkpoint.objects.select_related("key").order_by("-size")
    if before is not None:
        found = found.filter(size__lt=before)
    return list(found[:limit])
