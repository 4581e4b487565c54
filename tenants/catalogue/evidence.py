"""What in the stores says that a backup of the catalogue is not the newest there was: somebody may have put that there.

Whoever has a former root key has every key of then. With rights to write he can delete what is newer and put a forged backup of
the catalogue in its place, which verifies. What he cannot make is anything sealed since; so whatever in the stores is
newer than the backup, and would have been followed by a newer one, contradicts it (docs/recovery.md, "Contradictions").
"""

import datetime
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core import clock, sealing
from core.errors import Conflict
from core.rootkey import root_key
from engine.errors import BackupMissing, LastroError, ManifestDamaged, ObjectDamaged, WrongKey
from engine.keys import Keyring
from engine.owner import owner_records
from engine.ports import Store
from engine.repository import Repository, keyring_key
from tenants import wiring
from tenants.catalogue.filling import StoredCatalogue
from tenants.catalogue.places import Kept, kept_list, repository_found
from tenants.keyring_places import KEYRING_BYTES_MAX
from tenants.models import StoreConfig

PATIENCE = datetime.timedelta(days=2)
"""What is done is in a backup of the catalogue a day later, where a worker runs; twice that is no coincidence."""
CADENCE = datetime.timedelta(minutes=30)
"""Stores that can be reached get each backup of the catalogue within this."""
TENANTS_LOOKED_AT_MAX = 1_000
NUMBERS_LOOKED_AT_MAX = 64
READERS = 8
NAMED_MAX = 5
ACCEPT = "--accept-rollback"


class Contradicted(Conflict):
    """The stores know of more than the backup of the catalogue that was about to be taken."""

    code = "catalogue.contradicted"

    def __init__(self, message: str, *, hint: str = "", found: list[str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.found = found or []


@dataclass(frozen=True)
class KitKnown:
    """What a recovery kit knew of the catalogue when it was made; sealed in it under its passphrase."""

    made_at: datetime.datetime
    catalogue: str
    epoch: int
    generation: int
    kept_at: datetime.datetime | None
    """Of the newest backup of the catalogue then."""

    @classmethod
    def of(cls, known: Mapping[str, Any] | None) -> "KitKnown | None":
        """None for a kit that says nothing: one on paper, or of before this was kept."""
        if not known:
            return None
        kept_at = known.get("kept_at")
        return cls(
            datetime.datetime.fromisoformat(known["made_at"]),
            str(known["catalogue"]),
            int(known["epoch"]),
            int(known["generation"]),
            datetime.datetime.fromisoformat(kept_at) if kept_at else None,
        )


@dataclass(frozen=True)
class Judge:
    """Decides whether what an adoption is about to take may be taken."""

    known: KitKnown | None
    accept: bool
    accepted: list[str]
    """What was found and accepted all the same."""

    def backup(self, each: Kept, note: Callable[[str], None]) -> None:
        """Raise Contradicted for a backup of the catalogue that is not the newest there was, DamageError as reading it does."""
        try:
            found = list(contradictions(each, each.opened(), self.known))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ObjectDamaged(f"the backup {each.id} of the catalogue has rows that cannot be read") from error
        self._settle(found, f"the backup {each.id} of the catalogue, of {each.taken_at},", note)

    def none(self, catalogue: Repository | None, note: Callable[[str], None]) -> None:
        """Raise Contradicted where a backup of the catalogue ought to be and none is."""
        self._settle(none_contradicted(catalogue, self.known), "that there is no backup of the catalogue", note)

    def _settle(self, found: list[str], what: str, note: Callable[[str], None]) -> None:
        if not self.accept:
            refuse(found, what=what)
        for each in found:
            note(f"accepted all the same: {each}")
        self.accepted[:] = found


def refuse(found: list[str], *, what: str) -> None:
    """Raise Contradicted when anything was found."""
    if not found:
        return
    more = f"; and {len(found) - NAMED_MAX} more signs" if len(found) > NAMED_MAX else ""
    raise Contradicted(
        f"{what} is contradicted by what lies in the stores: {'; '.join(found[:NAMED_MAX])}{more}. Nothing was changed. Newer ones "
        "may have been deleted, and this one may be forged by somebody with former keys",
        hint=f"adopt from another store, if there is one; if you know why: {ACCEPT} --confirm NAME, which takes accounts, holds, retention and "
        "settings as that backup has them, whoever wrote it",
        found=found,
    )


def none_contradicted(catalogue: Repository | None, known: KitKnown | None) -> list[str]:
    """What says that a store without a readable backup of the catalogue had one."""
    found = []
    if catalogue is not None:
        numbers = catalogue.numbers()
        if numbers:
            found.append(
                f"it lists {len(numbers)} records or backups of the catalogue, and no backup among them can be read"
            )
        if catalogue.keyring.epoch > 1:
            found.append(f"the keys of the catalogue's backups are in their epoch {catalogue.keyring.epoch}")
    if known is not None and known.kept_at is not None:
        found.append(f"the kit knows of a backup of {known.kept_at:%Y-%m-%d %H:%M} UTC")
    return found


def contradictions(each: Kept, stored: StoredCatalogue, known: KitKnown | None) -> Iterator[str]:
    """What in the store, in other stores and in the kit is newer than this backup, in words; the strongest first."""
    taken = datetime.datetime.fromisoformat(each.taken_at)
    keyring = each.repository.keyring
    if keyring.epoch > each.epoch:
        yield (
            f"its keys were renewed since (epoch {keyring.epoch}), by a new root key or an adoption, and no backup is sealed by them"
        )
    if known is not None:
        yield from _of_kit(known, each, taken, int(stored.header["generation"]))
    owners = [record.number for record in owner_records(each.repository) if record.readable]
    if max(owners, default=0) > int(stored.header["generation"]):
        yield f"the store has had owner {max(owners)} since, the backup knows owner {stored.header['generation']}"
    if taken > clock.now() + CADENCE:
        yield f"it says that it was taken at {each.taken_at}, which is still to come"
    if keyring.epoch > each.epoch:
        return  # Whose rows these are is not known: nothing that they name is asked.
    yield from _of_tenants(each.repository.store, stored, taken)
    yield from _of_stores(each, stored, taken)


def _of_kit(known: KitKnown, each: Kept, taken: datetime.datetime, generation: int) -> Iterator[str]:
    if known.catalogue != each.repository.repository_id:
        yield f"the kit is of an installation whose catalogue is {known.catalogue}"
        return
    if known.epoch > each.epoch:
        yield f"the kit knows the keys of epoch {known.epoch}, it is sealed by epoch {each.epoch}"
    if known.generation > generation:
        yield f"the kit was made by owner {known.generation}, the backup knows owner {generation}"
    if known.kept_at is not None and known.kept_at > taken + CADENCE:
        yield f"the kit knows of a backup of {known.kept_at:%Y-%m-%d %H:%M} UTC"
    elif known.made_at > taken + PATIENCE:
        yield f"the kit was made on {known.made_at:%Y-%m-%d %H:%M} UTC, and no backup since"


# ---------------------------------------------------------------- tenants


def _of_tenants(store: Store, stored: StoredCatalogue, taken: datetime.datetime) -> Iterator[str]:
    epochs: dict[str, int] = {}
    for row in rows_of(stored, "tenants.KeyEpoch"):
        epochs[row["tenant_id"]] = max(epochs.get(row["tenant_id"], 1), int(row["epoch"]))
    tenants = [
        (str(row["slug"]), str(row["repository_id"]), int(row["number_reserved"] or 0), epochs.get(row["id"], 1))
        for row in islice(rows_of(stored, "tenants.Tenant"), TENANTS_LOOKED_AT_MAX)
        if row["repository_id"] and not row.get("shredded_at")
    ]
    with ThreadPoolExecutor(READERS, thread_name_prefix="evidence") as pool:
        root = root_key()
        for said in pool.map(lambda each: list(_of_tenant(store, root, *each, taken=taken)), tenants):
            yield from said


def _of_tenant(
    store: Store, root: Any, slug: str, repository_id: str, reserved: int, epoch: int, *, taken: datetime.datetime
) -> Iterator[str]:
    """What the store has of one tenant that the backup of the catalogue ought to know."""
    try:
        blob = store.get(keyring_key(repository_id), 0, KEYRING_BYTES_MAX)
        keyring = Keyring.of(blob, root, repository_id=repository_id)
        repository = Repository.open(store, repository_id=repository_id, keyring=keyring, cache=None)
        if keyring.epoch > epoch:
            yield f"the keys of {slug} are in epoch {keyring.epoch}, it knows {epoch}"
        newest = _newest_at(repository, reserved)
    except LastroError:
        return  # What cannot be read says nothing; the adoption names it.
    if newest is not None and newest > taken + PATIENCE:
        yield f"{slug} was backed up until {newest:%Y-%m-%d %H:%M} UTC, it was taken at {taken:%Y-%m-%d %H:%M}"


def _newest_at(repository: Repository, reserved: int) -> datetime.datetime | None:
    """When the newest document behind the numbers that the catalogue had given out was written."""
    head = repository.head_from(reserved, most=NUMBERS_LOOKED_AT_MAX)
    for number in range(head, reserved, -1):
        try:
            return datetime.datetime.fromisoformat(str(repository.manifest(number).document["timestamp"]))
        except (BackupMissing, ManifestDamaged, WrongKey, ValueError, KeyError):
            continue
    return None


def rows_of(stored: StoredCatalogue, label: str) -> Iterator[dict[str, Any]]:
    """Rows of one model as the backup has them; none where it does not know the model."""
    for described in stored.header["models"]:
        if described["model"] == label:
            for values in stored.lines(described["file"]):
                yield dict(zip(described["fields"], values, strict=False))


# ---------------------------------------------------------------- other stores


def _of_stores(each: Kept, stored: StoredCatalogue, taken: datetime.datetime) -> Iterator[str]:
    """A backup of the same catalogue in another store that is newer: this one was rolled back, or away for long."""
    for values in rows_of(stored, "tenants.StoreConfig"):
        row = StoreConfig(pk=values["id"], name=values["name"], kind=values["kind"])
        row.config, row.sealed = values.get("config", {}), values.get("sealed", {})
        try:
            sealing.unseal(row.sealed, owner=f"store:{row.pk}")
            with wiring.store_open(row) as store:
                repository = repository_found(store, each.repository.repository_id)
                kept, owners = kept_list(repository), owner_records(repository)
        except LastroError:
            continue
        if repository.keyring.epoch > each.epoch:
            yield f"store {row.name} has later keys of the catalogue's backups (epoch {repository.keyring.epoch})"
        owner = max((record.number for record in owners if record.readable), default=0)
        if owner > int(stored.header["generation"]):
            yield f"store {row.name} has had owner {owner} since"
        newest = max((datetime.datetime.fromisoformat(other.taken_at) for other in kept), default=taken)
        if newest > taken + CADENCE:
            yield f"store {row.name} has one of {newest:%Y-%m-%d %H:%M} UTC: adopt that store"
