"""Cutting off the oldest part of the log: the one way in which entries go.

What stays goes on verifying: the head keeps the peaks of the tree of what went. A note signed by the checkpoint key says
how many entries went and what their root was, and is itself an entry. The head moves first, in one transaction with that
entry; the rows are deleted after it, in batches, and a killed run is finished by the next.
"""

import base64
import datetime
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from audit import merkle, rows
from audit.checkpoints import ORIGIN, key_current, note_text, signed
from audit.models import Checkpoint, Entry, Head, Tile
from audit.reading import stored_entries
from audit.services import HEAD_ID, head_get, record
from audit.verification import audit_verify
from core import clock
from core.durable import PRIVATE_FILE_MODE, sync_folder
from core.errors import Conflict, NotFound
from engine.errors import DamageError, UsageError
from engine.faults import kill_point

DELETE_ROWS = 5_000


class LogDamaged(DamageError):
    """Nothing is cut off a log that does not verify: what is wrong with it might go with the cut."""

    code = "audit.altered"


@dataclass(frozen=True, slots=True)
class Cut:
    """What would go: entries from `first` up to `upto`, all of them before a time."""

    log_id: str
    first: int
    upto: int
    before: datetime.datetime

    @property
    def count(self) -> int:
        return self.upto - self.first


def cut_plan(before: datetime.datetime) -> Cut:
    """See what lies before a time: the entries that come before the oldest one that is not. NotFound for nothing."""
    head = head_get()
    if head is None or not head.log_id:
        raise NotFound("nothing was recorded yet")
    if before > clock.now():
        raise UsageError(f"{before:%Y-%m-%d %H:%M} UTC is still to come", hint="--before takes a time in the past")
    kept = Entry.objects.filter(sequence__gte=head.first, timestamp__gte=before).order_by("sequence")
    upto = kept.values_list("sequence", flat=True).first()
    cut = Cut(head.log_id, head.first, head.size if upto is None else upto, before)
    if cut.count <= 0:
        raise NotFound(f"no entry is older than {before:%Y-%m-%d %H:%M} UTC; nothing was cut off")
    return cut


def audit_truncate(
    cut: Cut, *, actor: str, export_to: Path | None, agreed: Callable[[], None] = lambda: None, reason: str = ""
) -> dict[str, Any]:
    """Cut it off; what the signed record says. With `export_to`, the entries are in that new file before.

    `agreed` is called in the transaction, to use up a second master's agreement. Raises LogDamaged for a log that does
    not verify, Conflict when somebody else has cut meanwhile, UsageError for a file that is there.
    """
    cut_finish()
    _check_current(cut, head_get())
    verdict = audit_verify()
    if not verdict.intact:
        raise LogDamaged(
            f"the log does not verify ({verdict.findings[0]}); nothing was cut off",
            hint="audit verify says what is wrong; keep an export before anything else",
        )
    exported = cut_export(cut, export_to) if export_to is not None else ""
    frontier = _frontier(cut)
    kill_point("audit.cut_prepared")
    with transaction.atomic():
        head = Head.objects.select_for_update().get(pk=HEAD_ID)
        _check_current(cut, head)
        agreed()
        said = _record_of(cut, frontier, exported)
        Head.objects.filter(pk=HEAD_ID).update(first=cut.upto, frontier=[peak.hex() for peak in frontier])
        # The head is sealed anew by the entry; nothing stands between the two.
        message = f"{cut.count} entries before {cut.before:%Y-%m-%d %H:%M} UTC cut off"
        record("audit.truncated", message=message, actor=actor, level="warning", data={**said, "reason": reason})
    kill_point("audit.cut_recorded")
    cut_finish()
    return said


def _check_current(cut: Cut, head: Head | None) -> None:
    if head is None or (head.log_id, head.first) != (cut.log_id, cut.first) or cut.upto > head.size:
        raise Conflict("somebody else has cut the log meanwhile; nothing was done", hint="look again: audit list")


def cut_finish() -> int:
    """Delete what a truncation has cut off, whoever began it; how many rows. In batches: others go on recording."""
    head, gone = head_get(), 0
    if head is None or not head.first:
        return 0
    while True:
        with transaction.atomic():
            old = Entry.objects.filter(sequence__lt=head.first).order_by("sequence").values_list("sequence", flat=True)
            batch = list(old[:DELETE_ROWS])
            if not batch:
                break
            gone += Entry.objects.filter(sequence__gte=batch[0], sequence__lte=batch[-1]).delete()[0]
        kill_point("audit.cut_deleting")
    Checkpoint.objects.filter(size__lt=head.first).delete()
    Tile.objects.filter(height=8, index__lt=head.first // 256).delete()
    return gone


def cut_export(cut: Cut, path: Path) -> str:
    """Write the entries as NDJSON into a new file, durably; its SHA-256. Raises UsageError when it exists."""
    digest = hashlib.sha256()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE_MODE)
    except FileExistsError:
        raise UsageError(f"{path} is there already; nothing was cut off", hint="name a new file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="nothing was cut off") from None
    with os.fdopen(handle, "wb") as file:
        for fields, leaf, root in stored_entries(cut.first, cut.upto):
            line = json.dumps({**fields, "leaf_hash": leaf, "root_hash": root}).encode() + b"\n"
            digest.update(line)
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.absolute().parent)
    return digest.hexdigest()


def _frontier(cut: Cut) -> list[bytes]:
    head = head_get()
    assert head is not None
    peaks, size = [bytes.fromhex(peak) for peak in head.frontier], cut.first
    leaves = Entry.objects.filter(sequence__gte=cut.first, sequence__lt=cut.upto).order_by("sequence")
    for leaf in leaves.values_list("leaf_hash", flat=True).iterator(chunk_size=DELETE_ROWS):
        peaks = merkle.append(peaks, size, bytes.fromhex(leaf))
        size += 1
    stored = Entry.objects.filter(sequence=cut.upto - 1).values_list("root_hash", flat=True).first()
    if size != cut.upto or merkle.root(peaks).hex() != stored:
        raise LogDamaged("the entries to be cut off do not give their root; nothing was cut off")
    return peaks


def _record_of(cut: Cut, frontier: list[bytes], exported: str) -> dict[str, Any]:
    """The signed account: a checkpoint of what went, with lines of its own (docs/formats/audit-log.md)."""
    root = merkle.root(frontier).hex()
    text = note_text(cut.log_id, cut.upto, root, clock.now())
    text += f"truncated {cut.first} {cut.upto}\n"
    text += f"frontier {base64.b64encode(b''.join(frontier)).decode()}\n"
    text += f"export {exported or 'none'}\n"
    rows.tip_locked()  # The key is looked up, or made, under the lock that every signature is made under.
    note = signed(text, f"{ORIGIN}/{cut.log_id}", key_current())
    return {
        "log": cut.log_id, "first": cut.first, "upto": cut.upto, "entries": cut.count, "before": cut.before,
        "root_hash": root, "export_sha256": exported or None, "note": note,
    }  # fmt: skip
