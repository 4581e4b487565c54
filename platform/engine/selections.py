"""Selection records: which backups a copy must hold, signed, so that what it lacks on purpose is told from loss.

r/<repository>/selections/<s>     record number s (ten digits), created once; the highest one counts

A primary has none: there every number holds a manifest or a record, or was ended. A copy holds the backups that its
newest selection names; whatever else lies there (of a run that was killed, say) is promised to nobody. A record is written
behind the manifests that it adds and before those that it lacks are deleted.
"""

import datetime
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from engine.errors import ManifestDamaged, ObjectExists, ObjectMissing, SessionFenced, StoreDenied
from engine.faults import kill_point
from engine.manifest import DOCUMENT_BYTES_MAX, FORMAT_VERSION, Manifest
from engine.repository import Repository, delete_all
from engine.signers import break_after

_SERIAL = re.compile("[0-9]{10}")


@dataclass(frozen=True)
class Selection:
    """What a copy promises; serial 0 stands for no record at all, which promises nothing."""

    serial: int = 0
    copy: str = ""
    head: int = 0
    """The highest number that the writer knew of; nothing is said about later ones."""
    kept: frozenset[int] = frozenset()
    trusted: bool = True
    """False: it is signed by a key that had got out since. Whoever has that can have thinned the promise out."""


def _key(repository: Repository, serial: int) -> str:
    return f"{repository.prefix}selections/{serial:010d}"


def _serials(repository: Repository) -> list[int]:
    names = (info.key.rpartition("/")[2] for info in repository.store.list(f"{repository.prefix}selections/"))
    return sorted(int(name) for name in names if _SERIAL.fullmatch(name))


def selection_read(repository: Repository, *, at_least: int = 0) -> Selection:
    """The newest selection record. Raises ManifestDamaged when it is altered, or older than `at_least`.

    A listing may be stale, so that later ones than it shows are asked for by name.
    """
    serial = max([at_least, *_serials(repository)])
    while _is_there(repository, serial + 1):
        serial += 1
    if not serial:
        return Selection()
    try:
        blob = repository.store.get(_key(repository, serial), 0, DOCUMENT_BYTES_MAX)
    except ObjectMissing:
        raise ManifestDamaged(
            f"selection {serial} of the copy is gone",
            hint="the store was rolled back or cleared; copy run writes what is missing again",
        ) from None
    record = Manifest.read(blob, repository.keyring, number=serial)
    try:
        if record.kind != "selection":
            raise ValueError(record.kind)
        kept = frozenset(n for first, last in record.document["kept"] for n in range(int(first), int(last) + 1))
        trusted = break_after(repository.keyring.successors, record.epoch) is None
        return Selection(serial, str(record.document["copy"]), int(record.document["head"]), kept, trusted)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestDamaged(f"selection {serial} of the copy is not readable") from error


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as [first, last] of each stretch."""
    stretches: list[list[int]] = []
    for number in sorted(numbers):
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return stretches


def _is_there(repository: Repository, serial: int) -> bool:
    try:
        repository.store.stat(_key(repository, serial))
    except ObjectMissing:
        return False
    return True


def selection_write(repository: Repository, *, copy: str, head: int, kept: Collection[int], after: int) -> Selection:
    """Record what the copy holds from now on, under the number behind `after`, and drop older records.

    Raises SessionFenced when another writer took that number.
    """
    serial = after + 1
    document = {
        "version": FORMAT_VERSION,
        "kind": "selection",
        "number": serial,
        "repository_id": repository.repository_id,
        "reason": "copy",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "copy": copy,
        "head": head,
        "kept": _ranges(kept),
    }
    parts = Manifest.signed(document, repository.keyring).parts(repository.keyring)
    try:
        repository.store.create(_key(repository, serial), parts)
    except ObjectExists:
        raise SessionFenced(
            f"selection {serial} of the copy was written by somebody else",
            hint="the operation was taken over; start it again",
        ) from None
    kill_point("copy.selection_stored")
    with suppress(StoreDenied):  # A store that locks or only appends keeps older ones: the highest counts.
        delete_all(repository.store, [_key(repository, each) for each in _older(repository, serial)])
    return Selection(serial, copy, head, frozenset(kept))


def _older(repository: Repository, serial: int) -> Iterable[int]:
    # One record back is kept: a listing that lags behind shows it, and reading goes on by name from there.
    return [each for each in _serials(repository) if each < serial - 1]
