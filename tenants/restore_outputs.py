"""What commands print about restores: the head is for everybody, the whole opens what is sealed under the tenant's key."""

from typing import Any

from tenants.models import Restore
from tenants.outputs import error_of, moment
from tenants.selectors import sources_not_held
from tenants.services.restore_recording import checks_of, report_of, validation_record
from tenants.services.undos import sources_put_back, undo_until, undoable_now


def restore_head(row: Restore) -> dict[str, Any]:
    """What the restore is about and how it stands, without what it did to which table."""
    return {
        "id": row.pk,
        "tenant": row.tenant.slug,
        "backup": row.backup_id,
        "state": row.state,
        "kind": row.kind,
        "mode": row.mode,
        "undoes": row.undoes_id,
        "plan": row.plan_id,
        "base": row.base_id,
        "in_place": row.in_place,
        "safety_backup": row.safety_backup_id,
        "reason": row.reason,
        "created_by": row.created_by,
        "started_at": moment(row.started_at),
        "finished_at": moment(row.finished_at),
        "duration_ms": row.duration_ms,
        "undo_until": moment(undo_until(row)) if row.in_place and row.state == "succeeded" else None,
        "warnings": row.warnings,
        "error": error_of(row),
        "operation": row.operation_id,
    }


def restore(row: Restore) -> dict[str, Any]:
    """A restore with what became of each source, and the record that proves it."""
    validation = row.validations.select_related("tenant").order_by("-id").first()
    record = validation_record(validation) if validation else None
    if record is not None:
        record["timestamp"] = moment(record["timestamp"])
    sources = list(row.sources.select_related("restore__tenant").order_by("name"))
    return {
        **restore_head(row),
        "not_in_backup": sources_not_held(row, [each.name for each in sources]),
        "undoable": undoable_now(row),
        "undone": sources_put_back(row),
        "left_of_undone": undoable_now(row.undoes) if row.undoes is not None else [],
        "checks": checks_of(validation) if validation else [],
        "validation": validation.status if validation else None,
        "validation_record": record,
        "sources": [
            {
                "name": each.name,
                "kind": each.kind,
                "state": each.state,
                "safety_backup": each.saved_id,
                "error": each.error,
                **report_of(each),
            }
            for each in sources
        ],
    }
