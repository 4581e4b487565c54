"""The owner of what an installation keeps in one store: signed records with a number that only rises.

r/<catalogue repository>/owner/<n>    ten digits from 1 without gaps, each created once: a signed record of kind
                                      `owner`, sealed under the catalogue's keyring (docs/formats/catalogue.md)

Whoever adopts a store, or goes on from a restored catalogue, creates the next number. A worker remembers the number
of its own installation and looks for the next one by name before it writes: a listing may lie, a worker may have
been stopped for days. Records are never deleted.
"""

import datetime
import re
from dataclasses import dataclass

from engine.errors import ManifestDamaged, ObjectExists, ObjectMissing, TakenOver
from engine.faults import kill_point
from engine.manifest import DOCUMENT_BYTES_MAX, FORMAT_VERSION, Manifest
from engine.ports import Store
from engine.repository import Repository

RAISES_MAX = 10_000
"""More records than this are no history of adoptions: somebody fills the store."""
REASON_CHARS_MAX = 300
_NAME = re.compile("[0-9]{10}")


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """One change of owner; `readable` is False for a record that does not verify: nobody's, and all the same there."""

    number: int
    readable: bool
    installation: str = ""
    reason: str = ""
    timestamp: str = ""


def owner_key(repository_id: str, number: int) -> str:
    """Where the record lies."""
    return f"r/{repository_id}/owner/{number:010d}"


def owner_checked(store: Store, repository_id: str, generation: int) -> None:
    """Raise TakenOver when the store knows a later owner than `generation`. Costs one look-up."""
    try:
        store.stat(owner_key(repository_id, generation + 1))
    except ObjectMissing:
        return
    raise TakenOver(
        f"another installation has taken this store over: it knows owner {generation + 1}, this catalogue is {generation}; "
        "nothing was written or deleted",
        hint="use the newer installation; if this is the one to go on with: store reconcile NAME --take-over",
    )


def owner_records(repository: Repository) -> list[OwnerRecord]:
    """Every record, ascending, as the store lists them and as names beyond the listing answer."""
    prefix = f"r/{repository.repository_id}/owner/"
    listed = (info.key.rpartition("/")[2] for info in repository.store.list(prefix))
    last = max((int(name) for name in listed if _NAME.fullmatch(name)), default=0)
    found: list[OwnerRecord] = []
    for number in range(1, RAISES_MAX):
        record = _read(repository, number)
        if record is None:
            if number > last:
                break
            record = OwnerRecord(number, readable=False)
        found.append(record)
    return found


def owner_newest(repository: Repository) -> int:
    """The number of the newest owner, readable or not; 0 where there is none."""
    return max((record.number for record in owner_records(repository)), default=0)


def owner_raise(repository: Repository, *, reason: str, above: int = 0) -> int:
    """Become the owner: create the next free number above `above` and all that is there; returns it.

    Of two that race each gets a number of its own, and the higher one is the owner. Gaps below are filled, so that
    whoever looks for the number after its own finds one.
    """
    number = owner_newest(repository) + 1
    while number < RAISES_MAX:
        if _create(repository, number, reason) and number > above:
            kill_point("owner.raised")
            return number
        number += 1
    raise TakenOver(
        f"the store holds {number} owner records, more than there can be",
        hint="somebody fills it; take another copy, and look who may write here",
    )


def _create(repository: Repository, number: int, reason: str) -> bool:
    document = {
        "version": FORMAT_VERSION,
        "kind": "owner",
        "number": number,
        "repository_id": repository.repository_id,
        "installation_id": repository.tenant_id,
        "reason": reason[:REASON_CHARS_MAX],
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    record = Manifest.signed(document, repository.keyring)
    try:
        repository.store.create(owner_key(repository.repository_id, number), record.parts(repository.keyring))
    except ObjectExists:
        return False
    return True


def _read(repository: Repository, number: int) -> OwnerRecord | None:
    try:
        blob = repository.store.get(owner_key(repository.repository_id, number), 0, DOCUMENT_BYTES_MAX)
    except ObjectMissing:
        return None
    try:
        record = Manifest.read(blob, repository.keyring, number=number)
    except ManifestDamaged:
        return OwnerRecord(number, readable=False)
    if record.kind != "owner":
        return OwnerRecord(number, readable=False)
    document = record.document
    return OwnerRecord(
        number, True, str(document.get("installation_id")), str(document.get("reason")), str(document.get("timestamp"))
    )
