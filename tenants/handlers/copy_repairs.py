"""The operation `copy_repair`: what was found lost or altered in one store comes back from the others."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from engine.chunk_repair import RepairReport
from engine.copy import CopyWish, copy_run
from engine.copy_small import config_copy
from engine.errors import RepositoryMissing
from engine.ports import Store
from engine.repair import repository_repair
from engine.repository import Repository
from engine.verify_store import store_verify_structure
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import wiring
from tenants.copy_opening import copy_on, place_on, repository_reading
from tenants.copy_selectors import copies_of, copies_readable, copy_of, copy_primary, findings_open
from tenants.handlers.backup import tenant_resource
from tenants.handlers.copies import copy_filled, copy_resource, keyring_placed
from tenants.handlers.copy_checks import expected_in
from tenants.models import Copy
from tenants.services.copy_recording import hurt_backups, repair_recorded
from tenants.services.copy_wishes import wishes_of

NAMED_MAX = 5
KEYS_MAX = 100_000


def _repair_resource(operation: Operation) -> str:
    """In the primary it writes like a backup, elsewhere like a run of the copy."""
    return tenant_resource(operation) if operation.params.get("primary") else copy_resource(operation)


@register(
    "copy_repair", resource=_repair_resource, phases=("repair", "quarantine", "look", "copy", "chunks", "structure")
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Mend what was found lost or altered in one store from the others, and say which backups are whole again.

    A primary that is gone altogether is filled anew from its copies.
    """
    copy = copy_of(context.operation.subject_id)
    hurt_before = hurt_backups(copy)
    with ExitStack() as stack:
        store = stack.enter_context(wiring.store_open(copy.store))
        if copy.is_primary:
            repository, report, brought = _primary_mended(context, copy, store, stack)
        else:
            repository, report, brought = _copy_mended(context, copy, store, stack)
        copy.refresh_from_db()
        expected, _ = expected_in(copy, repository)
        structure = store_verify_structure(repository, expected, erasures=copy.tenant.erasures_number, progress=context)
    again, hurt = repair_recorded(context, copy, report, structure, expected=expected, hurt=hurt_before)
    _warned(context, copy, report, hurt)
    copy.refresh_from_db()
    return {
        "tenant": copy.tenant.slug,
        "store": copy.store.name,
        "health": copy.health,
        "mended": [{"key": key, "from": place or copy.store.name} for key, place in report.mended.items()],
        "lost": [{"key": key, "why": why} for key, why in report.lost.items()],
        "packs_brought": brought,
        "whole_again": again,
        "damaged": hurt,
    }


def _warned(context: OperationContext, copy: Copy, report: RepairReport, hurt: list[str]) -> None:
    for key, why in list(report.lost.items())[:20]:
        context.warn("copy.lost", f"{key} in {copy.store.name} cannot be mended: {why}")
    if hurt:
        more = f" and {len(hurt) - NAMED_MAX} more" if len(hurt) > NAMED_MAX else ""
        named = f"{', '.join(hurt[:NAMED_MAX])}{more}"
        context.warn("copy.damaged_backups", f"not whole in {copy.store.name}: {named}; take a full backup now")


def _primary_mended(
    context: OperationContext, copy: Copy, store: Store, stack: ExitStack
) -> tuple[Repository, RepairReport, int]:
    tenant, brought = copy.tenant, 0
    if not wiring.repository_present(store, tenant.repository_id):
        brought = _primary_filled(context, copy, store)
    repository = copy_on(copy, store)
    report = repository_repair(
        repository,
        [place_on(each, stack) for each in copies_of(tenant)],
        {finding.key for finding in findings_open(copy, limit=KEYS_MAX)},
        is_primary=True,
        name=copy.store.name,
        numbers=list(expected_in(copy, repository)[0]),
        progress=context,
    )
    return repository, report, brought


def _primary_filled(context: OperationContext, copy: Copy, store: Store) -> int:
    """Fill a primary that holds nothing any more from its copies; how many packs were brought.

    Raises RepositoryMissing when no copy holds anything.
    """
    tenant = copy.tenant
    if not copies_readable(tenant):
        raise RepositoryMissing(
            f"store {copy.store.name} holds nothing of {tenant.slug}, and there is no copy to fill it from",
            hint="is it the right store, and is it mounted?",
        )
    context.warn(
        "copy.primary_filled", f"store {copy.store.name} held nothing of {tenant.slug}: it is filled from copies"
    )
    with repository_reading(tenant, but=copy) as source:
        config_copy(source, store)
        keyring_placed(copy, store)
        target = copy_on(copy, store)
        expected, _ = expected_in(copy, target)
        wish = CopyWish(
            copy=copy.pk,
            wanted=frozenset(expected),
            known=frozenset(expected),
            head=tenant.numbers_closed,
            erasures=tenant.erasures_number,
            promise=False,
        )
        moved = copy_run(source, target, wish, context).packs_moved
    _gaps_closed(copy, target, expected)
    return moved


def _gaps_closed(copy: Copy, target: Repository, expected: Collection[int]) -> None:
    """Say that the numbers of backups that are no more, whose records no copy had, are no loss in the chain.

    The number of a good backup that no copy held stays open: that is a loss, and loud.
    """
    head = copy.tenant.numbers_closed
    kept = sorted(number for number in {*expected, *target.numbers()} if number <= head)
    if len(kept) < head:
        target.gaps_close(head=head, kept=kept)


def _copy_mended(
    context: OperationContext, copy: Copy, store: Store, stack: ExitStack
) -> tuple[Repository, RepairReport, int]:
    tenant = copy.tenant
    keys = {finding.key for finding in findings_open(copy, limit=KEYS_MAX)}
    repository = copy_on(copy, store)
    others = [copy_primary(tenant), *(each for each in copies_of(tenant) if each.pk != copy.pk)]
    report = repository_repair(
        repository,
        [place_on(each, stack) for each in others],
        keys,
        is_primary=False,
        name=copy.store.name,
        progress=context,
    )
    if not keys:
        return repository, report, 0
    # What no store had under its name comes in the packs that the primary has now.
    filled, repository = copy_filled(context, copy, store, wishes_of(copy), recheck=True)
    report.mended.update({f"pack {name}": "" for name in report.unnamed})
    return repository, report, filled.packs_moved
