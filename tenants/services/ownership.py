"""Becoming the owner of stores, and bringing the catalogue up to what they know."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from access.approvals import Action, approval_use, approvals_void
from access.models import Approval
from audit.services import record
from core.errors import Busy
from engine.errors import LastroError, TakenOver
from engine.owner import owner_newest, owner_raise
from operations import leases
from operations.models import Operation
from operations.services import operation_enqueue, operation_run
from tenants import wiring
from tenants.catalogue.places import catalogue_repository, place_reconcile
from tenants.models import CatalogueStore, Installation, RepositoryMirror, StoreConfig, Tenant
from tenants.owning import installation_get, mirror_of
from tenants.services.rebuilding import Note, tenants_rebuild

WAIT_SECONDS = 2.0


@dataclass
class Brought:
    """What bringing catalogue and store together came to."""

    store: str
    generation: int = 0
    catalogue_backups: int = 0
    """Backups of the catalogue that it did not remember."""
    tenants: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    """Tenants that only the store knew."""


def ownership_take(rows: Iterable[StoreConfig], *, reason: str, actor: str, note: Note) -> int:
    """Raise the owner generation above all that the reachable stores know; the new one.

    The catalogue counts first and the stores follow, so that a kill between leaves nobody locked out. A store that is
    away gets its record with the next backup of the catalogue.
    """
    opened: list[str] = []
    target = installation_get().generation + 1
    for row in rows:
        try:
            with wiring.store_open(row) as store:
                target = max(target, _generation_put(target), _raised(row, store, target, reason))
                opened.append(row.name)
        except LastroError as error:
            note(f"store {row.name} is left out: {error}")
    generation = _generation_put(target)
    with transaction.atomic():
        record(
            "store.owned",
            message=f"owner {generation} of {', '.join(opened) or 'no store'}: {reason}",
            actor=actor,
            level="warning",
            data={"generation": generation, "stores": opened, "reason": reason},
        )
    return generation


def _generation_put(target: int) -> int:
    Installation.objects.filter(generation__lt=target).update(generation=target)
    return installation_get().generation


def _raised(row: StoreConfig, store: Any, target: int, reason: str) -> int:
    """Raise the number in one store to `target` at least, and to more where another owner was found."""
    repository = catalogue_repository(store)
    number = owner_raise(repository, reason=reason, above=max(target - 1, owner_newest(repository)))
    CatalogueStore.objects.update_or_create(store=row, defaults={"ready": True, "generation": number})
    return number


def owner_known(row: StoreConfig) -> int:
    """The newest owner that the store knows; 0 where it was never owned."""
    with wiring.store_open(row) as store:
        if not wiring.repository_present(store, installation_get().repository_id):
            return 0
        return owner_newest(catalogue_repository(store))


def take_over_action(row: StoreConfig) -> Action:
    """What a second master has to agree to: another installation is locked out."""
    return Action("stores", "store.take-over", details={"store": row.name, "id": row.pk})


def store_reconcile(
    row: StoreConfig,
    *,
    tenant: Tenant | None,
    take_over: bool,
    actor: str,
    approval: Approval | None = None,
    note: Note = lambda text: None,
) -> Brought:
    """Take over what the store knows, of one tenant or of all whose primary it is; afterwards deletions are allowed again.

    Raises TakenOver when another installation has become the owner, unless `take_over` says that this is the one to go on
    with. What had begun before is fenced out by a new owner generation. May be killed and repeated at any point.
    """
    known, installation = owner_known(row), installation_get()
    if known > installation.generation and not take_over:
        raise TakenOver(
            f"store {row.name} was adopted by another installation (owner {known}, this catalogue is "
            f"{installation.generation}); nothing was changed",
            hint="stop that installation, then: store reconcile NAME --take-over",
        )
    if take_over:
        with transaction.atomic():
            approval_use(approval, take_over_action(row), actor=actor)
    rows = Tenant.objects.filter(store=row, repository_ready=True, shredded_at=None).order_by("slug")
    chosen = list(rows if tenant is None else rows.filter(pk=tenant.pk))
    behind = RepositoryMirror.objects.filter(tenant__in=chosen).exclude(behind_since=None).exists()
    if behind:
        with transaction.atomic():
            approvals_void(actor=actor, why="the catalogue was restored")
    brought = Brought(row.name)
    place = CatalogueStore.objects.filter(store=row).first()
    if behind or take_over or known > installation.generation or (place is not None and place.behind):
        reason = "taken over" if take_over else "the catalogue was restored"
        ownership_take([row], reason=reason, actor=actor, note=note)
        behind = True
    brought.generation = installation_get().generation
    brought.catalogue_backups = place_taken_over(row)
    if take_over:
        # Who owned it meanwhile has the keys: from here on this installation signs by its own.
        for each in chosen:
            mirror_of(each)
        RepositoryMirror.objects.filter(tenant__in=[each.pk for each in chosen]).update(succession_due=True)
    if tenant is None:
        brought.rebuilt = tenants_rebuild(row, actor=actor, note=note)
        chosen = list(rows)
    tenants_reconcile(chosen, brought, close=behind, actor=actor, note=note)
    return brought


def place_taken_over(row: StoreConfig) -> int:
    """Take over the numbers of the catalogue's own backups in this store; how many were not known here."""
    with wiring.store_open(row) as store:
        if not wiring.repository_present(store, installation_get().repository_id):
            return 0
        place = CatalogueStore.objects.get_or_create(store=row)[0]
        return place_reconcile(catalogue_repository(store), place)


def tenants_reconcile(
    chosen: Iterable[Tenant],
    brought: Brought,
    *,
    close: bool,
    actor: str,
    note: Note,
    promoted: Collection[str] = frozenset(),
    keys_taken: bool = False,
) -> None:
    """Reconcile each tenant by an operation of its own; one that fails leaves the others alone, and stays behind.

    `promoted` are slugs of tenants whose store was a copy until now; `keys_taken`: the catalogue has their newest keys.
    """
    for each in chosen:
        params = {"close": close, "promoted": each.slug in promoted, "keys_taken": keys_taken}
        try:
            operation = _run_free(each, params, actor=actor, note=note)
        except Busy as error:
            brought.failed.append(
                {"tenant": each.slug, "code": error.code, "detail": error.message, "hint": error.hint}
            )
            note(f"{each.slug}: {error}")
            continue
        if operation.error:
            brought.failed.append(
                {"tenant": each.slug, **{key: str(operation.error.get(key, "")) for key in ("code", "detail", "hint")}}
            )
            note(f"{each.slug}: {operation.error.get('detail')}")
        else:
            brought.tenants.append(dict(operation.result))


def _run_free(tenant: Tenant, params: Mapping[str, bool], *, actor: str, note: Note) -> Operation:
    """Run it when the tenant is free; a killed run before this one holds its lease until that expires. Raises Busy."""
    until = time.monotonic() + leases.lease_duration().total_seconds() + WAIT_SECONDS
    while True:
        try:
            return _run(tenant, params, actor=actor)
        except Busy as error:
            if time.monotonic() > until:
                raise
            note(f"{tenant.slug}: waiting, {error.message}")
            time.sleep(WAIT_SECONDS)


def _run(tenant: Tenant, params: Mapping[str, bool], *, actor: str) -> Operation:
    with transaction.atomic():
        operation = operation_enqueue(
            kind="reconcile",
            tenant=tenant.slug,
            params=params,
            subject_id=tenant.pk,
            actor=actor,
            reason="reconcile",
            here=True,
        )
    return operation_run(operation.pk, here=True)
