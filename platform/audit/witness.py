"""Witnesses: places outside of the catalogue that receive every checkpoint, so that nobody can put the log back unseen.

`store:NAME` writes one object per checkpoint, which is never replaced; a URL receives it by POST and is not asked back.
Stores are opened by a layer above, which registers itself here.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from audit.checkpoints import Note, NoteDamaged, note_check, note_read, verifier_key
from audit.deliveries import delivery_claim, delivery_done, delivery_failed, delivery_moved, delivery_name
from audit.models import Checkpoint, CheckpointKey, Delivery, Head
from audit.services import head_get, record
from audit.witness_kinds import witness_opener
from core.errors import CatalogueError
from engine.errors import LastroError, ObjectExists, UsageError

if TYPE_CHECKING:
    from audit.verification import Expected, Verdict

SEND_MAX = 500
"""Checkpoints sent to one witness at a time; the rest follows."""
READ_NEWEST = 100
READ_SPREAD = 400
SYSTEM = "system:audit"


class WitnessDisagrees(CatalogueError):
    """A witness holds a checkpoint that this log cannot have made."""

    code = "audit.witness_disagrees"


class Witness(Protocol):
    """One place that keeps notes under their sizes."""

    def put(self, log_id: str, size: int, note: bytes) -> None:
        """Keep a note. Raises ObjectExists when it has another one for this size."""

    def sizes(self, log_id: str) -> list[int] | None:
        """Which it has, in order; None for one that cannot be asked."""

    def get(self, log_id: str, size: int) -> bytes:
        """One of them."""


def witness_open(name: str) -> AbstractContextManager[Witness]:
    """Open a witness as LASTRO_AUDIT_WITNESS names it. Raises UsageError for a kind that is not known."""
    if name.startswith(("https://", "http://")):
        from audit.witness_calls import Caller

        return Caller(name)
    scheme, _, rest = name.partition(":")
    opener = witness_opener(scheme)
    if not opener:
        raise UsageError(f"{name[:80]!r} is no witness", hint="LASTRO_AUDIT_WITNESS: store:NAME or https://…")
    opened: AbstractContextManager[Witness] = import_string(opener)(rest)
    return opened


# ---------------------------------------------------------------- sending


@dataclass(frozen=True, slots=True)
class Sent:
    """How one witness fared."""

    name: str
    sent: int = 0
    position: int = 0
    error: str = ""


def witnesses_send(*, urgent: bool = False) -> list[Sent]:
    """Bring every witness up to date; one that fails is tried again later and does not keep back the others."""
    head = head_get()
    if head is None or not head.log_id:
        return []
    return [_send(name, head, urgent=urgent) for name in settings.LASTRO_AUDIT_WITNESS]


def _send(name: str, head: Head, *, urgent: bool) -> Sent:
    delivery = delivery_claim(delivery_name(name), log_id=head.log_id, urgent=urgent)
    if delivery is None:
        return Sent(name, position=_position(name), error="" if not urgent else "somebody else is sending")
    begun = delivery.position
    due = Checkpoint.objects.filter(log_id=head.log_id, size__gt=begun).order_by("size")
    sent = 0
    try:
        with witness_open(name) as witness:
            for row in due[:SEND_MAX]:
                _put(witness, head, row)
                delivery_moved(delivery, row.size)
                sent += 1
    except LastroError as error:
        delivery_failed(delivery, error.message)
        _said(name, error, first=not delivery.failures)
        return Sent(name, sent, delivery.position, error.message)
    delivery_done(delivery)
    return Sent(name, sent, delivery.position)


def _put(witness: Witness, head: Head, row: Checkpoint) -> None:
    try:
        witness.put(head.log_id, row.size, row.note.encode())
    except ObjectExists:
        held = note_read(witness.get(head.log_id, row.size).decode("utf-8", "replace"))
        if held.root_hash != row.root_hash:
            raise WitnessDisagrees(
                f"the witness has another log of {row.size} entries",
                hint="audit verify; was this catalogue put back to an earlier state?",
            ) from None


def _said(name: str, error: LastroError, *, first: bool) -> None:
    """On record once per row of failures, and each time for the one thing that means an attack."""
    if first or isinstance(error, WitnessDisagrees):
        level = "error" if isinstance(error, WitnessDisagrees) else "warning"
        data = {"witness": name.partition("?")[0], "code": error.code}
        record("audit.witness_failed", message=error.message, actor=SYSTEM, level=level, data=data)


def _position(name: str) -> int:
    return Delivery.objects.filter(pk=delivery_name(name)).values_list("position", flat=True).first() or 0


# ---------------------------------------------------------------- asking


def witnesses_ask(verdict: "Verdict", head: Head | None) -> "list[Expected]":
    """What the witnesses have of this log and of those it goes on from; who cannot be asked is warned of."""
    expected: list[Expected] = []
    logs = _logs(head)
    for name in settings.LASTRO_AUDIT_WITNESS:
        try:
            with witness_open(name) as witness:
                count = 0
                for log_id, most in logs:
                    found = list(_kept(witness, name, log_id, most, verdict))
                    expected += found
                    count += len(found)
                verdict.witnesses[name] = count
        except LastroError as error:
            verdict.warnings.append(f"witness {name} could not be asked: {error.message}")
    return expected


def _logs(head: Head | None) -> list[tuple[str, int | None]]:
    """Names of the logs with the size up to which each is ours; None: whole."""
    if head is None:
        return []
    return [*((each["log"], each["size"]) for each in head.lineage if each["log"]), (head.log_id, None)]


def _kept(witness: Witness, name: str, log_id: str, most: int | None, verdict: "Verdict") -> "Iterator[Expected]":
    from audit.verification import Expected

    sizes = witness.sizes(log_id)
    if sizes is None:
        return
    ours = [size for size in sizes if most is None or size <= most]
    sent = _position(name) if most is None else 0
    if most is None and sent and (not ours or ours[-1] < sent):
        verdict.add(
            f"witness {name} lacks checkpoints that it was sent: it has been tampered with, or is another place"
        )
    keys = list(CheckpointKey.objects.all())
    for size in _chosen(ours):
        try:
            note = note_read(witness.get(log_id, size).decode("utf-8", "replace"))
            if (note.log_id, note.size) != (log_id, size):
                raise NoteDamaged("it is another log's")
            _checked(note, keys)
        except NoteDamaged as error:
            verdict.add(f"witness {name}, {size} entries: {error.message}")
            continue
        yield Expected(size, note.root_hash, f"witness {name}")


def _checked(note: Note, keys: list[CheckpointKey]) -> None:
    """A witness's word counts when one of our keys has signed it: rubbish in a store proves nothing of the log."""
    for key in keys:
        public = bytes.fromhex(key.public)
        if verifier_key(note.log_id, key.public).split("+")[1] == note.key_hash.hex():
            return note_check(note, public)
    raise NoteDamaged("it was signed by a key that this catalogue does not know: was the catalogue put back?")


def _chosen(sizes: list[int]) -> list[int]:
    """The newest, and of the older ones so many as show a change anywhere."""
    older, newest = sizes[:-READ_NEWEST], sizes[-READ_NEWEST:]
    step = max(1, len(older) // READ_SPREAD)
    return [*older[::step], *newest]


def witness_status() -> list[Mapping[str, object]]:
    """Per witness of the settings: how far it has got, and what is wrong."""
    head, rows = head_get(), {row.pk: row for row in Delivery.objects.all()}
    newest = head.checkpoint_size if head else 0
    found: list[Mapping[str, object]] = []
    for name in settings.LASTRO_AUDIT_WITNESS:
        row = rows.get(delivery_name(name)) or Delivery(pk=delivery_name(name))
        found.append(
            {
                "name": name, "position": row.position, "behind": max(0, newest - row.position), "sent_at": row.sent_at,
                "failures": row.failures, "next_try": row.not_before, "error": row.error or None,
            }
        )  # fmt: skip
    return found
