"""What commands print and operations result in: plain JSON, never a secret."""

import dataclasses
from typing import Any

from core import sealing
from tenants.models import Backup, Drill, DrillCheck, Restore, Source, StoreConfig, Tenant


def tenant(row: Tenant) -> dict[str, Any]:
    """A tenant."""
    return {
        "id": row.pk,
        "slug": row.slug,
        "name": row.name,
        "class": row.criticality,
        "store": row.store.name,
        "repository_id": row.repository_id,
        "created_at": moment(row.created_at),
        "archived_at": moment(row.archived_at),
        "held": row.held,
        "held_reason": row.held_reason,
        "shredded_at": moment(row.shredded_at),
    }


def store(row: StoreConfig) -> dict[str, Any]:
    """A store; secret settings are only said to be set."""
    return {
        "name": row.name,
        "kind": row.kind,
        "settings": sealing.shown(row.config, row.sealed),
        "default": row.is_default,
        "offsite": row.offsite,
        "medium": row.medium or row.kind,
        "paid": row.paid,
        "keeps_keys": row.keeps_keys,
        "bytes_per_second": row.bytes_per_second,
        "tested_at": moment(row.tested_at),
        "tested": row.tested.get("status"),
    }


def source(row: Source) -> dict[str, Any]:
    """A source; secret settings are only said to be set."""
    return {
        "id": row.pk,
        "tenant": row.tenant.slug,
        "name": row.name,
        "kind": row.kind,
        "category": row.category,
        "class": row.criticality,
        "enabled": row.enabled,
        "settings": sealing.shown(row.config, row.sealed),
        "tested_at": moment(row.tested_at),
        "tested": row.tested_summary,
        "last_good_backup": row.last_good_backup_id,
        "last_good_at": moment(row.last_good_at),
        "archived_at": moment(row.archived_at),
    }


def backup(row: Backup) -> dict[str, Any]:
    """A backup as commands print it."""
    from tenants.copy_outputs import backup_copies

    return {
        "id": row.pk,
        "tenant": row.tenant.slug,
        "number": row.number,
        "type": row.type,
        "requested_type": row.requested_type,
        "state": row.state,
        "timestamp": moment(row.taken_at or row.created_at),
        "finished_at": moment(row.finished_at),
        "tags": row.tags,
        "trigger": row.trigger,
        "origin": row.origin,
        "parent": row.parent_id,
        "size_bytes": row.size_bytes,
        "stored_bytes": row.stored_bytes,
        "duration_ms": row.duration_ms,
        "checksums": row.checksums,
        "encrypted": row.encrypt,
        "compressed": row.compress,
        "key_id": row.key_id,
        "platform_version": row.platform_version,
        "schema_version": row.schema_version,
        "missed": row.missed,
        "note": row.note,
        "held": row.held,
        "held_reason": row.held_reason,
        "expires_at": moment(row.expires_at) if row.trashed_at is None else None,
        "trashed_at": moment(row.trashed_at),
        "left_primary_at": moment(row.left_at),
        "locked_until": moment(row.locked_until),
        "verified_at": moment(row.verified_at),
        "damaged": row.damaged,
        "warnings": row.warnings,
        "error": error_of(row),
        "sources": [
            {
                "name": each.name,
                "kind": each.kind,
                "category": each.category,
                "state": each.state,
                "position": each.position,
                "rows": each.rows,
                "files": each.files,
                "size_bytes": each.size_bytes,
                "sha256": each.sha256,
                "error": each.error,
            }
            for each in row.sources.all()
        ],
        "copies": backup_copies(row),
        "operation": row.operation_id,
    }


def error_of(row: Backup | Drill | Restore) -> dict[str, str] | None:
    """What ended it, None when nothing did."""
    if not row.error_code:
        return None
    return {"code": row.error_code, "detail": row.error, "hint": row.error_hint}


def moment(at: Any) -> str | None:
    """A time as commands print it."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def kind(adapter: Any) -> dict[str, Any]:
    """A kind of source or store with the settings it takes."""
    settings = {
        field.name: {
            "label": field.metadata.get("label", field.name),
            "help": field.metadata.get("help", ""),
            "required": field.default is dataclasses.MISSING,
            "secret": bool(field.metadata.get("secret")),
            "choices": list(field.metadata.get("choices") or ()),
        }
        for field in dataclasses.fields(adapter.Config)
    }
    return {"kind": adapter.kind, "label": adapter.label, "settings": settings}


def drill_line(row: Drill) -> dict[str, Any]:
    """A drill in a list."""
    return {
        "id": row.pk,
        "tenant": row.tenant.slug,
        "backup": row.backup_id,
        "status": row.state,
        "checks_passed": row.checks_passed,
        "checks_failed": row.checks_failed,
        "restore_ms": row.restore_ms,
        "duration_ms": row.duration_ms,
        "started_at": moment(row.started_at),
    }


def drill(row: Drill) -> dict[str, Any]:
    """A drill with its evidence."""
    from tenants.services.drills import drill_evidence

    evidence = drill_evidence(row)
    return {
        **drill_line(row),
        "finished_at": moment(row.finished_at),
        "sources": evidence["sources"],
        "checks": evidence["checks"],
        "cleared": row.cleared,
        "operation": row.operation_id,
        "error": error_of(row),
    }


def drill_check(row: DrillCheck) -> dict[str, Any]:
    """An operator's own check."""
    return {
        "source": row.source.name,
        "name": row.name,
        "kind": row.kind,
        "ask": row.ask,
        "expected": row.expected,
        "timeout_seconds": row.timeout_seconds,
    }
