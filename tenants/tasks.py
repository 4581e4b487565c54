"""What django-q2 calls for tenants: it brings a slug, and the services decide."""

import logging

from engine.errors import LastroError

log = logging.getLogger(__name__)


def catalogue_scheduled() -> str:
    """Queue a backup of the catalogue when one is due; returns the operation's id, or why there is none."""
    from operations.selectors import operations_active
    from tenants.services.catalogue_backups import catalogue_backup_start, catalogue_due

    due = catalogue_due()
    if not due:
        return "nothing new to keep"
    if any(each.kind == "catalogue" for each in operations_active(tenant="")):
        return "not begun: one is under way"
    return catalogue_backup_start(actor="system:schedule", reason=due).pk


def drill_scheduled(slug: str) -> str:
    """Queue the drill that a schedule asks for; returns the operation's id, or why there is none.

    One that is still queued or running is not doubled.
    """
    from tenants.selectors import tenant_get
    from tenants.services.drills import drill_pending, drill_start

    try:
        tenant = tenant_get(slug)
        pending = drill_pending(tenant)
        if pending is not None:
            return f"not begun: drill {pending.pk} is still to be done"
        return drill_start(tenant, actor="system:schedule", reason="scheduled")[1].pk
    except LastroError as error:
        log.error("the scheduled drill of %s was not begun: %s", slug, error)
        return f"not begun: {error}"


def retention_scheduled() -> str:
    """Look at every tenant's backups, and queue the ending of what no rule keeps; returns what was found."""
    from tenants.services.retention import retention_look

    looked = retention_look(actor="system:schedule")
    if looked.frozen:
        log.error("retention: nothing is ended while deletion is frozen: %s", looked.frozen)
        return f"frozen: {looked.frozen}"
    return f"{looked.tenants} tenants, {looked.backups} backups, {looked.going} going, {len(looked.queued)} operations"


def copies_scheduled() -> str:
    """Queue a run of all copies, those that follow every backup too: whatever a lost worker left out is made up for."""
    return _copies_queued("run")


def samples_scheduled() -> str:
    """Queue the reading of the bytes that are due in every store of every tenant."""
    return _copies_queued("sample")


def structures_scheduled() -> str:
    """Queue a look at the structure of every store of every tenant."""
    return _copies_queued("structure")


def _copies_queued(what: str) -> str:
    from operations.selectors import operations_active
    from tenants.services.copies import ALL_AT_ONCE, copies_all_start

    if any(each.kind == "copies" and each.params.get("what") == what for each in operations_active(tenant="")):
        return "not begun: the one before is still under way"
    return copies_all_start(what=what, at_once=ALL_AT_ONCE, actor="system:schedule", reason="scheduled").pk
