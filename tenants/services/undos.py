"""Undoing restores: back to exactly what was there, at once or after a look at what that would do now."""

import datetime
from collections.abc import Sequence

from django.conf import settings

from core import clock
from core.errors import Conflict
from engine.errors import NameUnknown, UsageError
from operations.models import Operation
from tenants.models import (
    Restore,
    RestoreKind,
    RestorePlan,
    RestoreSource,
    RestoreSourceState,
    RestoreState,
)
from tenants.selectors import source_get
from tenants.services.plans import plan_queue
from tenants.services.restore_recording import UNDO_BY_IMAGE, report_of
from tenants.services.restores import restore_queue
from tenants.services.wishes import confirmation_checked
from tenants.shredded import keys_present


def undo_start(
    restore: Restore,
    *,
    confirmed: str | None,
    actor: str,
    sources: Sequence[str] = (),
    reason: str = "",
    here: bool = False,
    prove: bool = False,
) -> tuple[Restore, Operation]:
    """Queue the undoing of a restore in place, itself a restore with a safety backup and images of its own.

    `sources` limits it to some; the others stay undoable. Nothing is changed when any row or file that the restore made was changed since: the operation then ends with
    StalePlan. Raises ConfirmationNeeded, Busy, Conflict or UsageError for what cannot be undone.
    """
    keys_present(restore.tenant)
    rows = undoable(restore, sources)
    confirmation_checked(restore.tenant, confirmed, in_place=True)
    undo = Restore(
        tenant=restore.tenant,
        backup=restore.safety_backup or restore.backup,
        kind=RestoreKind.UNDO,
        undoes=restore,
        prove=prove,
        reason=reason,
        created_by=actor,
    )
    found = {row.name: source_get(restore.tenant, row.name) for row in rows}
    return undo, restore_queue(undo, found, confirmed=True, here=here)


def undo_plan_start(
    restore: Restore, *, actor: str, sources: Sequence[str] = (), reason: str = "", here: bool = False
) -> tuple[RestorePlan, Operation]:
    """Queue the preview of an undo, also of one that would meet newer changes. Raises as `undo_start`."""
    keys_present(restore.tenant)
    rows = undoable(restore, sources)
    plan = RestorePlan(
        tenant=restore.tenant,
        backup=restore.safety_backup or restore.backup,
        kind=RestoreKind.UNDO,
        undoes=restore,
        sources=[row.name for row in rows],
        reason=reason,
        created_by=actor,
    )
    return plan, plan_queue(plan, actor=actor, reason=reason, here=here)


def undo_until(restore: Restore) -> datetime.datetime | None:
    """When the term ends in which the restore can be undone; None for one that is not finished."""
    if restore.finished_at is None:
        return None
    return restore.finished_at + datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)


def sources_put_back(restore: Restore) -> dict[str, str]:
    """The sources that undos of this restore have put back already, each with the newest such undo's id."""
    rows = RestoreSource.objects.filter(restore__undoes=restore, state=RestoreSourceState.NEW)
    return dict(rows.order_by("restore_id").values_list("name", "restore_id"))


def sources_left(restore: Restore) -> list[RestoreSource]:
    """The sources that still are as this restore made them, by name; those in which it changed nothing do not count."""
    rows = restore.sources.select_related("saved", "restore__tenant").filter(state=RestoreSourceState.NEW)
    back = sources_put_back(restore)
    return [row for row in rows.order_by("name") if row.name not in back and not _idle(row)]


def undoable_now(restore: Restore) -> list[str]:
    """The names of the sources that can be undone at this moment; empty after the term."""
    until = undo_until(restore)
    if not restore.in_place or restore.state not in _UNDOABLE_STATES or until is None or clock.now() >= until:
        return []
    return [row.name for row in sources_left(restore)]


_UNDOABLE_STATES = (RestoreState.SUCCEEDED, RestoreState.FAILED)


def undoable(restore: Restore, sources: Sequence[str] = ()) -> list[RestoreSource]:
    """The sources that an undo would change, of those named. Raises Conflict or UsageError when there is nothing to undo."""
    if not restore.in_place:
        raise UsageError(
            f"restore {restore.pk} went to another place: nothing live was changed", hint="remove the copy by hand"
        )
    if restore.state == RestoreState.UNDONE:
        by = Restore.objects.filter(undoes=restore, state=RestoreState.SUCCEEDED).order_by("-id").first()
        again = f"to have it again: restore undo {by.pk}" if by is not None else ""
        raise Conflict(f"restore {restore.pk} was undone already", hint=again)
    changed = restore.sources.filter(state=RestoreSourceState.NEW).exists()
    if restore.state not in _UNDOABLE_STATES or not changed:
        raise Conflict(
            f"restore {restore.pk} is {restore.state}: it changed nothing that could be undone",
            hint=f"see where each source stands: restore show {restore.pk}",
        )
    until = undo_until(restore)
    if until is not None and clock.now() >= until:
        saved = restore.safety_backup_id
        raise Conflict(
            f"the term in which {restore.pk} could be undone ended at {until:%Y-%m-%d %H:%M} UTC",
            hint=f"restore the safety backup: restore plan {saved}" if saved else "",
        )
    rows = sources_left(restore)
    if not rows:
        raise Conflict(f"restore {restore.pk} changed nothing that could be undone", hint=_seen(restore))
    for name in sources:
        _named_checked(restore, name, rows)
    rows = [row for row in rows if not sources or row.name in sources]
    for row in rows:
        _has_before(row, restore)
    return rows


def _seen(restore: Restore) -> str:
    return f"see what became of each source: restore show {restore.pk}"


def _named_checked(restore: Restore, name: str, left: Sequence[RestoreSource]) -> None:
    if name in {row.name for row in left}:
        return
    known = ", ".join(row.name for row in left)
    if name not in restore.sources.values_list("name", flat=True):
        raise NameUnknown(f"restore {restore.pk} has no source {name[:60]!r}", hint=f"what can be undone: {known}")
    by = sources_put_back(restore).get(name)
    if by is not None:
        raise Conflict(
            f"source {name} was put back already, by {by}", hint=f"to have it again: restore undo {by} --source {name}"
        )
    raise Conflict(f"restore {restore.pk} left source {name} as it was", hint=f"what can be undone: {known}")


def _idle(row: RestoreSource) -> bool:
    """A database in which the restore changed no row: it has no image, and nothing to be put back."""
    tables = report_of(row).get("tables") or ()
    return (
        bool(tables)
        and not row.image
        and not any(table[count] for table in tables for count in ("insert", "update", "delete"))
    )


def changed_beyond_image(row: RestoreSource) -> list[str]:
    """Names of what the restore changed in this source and no change image holds, such as large objects."""
    return [
        table["name"]
        for table in report_of(row).get("tables") or ()
        if not table.get("imaged", True) and any(table[count] for count in ("insert", "update", "delete"))
    ]


def _has_before(row: RestoreSource, restore: Restore) -> None:
    beyond = changed_beyond_image(row)
    if beyond and not row.image:
        raise Conflict(
            f"in source {row.name} the restore changed {beyond[0]} alone, which an undo does not put back",
            hint=f"plan that: restore plan {row.saved_id} --mode selective --source {row.name} --module '{beyond[0]}'",
        )
    if report_of(row).get("undo") == UNDO_BY_IMAGE:
        if not row.image:
            raise Conflict(
                f"the change image of source {row.name} was dropped: its term was over",
                hint=f"restore the safety backup: restore plan {row.saved_id} --source {row.name}",
            )
    elif row.saved is None:
        raise Conflict(
            f"of source {row.name} nothing was saved: it could not be read before {restore.pk}",
            hint="restore another backup of it",
        )
