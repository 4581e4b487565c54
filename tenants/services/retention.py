"""Retention: policies set and taken back, the daily look over all tenants, and what it queues."""

import datetime
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import ConfirmationNeeded, Conflict
from core.text import reason_checked
from engine.errors import UsageError
from operations.models import Operation
from operations.selectors import operations_active
from operations.services import operation_enqueue
from tenants.models import Backup, RetentionPolicy, Source, StoreConfig, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.retention.policy import Policy, keeps_less, policy_words
from tenants.retention_selectors import (
    Keeping,
    PolicyBook,
    backups_known,
    forecast_now,
    keepings,
    place_of,
)
from tenants.services.backups import tenant_active
from tenants.services.clock_watch import clock_looked_at, freeze_active
from tenants.services.trash import trash_due

COMPARED_TENANTS_MAX = 1_000
"""A policy for all tenants is tried on so many of them before it is set."""
CONFIRMS_ALL = "all"
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Place:
    """Where a policy holds: everything, or a tenant, a source, a store, or several of these together."""

    tenant: Tenant | None = None
    source: Source | None = None
    store: StoreConfig | None = None

    @property
    def key(self) -> str:
        parts = (self.tenant, self.source, self.store)
        return place_of(*(None if part is None else part.pk for part in parts))

    @property
    def said(self) -> str:
        """The place as messages name it."""
        parts = [f"tenant {self.tenant.slug}" if self.tenant else "every tenant"]
        parts += [f"source {self.source.name}"] if self.source else []
        parts += [f"store {self.store.name}"] if self.store else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Change:
    """What a new policy does to the backups there are; nothing goes before the next run, and then into the trash."""

    goes: int
    """Backups that stay today and would go now."""
    stays: int
    """Backups that would go now and stay by the new policy."""
    tenants: int
    """How many tenants were looked at."""


def policy_at(place: Place, *, dropped: bool = False) -> tuple[Policy, str]:
    """The policy in force at a place, and the place that it was set for (empty for the built-in one).

    `dropped`: as it would be without the policy that was set for this very place.
    """
    book = PolicyBook.load(place.tenant)
    if dropped:
        book = PolicyBook({key: row for key, row in book.rows.items() if key != place.key})
    if place.tenant is None:
        keys = [place.key, place_of(None, None, None)]
        found = next((key for key in keys if key in book.rows), "")
    else:
        store_id = place.store.pk if place.store else place.tenant.store_id
        source_id = place.source.pk if place.source else None
        found = book.place(place.tenant.pk, source_id, store_id, primary=store_id == place.tenant.store_id)
    return book.policy(found), found


def policy_shortened(place: Place, policy: Policy | None) -> Action | None:
    """What a second master has to agree to when this policy, or none, is set at the place; None when it keeps no less."""
    before, after = policy_at(place)[0], policy if policy is not None else policy_at(place, dropped=True)[0]
    if not keeps_less(before, after):
        return None
    details = {"place": place.key, "said": place.said, "before": before.to_json(), "after": after.to_json()}
    tenant = place.tenant
    return Action(
        "retention",
        "retention.set" if policy is not None else "retention.reset",
        tenant.slug if tenant else "",
        details,
        tenant_id=tenant.pk if tenant else "",
    )


def _agreed(action: Action | None, approval: Approval | None, *, actor: str) -> None:
    if action is not None:
        approval_use(approval, action, actor=actor)


def policy_put(
    place: Place,
    policy: Policy,
    *,
    actor: str,
    reason: str = "",
    confirmed: str | None = None,
    dry_run: bool = False,
    approval: Approval | None = None,
) -> Change:
    """Set the whole policy of a place, and say what that changes.

    Raises ConfirmationNeeded when backups that stay today would go, unless `confirmed` names the tenant (`all` for a
    policy of every tenant).
    """
    if place.source is not None and place.tenant is None:
        raise UsageError("a source belongs to a tenant", hint="retention set TENANT --source S")
    values = policy.to_json()
    change = _compared(place, values)
    if dry_run:
        return change
    _confirmed(place, change, confirmed)
    action = policy_shortened(place, policy)
    with transaction.atomic():
        _agreed(action, approval, actor=actor)
        before = RetentionPolicy.objects.filter(place=place.key).values_list("values", flat=True).first()
        RetentionPolicy.objects.update_or_create(
            place=place.key,
            defaults={
                "tenant": place.tenant,
                "source": place.source,
                "store": place.store,
                "values": values,
                "set_by": actor[:200],
                "set_at": clock.now(),
            },
        )
        _record(place, "retention.set", policy_words(policy), actor, reason, before=before, after=values)
    _dates_again(place)
    return change


def policy_drop(
    place: Place,
    *,
    actor: str,
    reason: str = "",
    confirmed: str | None = None,
    dry_run: bool = False,
    approval: Approval | None = None,
) -> Change:
    """Take a policy back, so that the next wider one holds again. Raises Conflict when none was set there."""
    row = RetentionPolicy.objects.filter(place=place.key).first()
    if row is None:
        raise Conflict(f"no policy was set for {place.said}", hint="retention show says where one was")
    change = _compared(place, None)
    if dry_run:
        return change
    _confirmed(place, change, confirmed)
    action = policy_shortened(place, None)
    with transaction.atomic():
        _agreed(action, approval, actor=actor)
        RetentionPolicy.objects.filter(pk=row.pk).delete()
        _record(place, "retention.reset", "the wider policy holds again", actor, reason, before=row.values, after=None)
    _dates_again(place)
    return change


def _dates_again(place: Place) -> None:
    """One tenant's dates are worked out at once; those of all by the next daily look."""
    if place.tenant is not None and freeze_active() is None:
        expiries_put(keepings(place.tenant))


def _record(
    place: Place, event: str, said: str, actor: str, reason: str, *, before: Any, after: Mapping[str, Any] | None
) -> None:
    record(
        event,
        message=f"retention of {place.said}: {said}"[:900],
        actor=actor,
        tenant=place.tenant.slug if place.tenant else "",
        level="warning",
        data={"place": place.said, "before": before, "after": after, "reason": reason_checked(reason)},
    )


def _confirmed(place: Place, change: Change, confirmed: str | None) -> None:
    slug = place.tenant.slug if place.tenant else CONFIRMS_ALL
    if change.goes and confirmed != slug:
        raise ConfirmationNeeded(
            f"{change.goes} backups that stay today would go into the trash at the next run of retention",
            hint=f"look at them with --dry-run, or confirm with --confirm {slug}",
        )


def _compared(place: Place, values: Mapping[str, Any] | None) -> Change:
    """Decide twice about every backup concerned: as it is, and with the policy of this place set or taken away."""
    tenants: Iterable[Tenant] = (
        [place.tenant] if place.tenant is not None else itertools.islice(_tenants(), COMPARED_TENANTS_MAX)
    )
    goes = stays = looked = 0
    forecast = forecast_now()
    for tenant in tenants:
        book = PolicyBook.load(tenant)
        rows = dict(book.rows)
        rows.pop(place.key, None)
        if values is not None:
            rows[place.key] = RetentionPolicy(place=place.key, values=dict(values))
        known = backups_known(tenant)
        now = {k.known.point.id for k in keepings(tenant, book=book, forecast=forecast, known=known) if k.verdict.kept}
        then = {
            k.known.point.id
            for k in keepings(tenant, book=PolicyBook(rows), forecast=forecast, known=known)
            if k.verdict.kept
        }
        goes, stays, looked = goes + len(now - then), stays + len(then - now), looked + 1
    return Change(goes, stays, looked)


# ---------------------------------------------------------------- the daily look


@dataclass
class Looked:
    """What a look over the tenants found and queued."""

    tenants: int = 0
    backups: int = 0
    dates_changed: int = 0
    going: int = 0
    """Backups that no rule keeps any more."""
    queued: list[str] = field(default_factory=list)
    """Operations that end them; at most as many as there are tenants with something to end."""
    frozen: str = ""
    """Why nothing was looked at; empty when the clock can be trusted."""


def retention_look(*, actor: str, here: bool = False) -> Looked:
    """Work out the dates of every tenant's backups, and queue the work where something has to go.

    Nothing is done while deletion is frozen. Reads each tenant once, and writes only dates that changed.
    """
    looked = Looked()
    frozen = clock_looked_at()
    if frozen is not None:
        looked.frozen = frozen.reason
        return looked
    book, forecast = PolicyBook.load(), forecast_now()
    for tenant in _tenants():
        looked.tenants += 1
        found = keepings(tenant, book=book, forecast=forecast)
        looked.backups += len(found)
        looked.dates_changed += expiries_put(found)
        going = sum(not each.verdict.kept or each.leaves for each in found)
        looked.going += going
        if (going or trash_due(tenant)) and (here or not _pending(tenant)):
            looked.queued.append(retention_start(tenant, actor=actor, reason="daily look", here=here).pk)
    return looked


def _tenants() -> Iterator[Tenant]:
    """Every tenant at work, a page at a time: rows are written between two of them."""
    last = ""
    while True:
        rows = Tenant.objects.filter(pk__gt=last, archived_at=None, shredded_at=None).select_related("store")
        page = list(rows.order_by("pk")[:_BATCH])
        if not page:
            return
        yield from page
        last = page[-1].pk


def _pending(tenant: Tenant) -> bool:
    return any(operation.kind == "retention" for operation in operations_active(tenant=tenant.slug))


def retention_start(
    tenant: Tenant, *, actor: str, reason: str = "", here: bool = False, prune: bool = True, dry_run: bool = False
) -> Operation:
    """Queue the ending of what no rule keeps, the emptying of the trash, and the prune behind it.

    Raises Conflict for a tenant that was removed: what it has stays.
    """
    tenant_active(tenant)
    with transaction.atomic():
        return operation_enqueue(
            kind="retention",
            tenant=tenant.slug,
            params={"prune": prune, "dry_run": dry_run},
            subject_id=tenant.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def expiries_put(found: list[Keeping]) -> int:
    """Write down when each backup goes, where that changed; how many did."""
    changed: dict[datetime.datetime | None, list[str]] = {}
    for each in found:
        goes_at = _stored_date(each)
        if goes_at != each.known.expires_at:
            changed.setdefault(goes_at, []).append(each.known.point.id)
    with transaction.atomic():
        for goes_at, ids in changed.items():
            for begin in range(0, len(ids), _BATCH):
                rows = Backup.objects.filter(pk__in=ids[begin : begin + _BATCH], state__in=GOOD_STATES)
                rows.update(expires_at=goes_at)
    return sum(map(len, changed.values()))


def _stored_date(each: Keeping) -> datetime.datetime | None:
    """A date that lies behind us stays: it was when the rules let go, not when somebody looked."""
    before = each.known.expires_at
    if not each.verdict.kept and before is not None and each.verdict.goes_at is not None:
        return min(before, each.verdict.goes_at)
    return each.verdict.goes_at


def upcoming(*, days: int, tenant: Tenant | None = None, limit: int = 1_000) -> list[Backup]:
    """Backups that go into the trash within so many days, the first first; as the last look worked it out."""
    until = clock.now() + datetime.timedelta(days=days)
    rows = Backup.objects.filter(state__in=GOOD_STATES, expires_at__lte=until, held=False, tenant__held=False)
    rows = rows.filter(tenant=tenant) if tenant is not None else rows.filter(tenant__archived_at=None)
    return list(rows.select_related("tenant").order_by("expires_at", "pk")[:limit])
