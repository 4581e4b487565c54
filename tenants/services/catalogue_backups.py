"""Backups of the catalogue itself, into every store: when one is due, what it keeps, how long it stays."""

import datetime
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from audit.models import Entry, Head
from audit.services import HEAD_ID, record
from connectors.files import FilesConfig, FilesConnector
from core import clock
from core.ids import new_id
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.errors import BackupMissing, CancelledError, LastroError, ManifestDamaged, SessionFenced, StoreFull
from engine.manifest import Manifest
from engine.ports import LockingStore
from engine.prune import prune
from engine.repository import Repository
from operations.context import OperationContext
from operations.models import Operation
from operations.services import operation_enqueue
from tenants import wiring
from tenants.catalogue.places import SOURCE, Kept, epoch_renew, head_signed, kept_list, number_take, place_open
from tenants.catalogue.writing import catalogue_write, software_version
from tenants.models import CatalogueStore, StoreConfig
from tenants.owning import installation_get
from tenants.services.clock_watch import clock_looked_at

DAYS_KEPT = 30
KEPT_MIN = 3
EVERY = datetime.timedelta(days=1)
ROOM_BYTES_MIN = 256 << 20
TENANT_NAME = "the catalogue of Lastro"
RESOURCE = "catalogue"
ENTRIES_LOOKED_AT_MAX = 5_000
STOPS = (CancelledError, SessionFenced)

IMPORTANT = ("tenant.", "store.", "source.", "key.", "kit.", "master.", "token.", "hook.", "retention.", "backup.held",
             "backup.released", "copy.", "erasure.", "drill.scheduled", "drill.unscheduled", "release.", "flag.")  # fmt: skip
"""Changes that nobody wants to make twice: kept at the next look, not only once a day."""
_OWN = ("catalogue.", "operation.", "repository.reconciled")
"""What a backup of the catalogue writes about itself is no reason for the next one."""


def catalogue_backup_start(*, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue a backup of the catalogue into every store."""
    with transaction.atomic():
        return operation_enqueue(kind="catalogue", tenant="", params={}, actor=actor, reason=reason, here=here)


def catalogue_due() -> str:
    """Why the catalogue ought to be kept now; empty when nothing changed, or nothing that cannot wait for tomorrow."""
    stores = StoreConfig.objects.count()
    places = list(CatalogueStore.objects.filter(behind=False))
    if not stores or not Entry.objects.exists():
        return ""
    if len(places) < stores or any(place.taken_at is None for place in places):
        return "a store has no backup of it yet"
    size, oldest = min(place.audit_size for place in places), min(place.taken_at for place in places if place.taken_at)
    fresh = _news(size)
    important = next((each for each in fresh if each.startswith(IMPORTANT)), "")
    if important:
        return f"{important} happened since"
    return "a day has passed" if fresh and clock.now() - oldest >= EVERY else ""


def changed_since(audit_size: int) -> bool:
    """Whether anything was done since the audit log was so long, but for keeping the catalogue itself."""
    return bool(_news(audit_size))


def _news(audit_size: int) -> list[str]:
    types = Entry.objects.filter(sequence__gte=audit_size).order_by("sequence").values_list("type", flat=True)
    return [each for each in types[:ENTRIES_LOOKED_AT_MAX] if not each.startswith(_OWN)]


# ---------------------------------------------------------------- taking one


@dataclass(frozen=True)
class Placed:
    """How one store fared."""

    store: str
    id: str = ""
    number: int = 0
    size_bytes: int = 0
    stored_bytes: int = 0
    ended: int = 0
    error: Mapping[str, str] | None = None


def catalogue_keep(context: OperationContext) -> list[Placed]:
    """Write the rows of this moment into every store; one that fails is warned of, the others go on.

    Raises what the last store raised when none took it.
    """
    folder = wiring.data_folder() / "tmp" / f"catalogue-{context.operation.pk}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        context.phase("read the catalogue")
        epoch_renew()
        size = _audit_size()
        catalogue_write(folder, installation_get(), context)
        placed, failed = [], None
        for row in StoreConfig.objects.order_by("name"):
            try:
                placed.append(_place(context, row, folder, size))
            except STOPS:
                raise
            except LastroError as error:
                failed = error
                placed.append(_failed(context, row, error))
        if failed is not None and not any(each.id for each in placed):
            raise failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return placed


def _audit_size() -> int:
    head = Head.objects.filter(pk=HEAD_ID).first()
    return head.size if head else 0


def _failed(context: OperationContext, row: StoreConfig, error: LastroError) -> Placed:
    context.warn("catalogue.not_kept", f"store {row.name}: {error}")
    CatalogueStore.objects.update_or_create(store=row, defaults={"error_code": error.code, "error": error.message})
    return Placed(row.name, error={"code": error.code, "detail": error.message, "hint": error.hint})


def _place(context: OperationContext, row: StoreConfig, folder: Path, audit_size: int) -> Placed:
    with place_open(row) as (repository, place):
        _refuse_full(repository, row)
        before = _newest(repository, place.number_reserved)
        number = number_take(context, repository, place)
        request = BackupRequest(
            backup_id=new_id("cbk"),
            number=number,
            type="incremental",
            tenant_name=TENANT_NAME,
            created_by=context.operation.actor,
            trigger="catalogue",
            platform_version=software_version(),
            parent=before,
            previous=_previous(repository, number),
        )
        files = FilesConnector(FilesConfig(path=str(folder)))
        manifest = backup_run(repository, [SourceInput(SOURCE, "configurations", "files", files)], request, context)
        ended = _expire(context, repository, row)
        _placed(context, place, manifest, audit_size)
    metadata = manifest.document["metadata"]
    return Placed(
        row.name, str(manifest.document["id"]), number, metadata["size_bytes"], metadata["stored_bytes"], ended
    )


def _refuse_full(repository: Repository, row: StoreConfig) -> None:
    free = getattr(repository.store, "free_bytes", None)
    left = free() if free else None
    if left is not None and left < ROOM_BYTES_MIN:
        raise StoreFull(f"store {row.name} has {left} bytes left: what is left is for backups", hint="free space there")


def _newest(repository: Repository, number: int) -> Manifest | None:
    """The newest of the last few numbers that can be compared with; without one all is stored that is not known."""
    for each in range(number, max(0, number - KEPT_MIN), -1):
        try:
            manifest = repository.manifest(each)
        except (BackupMissing, ManifestDamaged):
            continue
        if manifest.kind == "manifest":
            return manifest
    return None


def _previous(repository: Repository, number: int) -> str | None:
    try:
        return repository.manifest(number - 1).sha256 if number > 1 else None
    except (BackupMissing, ManifestDamaged):
        return None


def _placed(context: OperationContext, place: CatalogueStore, manifest: Manifest, audit_size: int) -> None:
    metadata = manifest.document["metadata"]
    with transaction.atomic():
        context.fence()
        CatalogueStore.objects.filter(pk=place.pk).update(
            numbers_closed=manifest.number,
            taken_at=clock.now(),
            audit_size=audit_size,
            size_bytes=metadata["size_bytes"],
            stored_bytes=metadata["stored_bytes"],
            error_code="",
            error="",
        )
        record(
            "catalogue.kept",
            message=f"the catalogue was kept in store {place.store.name}",
            actor=context.operation.actor,
            data={"store": place.store.name, "number": manifest.number, "manifest": manifest.sha256},
        )


# ---------------------------------------------------------------- how long it stays


def to_end(kept: Sequence[Kept], *, now: datetime.datetime) -> list[Kept]:
    """Which may go: the newest of each of the last 30 days stays, and the three newest whatever their age."""
    days: set[datetime.date] = set()
    ending = []
    for position, each in enumerate(kept):
        at = datetime.datetime.fromisoformat(each.taken_at)
        newest_of_day = at.date() not in days
        days.add(at.date())
        if position >= KEPT_MIN and not (newest_of_day and now - at < datetime.timedelta(days=DAYS_KEPT)):
            ending.append(each)
    return ending


def _expire(context: OperationContext, repository: Repository, row: StoreConfig) -> int:
    """End what is over and free its chunks; a lock, an error or a clock that is not trusted leaves it for the next time."""
    if clock_looked_at() is not None:
        return 0
    try:
        ending = [each for each in to_end(kept_list(repository), now=clock.now()) if not _locked(repository, each)]
        # One by one, so that each leaves a record under its own number: what was ended is found by name.
        for each in ending:
            context.check()
            repository.forget(each.manifest.number, "retention of catalogue backups")
        if ending:
            prune(repository, forget={}, head=head_signed(repository), dry_run=False, progress=context)
    except STOPS:
        raise
    except LastroError as error:
        context.warn("catalogue.not_expired", f"store {row.name}: {error}")
        return 0
    return len(ending)


def _locked(repository: Repository, each: Kept) -> bool:
    store: Any = repository.store
    if not isinstance(store, LockingStore):
        return False
    until = store.locked_until(f"{repository.prefix}manifests/{each.manifest.number:010d}")
    return until is not None and until > clock.now()
