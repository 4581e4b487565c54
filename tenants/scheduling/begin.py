"""How each kind of scheduled work begins: one that is still under way is not doubled, one for nobody is taken back.

What the planner does not need before a run is due is imported then.
"""

from collections.abc import Mapping
from typing import Any

from core.errors import Busy
from engine.errors import UsageError
from operations.models import Operation
from operations.scheduling.works import Begun, Order, Withdrawn
from operations.selectors import operations_active
from tenants.models import Backup, Source, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.scheduling.targets import sources_chosen

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0", "")


def backup_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """`tags=a,b`: tags of every backup taken."""
    from tenants.rules import tags_checked

    _known(params, "tags")
    tags = params.get("tags", [])
    listed = [tag.strip() for tag in tags.split(",") if tag.strip()] if isinstance(tags, str) else list(tags)
    return {"tags": tags_checked(tuple(listed))} if listed else {}


def verify_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """`deep=yes`: every byte is read."""
    _known(params, "deep")
    deep = str(params.get("deep", "")).lower()
    if deep not in _YES + _NO:
        raise UsageError(f"deep is {deep[:20]!r}", hint="deep=yes or deep=no")
    return {"deep": True} if deep in _YES else {}


def _known(params: Mapping[str, Any], *names: str) -> None:
    unknown = sorted(set(params) - set(names))
    if unknown:
        raise UsageError(f"there is no parameter {unknown[0][:40]!r}", hint=f"it takes {', '.join(names)}")


def backup(order: Order) -> Begun:
    """Queue a backup of the sources that the schedule means."""
    from tenants.services.backups import BackupWish, backup_start

    tenant = _tenant(order)
    rows = Source.objects.filter(sources_chosen(dict(order.selection)), tenant=tenant)
    names = tuple(rows.order_by("name").values_list("name", flat=True))
    if not names:
        raise Withdrawn(f"tenant {tenant.slug} has no source that the schedule means")
    wish = BackupWish(
        type="full" if order.full else "incremental",
        sources=names,
        tags=tuple(order.params.get("tags", ())),
        trigger="schedule",
    )
    return Begun(backup_start(tenant, wish, actor=order.actor, reason=order.reason)[1].pk)


def drill(order: Order) -> Begun:
    """Queue a drill with the newest good backup."""
    from tenants.services.drills import drill_pending, drill_start

    tenant = _tenant(order)
    pending = drill_pending(tenant)
    if pending is not None:
        raise Busy(f"drill {pending.pk} is still to be done", operation=pending.operation_id)
    return Begun(drill_start(tenant, actor=order.actor, reason=order.reason)[1].pk)


def verify(order: Order) -> Begun:
    """Queue a verification of the newest good backup."""
    from tenants.services.backups import backup_verify_start

    tenant = _tenant(order)
    newest = (
        Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES).select_related("tenant").order_by("-number").first()
    )
    if newest is None:
        raise Withdrawn(f"tenant {tenant.slug} has no backup to verify")
    return Begun(backup_verify_start(newest, deep=bool(order.params.get("deep")), actor=order.actor).pk)


def prune(order: Order) -> Begun:
    """Queue a prune."""
    from tenants.services.backups import prune_start

    return Begun(prune_start(_tenant(order), dry_run=False, actor=order.actor).pk)


def copies(order: Order) -> Begun:
    """Queue a run of all copies, those that follow every backup too: whatever a lost worker left out is made up for."""
    return _copies("run", order)


def samples(order: Order) -> Begun:
    """Queue the reading of the bytes that are due in every store of every tenant."""
    return _copies("sample", order)


def structure(order: Order) -> Begun:
    """Queue a look at the structure of every store of every tenant."""
    return _copies("structure", order)


def _copies(what: str, order: Order) -> Begun:
    from tenants.services.copies import ALL_AT_ONCE, copies_all_start

    _alone("copies", what=what)
    return Begun(copies_all_start(what=what, at_once=ALL_AT_ONCE, actor=order.actor, reason=order.reason).pk)


def retention(order: Order) -> Begun:
    """Queue the look at every tenant's backups."""
    from operations.services import operation_enqueue

    _alone("retention_look")
    return Begun(
        operation_enqueue(kind="retention_look", tenant="", params={}, actor=order.actor, reason=order.reason).pk
    )


def catalogue(order: Order) -> Begun:
    """Queue a backup of the catalogue when one is due."""
    from tenants.services.catalogue_backups import catalogue_backup_start, catalogue_due

    due = catalogue_due()
    if not due:
        return Begun(note="nothing new to keep")
    _alone("catalogue")
    return Begun(catalogue_backup_start(actor=order.actor, reason=due).pk)


def _alone(kind: str, **params: str) -> Operation | None:
    """Raise Busy while such an operation is queued or runs."""
    for each in operations_active(tenant=""):
        if each.kind == kind and all(each.params.get(key) == value for key, value in params.items()):
            raise Busy(f"the one before, {each.pk}, is still under way", operation=each.pk)
    return None


def _tenant(order: Order) -> Tenant:
    row = Tenant.objects.select_related("store").filter(slug=order.tenant).first()
    if row is None or row.archived_at is not None or row.shredded_at is not None:
        raise Withdrawn(f"tenant {order.tenant} was removed")
    return row
