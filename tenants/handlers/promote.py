"""The operation `promote`: a tenant's primary moves into the store of a copy, planned or because the former one is lost."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from core import clock
from core.errors import Busy, Conflict
from engine.copy import CopyReport
from engine.erasures import ledger_losses_put
from engine.errors import LastroError, ManifestDamaged, SessionFenced, StoreDenied, StoreError, StoreFull
from engine.faults import kill_point
from engine.ports import Store
from engine.promotion import selections_drop, tombstones_drop, writers_fence
from engine.repository import Repository
from engine.verify_store import CIRCLE, Share, StoreReport, store_verify_bytes, store_verify_structure
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.copy_opening import copy_on
from tenants.copy_selectors import copies_readable, copy_get
from tenants.handlers.backup import tenant_resource
from tenants.handlers.copies import copy_filled, keyring_placed
from tenants.handlers.copy_checks import expected_in
from tenants.models import Backup, BackupCopy, BackupPresence, Copy, Promotion, StoreConfig, Tenant
from tenants.services.change_images import images_wanted
from tenants.services.copies import copy_remove
from tenants.services.copy_recording import numbered
from tenants.services.copy_wishes import Wishes, wishes_of
from tenants.services.keys import keys_settle
from tenants.services.numbers import numbers_close
from tenants.services.promised import promise_keep
from tenants.services.promoting import NAMED_MAX, held_by_primary, primary_switch, promotion_settled
from tenants.services.reconciling import Reconciled, images_kept, reconciled_checked, tenant_reconcile


@dataclass
class _Seen:
    """What the new primary was found to hold before the switch."""

    brought: int = 0
    bytes: int = 0
    held: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()
    hurt: frozenset[int] = frozenset()
    erasures_lost: list[int] = field(default_factory=list)


@register(
    "promote",
    resource=tenant_resource,
    phases=("close", "look", "copy", "finish", "structure", "read", "switch", "take over backups"),
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Bring the copy up to date, verify it, switch, reconcile; or go on where an earlier attempt was stopped."""
    tenant = Tenant.objects.select_related("store").get(pk=context.operation.subject_id)
    store = StoreConfig.objects.get(pk=context.params["store_id"])
    promotion = Promotion.objects.filter(tenant=tenant, settled_at=None).first()
    context.take_also(f"copy:{tenant.slug}:{store.name}")
    if promotion is None:
        if tenant.store_id == store.pk:
            raise Conflict(
                f"store {store.name} is the primary of tenant {tenant.slug} already", hint="nothing is to do"
            )
        promotion = _moved(context, tenant, copy_get(tenant, store), lost=bool(context.params.get("lost")))
    return promotion_finish(context, tenant, promotion)


def _moved(context: OperationContext, tenant: Tenant, copy: Copy, *, lost: bool) -> Promotion:
    """Everything up to the switch; what raises before leaves the primary where it is."""
    gone = lost and _answers_empty(tenant)
    with wiring.store_open(copy.store) as store:
        seen = _brought_lost(context, tenant, copy, store) if lost else _brought(context, tenant, copy, store)
        left, ended = _only_there(tenant, copy, seen.held, gone=gone)
        _hold_checked(tenant, ended)
        writers_fence(copy_on(copy, store), head=tenant.numbers_closed)
        kill_point("promote.verified")
    context.phase("switch")
    context.check()
    account = {
        "tenant": tenant.slug,
        "from": tenant.store.name,
        "to": copy.store.name,
        "lost": lost,
        "brought": seen.brought,
        "bytes": seen.bytes,
        "held": len(seen.whole),
        "left": left[:NAMED_MAX],
        "left_count": len(left),
        "ended": ended[:NAMED_MAX],
        "ended_count": len(ended),
        "erasures_lost": seen.erasures_lost[:NAMED_MAX],
    }
    with transaction.atomic():
        context.fence()
        promotion = primary_switch(
            tenant,
            copy.store,
            actor=context.operation.actor,
            lost=lost,
            gone=gone,
            ending=bool(context.params.get("ending")),
            whole=seen.whole,
            hurt=seen.hurt,
            account=account,
            operation_id=context.operation.pk,
        )
    kill_point("promote.switched")
    return promotion


# ---------------------------------------------------------------- planned


def _brought(context: OperationContext, tenant: Tenant, copy: Copy, store: Store) -> _Seen:
    """Close what the primary has open, bring all that it holds, and look through what arrived. Raises Conflict."""
    context.phase("close")
    with wiring.repository_open(tenant) as old:
        reconciled_checked(tenant, old)
        _closed(context, tenant, old)
    wanted = held_by_primary(tenant)
    report, target = _filled(context, copy, store, frozenset(wanted))
    lacking = sorted(set(wanted) - report.held)
    if lacking:
        named = _named(tenant, lacking)
        why = next((f" ({error.message})" for _, error in sorted(report.failed.items())), "")
        raise Conflict(
            f"{len(lacking)} backups of {tenant.slug} cannot be brought to {copy.store.name}: {named}{why}; "
            f"{tenant.store.name} stays the primary",
            hint=f"copy repair {tenant.slug} mends what another copy holds; what nobody can mend: backup delete BACKUP",
        )
    expected = {**expected_in(copy, target)[0], **wanted}
    seen = _looked_through(context, tenant, target, expected)
    if seen.findings:
        first = seen.findings[0]
        raise ManifestDamaged(
            f"{copy.store.name} is not whole ({len(seen.findings)} findings, the first: {first.message}); "
            f"{tenant.store.name} stays the primary",
            hint=f"copy repair {tenant.slug} --store {copy.store.name}, then again",
        )
    _fenced(context, tenant)
    held = frozenset(target.numbers())
    return _Seen(len(report.copied), report.bytes, held, frozenset(expected))


def _closed(context: OperationContext, tenant: Tenant, old: Repository) -> None:
    """Give every number its manifest or a void record, so that no session can commit behind the move."""
    try:
        numbers_close(context, tenant, old)
    except (StoreFull, StoreDenied) as error:
        # The chain that goes on is the new primary's, where it is closed; here nobody would be told of a late commit.
        context.warn("promote.not_closed", f"{tenant.store.name} takes no record any more: {error.message}")
    tenant.refresh_from_db()


def _fenced(context: OperationContext, tenant: Tenant) -> None:
    with wiring.repository_open(tenant) as old:
        try:
            writers_fence(old, head=tenant.numbers_closed)
        except (StoreFull, StoreDenied) as error:
            context.warn("promote.not_fenced", f"{tenant.store.name} takes no record any more: {error.message}")


def _filled(
    context: OperationContext, copy: Copy, store: Store, wanted: frozenset[int], **instead: Any
) -> tuple[CopyReport, Repository]:
    """A run of the copy that wants all this, images of restores too, and drops nothing."""
    usual, tenant = wishes_of(copy), copy.tenant
    wishes = Wishes(wanted | usual.wanted, usual.known | wanted, frozenset(), usual.until, "it becomes the primary")
    images = tuple(sorted(images_wanted(tenant) | images_kept(tenant)))
    return copy_filled(context, copy, store, wishes, recheck=False, images=images, **instead)


def _looked_through(
    context: OperationContext, tenant: Tenant, target: Repository, expected: Mapping[int, str]
) -> StoreReport:
    report = store_verify_structure(target, expected, erasures=tenant.erasures_number, progress=context)
    Copy.objects.filter(tenant=tenant, store=context.params["store_id"]).update(
        structure_verified_at=clock.now(), objects_count=report.packs, stored_bytes=report.stored_bytes
    )
    if context.params.get("deep") and not report.findings:
        read = store_verify_bytes(target, Share(0, CIRCLE), deep=True, progress=context)
        report.findings += read.findings
        report.affected.update(read.affected)
    return report


# ---------------------------------------------------------------- after a loss


def _answers_empty(tenant: Tenant) -> bool:
    """Whether the primary's store can be opened and holds nothing of the tenant: then it is not away, but gone."""
    try:
        with wiring.store_open(tenant.store) as store:
            return not wiring.repository_present(store, tenant.repository_id)
    except LastroError:
        return False


def _brought_lost(context: OperationContext, tenant: Tenant, copy: Copy, store: Store) -> _Seen:
    """Bring what further copies hold; where nobody holds anything, begin the repository anew under the same keys."""
    seen = _Seen()
    if any(each.pk != copy.pk for each in copies_readable(tenant)):
        wanted = frozenset(_held_by_copies(tenant))
        try:
            report, _ = _filled(context, copy, store, wanted, erasures=0)
            seen.brought, seen.bytes = len(report.copied), report.bytes
        except StoreError as error:
            context.warn("promote.not_brought", f"further copies cannot be read: {error.message}")
    if not wiring.repository_present(store, tenant.repository_id):
        fresh = Tenant.objects.get(pk=tenant.pk)
        fresh.store = copy.store
        wiring.repository_create(fresh, store)
        context.warn("promote.anew", f"no store holds anything of {tenant.slug}: it begins anew in {copy.store.name}")
    keyring_placed(copy, store)
    target = copy_on(copy, store)
    seen.erasures_lost = ledger_losses_put(target, upto=tenant.erasures_number)
    if seen.erasures_lost:
        context.warn(
            "promote.erasures_lost",
            f"{len(seen.erasures_lost)} erasures were recorded in the lost store alone: ask for them again "
            "(audit list --type erasure.recorded names source and table; erasure add)",
        )
    seen.held = frozenset(target.numbers())
    expected = {number: sha for number, sha in held_by_primary(tenant).items() if number in seen.held}
    expected.update(expected_in(copy, target)[0])
    affected = set(_looked_through(context, tenant, target, expected).affected)
    if affected:
        context.warn("promote.damaged", f"not whole in {copy.store.name}: {_named(tenant, affected)}")
    seen.whole, seen.hurt = frozenset(set(expected) - affected), frozenset(affected)
    return seen


def _held_by_copies(tenant: Tenant) -> Iterator[int]:
    rows = BackupCopy.objects.filter(copy__tenant=tenant, presence=BackupPresence.PRESENT)
    for number in rows.exclude(copy__store=tenant.store_id).values_list("backup__number", flat=True).distinct():
        if number is not None:
            yield number


def _only_there(tenant: Tenant, copy: Copy, held: Collection[int], *, gone: bool) -> tuple[list[str], list[str]]:
    """Backups that the former primary alone holds: those that stay listed with it, and those that are lost with it."""
    lacking = sorted(set(held_by_primary(tenant)) - set(held))
    ids = numbered(tenant, lacking)
    there = BackupCopy.objects.filter(copy__tenant=tenant).exclude(presence=BackupPresence.MISSING)
    elsewhere = set(there.exclude(copy__store=tenant.store_id).exclude(copy=copy).values_list("backup_id", flat=True))
    alone = [ids[number] for number in lacking if number in ids and ids[number] not in elsewhere]
    return ([], alone) if gone else (alone, [])


def _hold_checked(tenant: Tenant, ended: Collection[str]) -> None:
    """Raise Conflict when a loss under a hold would be accepted."""
    held = Backup.objects.filter(pk__in=list(ended)[:NAMED_MAX], held=True).first()
    if ended and (tenant.held or held is not None):
        raise Conflict(
            f"{len(ended)} backups of {tenant.slug} would be given up as lost, and it is under a hold",
            hint="those who asked for the hold have to know; then: backup release, or tenant release",
        )


def _named(tenant: Tenant, numbers: Collection[int]) -> str:
    ids = sorted(numbered(tenant, numbers).values())
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


# ---------------------------------------------------------------- after the switch


def promotion_finish(context: OperationContext, tenant: Tenant, promotion: Promotion) -> Mapping[str, Any]:
    """Reconcile the new primary, and see to the former one; repeating it changes nothing more."""
    tenant = Tenant.objects.select_related("store").get(pk=tenant.pk)
    with wiring.repository_open(tenant) as repository:
        promise_keep(tenant, repository)
        selections_drop(repository)
        found = tenant_reconcile(context, tenant, repository, close=promotion.lost, promoted=True)
    for backup in found.missing:
        context.warn("reconcile.missing", f"backup {backup} ought to be in {promotion.after_name}, and is not")
    kill_point("promote.reconciled")
    keys_settle(tenant)
    former = _former_seen_to(context, tenant, promotion)
    account = {**_account(promotion.account, found), "former": former}
    promotion_settled(promotion, account, actor=context.operation.actor)
    return account


def _account(begun: Mapping[str, Any], found: Reconciled) -> dict[str, Any]:
    ended = sorted({*begun.get("ended", ()), *found.ended} - set(found.missing))
    return {
        **begun,
        "ended": ended[:NAMED_MAX],
        "ended_count": max(len(ended), int(begun.get("ended_count", 0)) - len(found.missing)),
        "adopted": found.adopted[:NAMED_MAX],
        "missing": found.missing[:NAMED_MAX],
    }


def _former_seen_to(context: OperationContext, tenant: Tenant, promotion: Promotion) -> str:
    """Make the former primary a copy that promises what it holds, or none; what it is now, in a word."""
    former = Copy.objects.select_related("store", "tenant__store").filter(tenant=tenant, store=promotion.before).first()
    if former is None or promotion.before_id is None:
        return "forgotten"
    if promotion.lost:
        return "away"
    if promotion.ending:
        try:
            copy_remove(former, actor=context.operation.actor, reason="its primary went elsewhere")
            return "ended"
        except Conflict as error:
            context.warn("promote.former_kept", f"{former.store.name} stays as a copy: {error.message}")
    with _warned(context, former):
        context.take_also(f"copy:{tenant.slug}:{former.store.name}")
        with wiring.store_open(former.store) as store:
            _, repository = copy_filled(context, former, store, wishes_of(former), recheck=False)
            tombstones_drop(repository)
    return "copy"


@contextmanager
def _warned(context: OperationContext, former: Copy) -> Iterator[None]:
    """What fails now is for the next run of the copy; the promotion itself is over."""
    try:
        yield
    except (StoreError, SessionFenced, Busy) as error:
        context.check()
        context.warn(
            "promote.former_behind",
            f"{former.store.name} is a copy now, and not up to date: {error.message}; "
            f"copy run {former.tenant.slug} --store {former.store.name}",
        )
