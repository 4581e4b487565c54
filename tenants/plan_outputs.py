"""What commands print about plans: the head is for everybody, the whole opens what is sealed under the tenant's key."""

from typing import Any

from core import clock
from tenants.models import RestorePlan
from tenants.outputs import moment
from tenants.previews import FILE_COUNTS, estimate, loss_sentences, undo_sentences
from tenants.selectors import sources_not_held
from tenants.services.plans import plan_previews
from tenants.services.undos import undoable_now


def plan_head(row: RestorePlan) -> dict[str, Any]:
    """What the plan is about and how it stands, without any of the tenant's data."""
    error = {"code": row.error_code, "detail": row.error, "hint": row.error_hint} if row.error_code else None
    return {
        "plan": row.pk,
        "tenant": row.tenant.slug,
        "kind": row.kind,
        "state": row.state,
        "backup": row.backup_id,
        "backup_at": moment(row.backup.taken_at),
        "base": row.base_id,
        "undoes": row.undoes_id,
        "mode": row.mode,
        "in_place": row.in_place,
        "made_at": moment(row.made_at),
        "expires_at": moment(row.expires_at),
        "expired": row.expires_at is not None and clock.now() >= row.expires_at,
        "totals": row.totals,
        "reason": row.reason,
        "created_by": row.created_by,
        "operation": row.operation_id,
        "error": error,
    }


def plan(row: RestorePlan) -> dict[str, Any]:
    """The whole plan with samples; empty lists while it is being made."""
    sources = plan_previews(row)
    files = dict.fromkeys(FILE_COUNTS, 0)
    for source in sources:
        for count in FILE_COUNTS:
            files[count] += int((source["files"] or {}).get(count, 0))
    if row.undoes is None:
        loss = [text for source in sources for text in loss_sentences(source, row.backup.taken_at)]
    else:
        loss = [text for source in sources for text in undo_sentences(source, row.undoes.finished_at)]
    return {
        **plan_head(row),
        "tables": [{**table, "source": source["name"]} for source in sources for table in source["tables"]],
        "files": files,
        "loss": loss,
        "estimate": {
            **estimate(row.tenant, row.sources, row.backup_id, mode=row.mode, in_place=row.in_place),
            "staged_bytes": sum(int(source["staged_bytes"]) for source in sources),
        },
        "warnings": [f"source {source['name']}: {text}" for source in sources for text in source["warnings"]],
        "sources": sources,
        "not_in_backup": sources_not_held(row, row.sources),
        "left_of_undone": [name for name in undoable_now(row.undoes) if name not in row.sources] if row.undoes else [],
    }
