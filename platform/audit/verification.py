"""Checking that nobody altered the audit log."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from django.db import connection

from audit import merkle
from audit.canonical import canonical
from audit.checkpoints import note_check, note_read
from audit.models import Checkpoint, CheckpointKey, Head
from audit.reading import stored_entries
from audit.services import head_get, seal_context
from core.rootkey import root_key
from engine.errors import LastroError

FINDINGS_MAX = 100


@dataclass
class Verdict:
    """What a verification found: entries read, the root they give, what is wrong, what could not be asked."""

    size: int = 0
    root_hash: str = ""
    log_id: str = ""
    first: int = 0
    checkpoints: int = 0
    witnesses: dict[str, int] = field(default_factory=dict)
    """Per witness how many checkpoints it holds."""
    findings: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.findings

    def add(self, finding: str) -> None:
        """Say what is wrong; beyond FINDINGS_MAX it is wrong enough."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


@dataclass
class Expected:
    """A root that somebody has kept for a size: a checkpoint here, or a witness's."""

    size: int
    root_hash: str
    who: str


def audit_verify(*, witnessed: bool = True) -> Verdict:
    """Read every entry in order, rebuild the tree, compare it with head, checkpoints and, if `witnessed`, witnesses.

    An altered entry gives another leaf, a removed one a gap, a cut-off end a head that says more, a head that was moved
    back has no valid seal, a checkpoint signed by another key no key of ours; a whole catalogue that was put back falls
    short of what a witness has. Memory stays bounded.
    """
    verdict = Verdict()
    head = head_get()
    expected = list(_checkpoints_checked(verdict, head))
    if witnessed:
        from audit.witness import witnesses_ask

        expected += witnesses_ask(verdict, head)
    if head is None:
        _check_nothing(verdict, expected)
        return verdict
    verdict.log_id, verdict.first = head.log_id, head.first
    _check_seal(verdict, head)
    walk = _Walk(verdict, head, sorted(expected, key=lambda each: each.size))
    for fields, leaf, root in stored_entries(head.first, head.size):
        walk.take(fields, leaf, root)
    walk.end()
    _check_bounds(verdict)
    return verdict


# ---------------------------------------------------------------- the entries


class _Walk:
    """The tree as it grows again, entry by entry, beside what is expected of it."""

    def __init__(self, verdict: Verdict, head: Head, expected: list[Expected]) -> None:
        self.verdict, self.head = verdict, head
        self.peaks, self.size = [bytes.fromhex(peak) for peak in head.frontier], head.first
        self.broken = len(self.peaks) != head.first.bit_count()
        if self.broken:
            verdict.add("the head does not say what was before the oldest entry")
        self._expected = iter(expected)
        self._next: Expected | None = None
        self._look(merkle.root(self.peaks).hex())

    def take(self, fields: Mapping[str, Any], leaf_text: str, root_text: str) -> None:
        """Look at one entry."""
        sequence = fields["sequence"]
        if sequence != self.size and not self._found_place(sequence, fields["id"]):
            return
        leaf = _leaf(fields)
        if leaf.hex() != leaf_text:
            self.verdict.add(f"entry {sequence} ({fields['id']}) was altered")
            self.broken = True
        self.size += 1
        if self.broken:
            return
        if self._grown(leaf).hex() != root_text:
            said = f"the root stored with entry {sequence} ({fields['id']}) does not follow from the entries"
            self.verdict.add(said)
            self.broken = True
        elif self._next is not None and self._next.size == self.size:
            self._look(root_text)

    def _found_place(self, sequence: Any, pk: Any) -> bool:
        """Whether an entry that does not stand where the one before it ended goes on from there, with a gap."""
        self.broken = True
        if type(sequence) is not int:
            self.verdict.add(f"entry {pk} has no number")
        elif sequence < self.size:
            self.verdict.add(f"entry {sequence} stands there twice")
        else:
            self.verdict.add(f"entries {self.size} to {sequence - 1} are missing")
            self.size = sequence
            return True
        return False

    def _grown(self, leaf: bytes) -> bytes:
        """The root with this leaf; `merkle.append` and `merkle.root`, at half their price."""
        tree, count, peaks = leaf, self.size - 1, self.peaks
        while count & 1:
            tree = sha256(b"\1" + peaks.pop() + tree).digest()
            count >>= 1
        peaks.append(tree)
        for peak in reversed(peaks[:-1]):
            tree = sha256(b"\1" + peak + tree).digest()
        return tree

    def _look(self, root_text: str) -> None:
        """Compare with whoever has a root for this size; what is expected before the oldest entry is passed over."""
        each = self._next or next(self._expected, None)
        while each is not None and each.size <= self.size:
            if each.size == self.size and self.size and each.root_hash != root_text:
                self.verdict.add(f"{each.who} has another root for {self.size} entries")
            each = next(self._expected, None)
        self._next = each

    def end(self) -> None:
        """Compare what was found with the head, and with who has seen more."""
        verdict, head = self.verdict, self.head
        verdict.size, verdict.root_hash = self.size, merkle.root(self.peaks).hex()
        if head.size != self.size:
            verdict.add(f"the head says {head.size} entries, there are {self.size}: entries were removed at the end")
        elif not self.broken and head.root_hash != verdict.root_hash:
            verdict.add("the root of the entries is not the head's")
        elif not self.broken and [peak.hex() for peak in self.peaks] != head.peaks:
            verdict.add("the peaks of the head are not those of the entries")
        behind = [each for each in [self._next, *self._expected] if each is not None and each.size > self.size]
        if behind:
            most = max(behind, key=lambda each: each.size)
            verdict.add(
                f"{most.who} has seen {most.size} entries, there are {self.size}: the log was cut off or put back"
            )


def _leaf(fields: Mapping[str, Any]) -> bytes:
    try:
        return sha256(b"\0" + canonical(fields)).digest()
    except (ValueError, TypeError):  # What no entry of ours holds.
        return b""


# ---------------------------------------------------------------- the head


def _check_nothing(verdict: Verdict, expected: list[Expected]) -> None:
    """There is no head: right for a log that nothing was written into yet."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM audit_entry")
        (verdict.size,) = cursor.fetchone()
    if verdict.size:
        verdict.add("the head is missing: the end of the log cannot be known")
    elif expected or CheckpointKey.objects.exists():
        verdict.add("the log is empty, but it was not always: there are checkpoints of it")
    verdict.root_hash = merkle.EMPTY_ROOT.hex()


def _check_seal(verdict: Verdict, head: Head) -> None:
    try:
        root_key().open(bytes(head.seal), seal_context(head))
    except LastroError as error:
        verdict.add(f"the head's seal is not valid: {error.message}")


def _check_bounds(verdict: Verdict) -> None:
    """Nothing may lie outside of what the head covers; asked in one statement, since the log may be growing."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT min(sequence) FROM audit_entry), (SELECT max(sequence) FROM audit_entry), first, size "
            "FROM audit_head WHERE id = 'head'"
        )
        found = cursor.fetchone()
    if found is None:
        verdict.add("the head has gone while the log was read")
        return
    least, most, first, size = found
    if least is not None and least < first:
        verdict.warnings.append(f"entries before {first} were cut off and are still there: audit truncate deletes them")
    if most is not None and most >= size:
        verdict.add(f"there are entries behind the end: {most} with a head that says {size}")


# ---------------------------------------------------------------- the checkpoints


def _checkpoints_checked(verdict: Verdict, head: Head | None) -> Iterator[Expected]:
    """What our own checkpoints say, after their signatures and keys were looked at."""

    @functools.cache
    def vouched(key_id: str) -> bytes | None:
        from audit.checkpoints import key_is_ours

        key = CheckpointKey.objects.get(pk=key_id)
        try:
            if key_is_ours(key):
                return bytes.fromhex(key.public)
        except (LastroError, ValueError):
            pass
        verdict.add(f"the key {key.pk} that has signed checkpoints is not this installation's")
        return None

    newest = 0
    logs = {head.log_id, *(each["log"] for each in head.lineage)} if head else set()
    for row in Checkpoint.objects.order_by("size").iterator(chunk_size=1_000):
        public = vouched(row.key_id)
        if public is None:
            continue
        try:
            note = note_read(row.note)
            note_check(note, public)
        except LastroError as error:
            verdict.add(f"checkpoint {row.pk}: {error.message}")
            continue
        if (note.size, note.root_hash) != (row.size, row.root_hash) or (head and note.log_id not in logs):
            verdict.add(f"checkpoint {row.pk} does not say what was signed")
            continue
        verdict.checkpoints, newest = verdict.checkpoints + 1, row.size
        yield Expected(note.size, note.root_hash, f"checkpoint {row.pk}")
    if head and head.checkpoint_size > head.first and newest < head.checkpoint_size:
        verdict.add(f"the checkpoint of {head.checkpoint_size} entries is missing")
