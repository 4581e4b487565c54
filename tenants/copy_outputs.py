"""What commands print about copies: plain JSON, and lines for people."""

from collections.abc import Collection, Mapping
from typing import Any

from core import clock
from core.cli_output import size_text
from tenants.copy_selectors import Protection, medium_of
from tenants.models import Backup, BackupCopy, BackupPresence, Copy
from tenants.models.backup import ENDED_STATES
from tenants.outputs import moment

_TIME_CHARS = len("2026-11-22T08:00")


def copy(row: Copy, *, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A copy, or the primary, with what was last seen of it."""
    return {
        "tenant": row.tenant.slug,
        "store": row.store.name,
        "kind": row.store.kind,
        "role": "primary" if row.is_primary else "copy",
        "enabled": row.enabled,
        "afterwards": row.afterwards,
        "images": row.images,
        "health": row.health,
        "backups": dict(counts or {}),
        "objects": row.objects_count if counted(row) else None,
        "stored_bytes": row.stored_bytes if counted(row) else None,
        "offsite": row.store.offsite,
        "medium": medium_of(row.store),
        "run_at": moment(row.run_at),
        "ran": row.ran,
        "structure_verified_at": moment(row.structure_verified_at),
        "sampled_at": moment(row.sampled_at),
        "sample_turn_at": moment(row.sample_turn_at),
        "deep_verified_at": moment(row.deep_verified_at),
        "read_ms": None if row.read_ms is None else round(row.read_ms, 1),
        "read_bytes_per_second": None if row.read_bytes_per_second is None else round(row.read_bytes_per_second),
        "error": {"code": row.error_code, "detail": row.error, "hint": row.error_hint} if row.error_code else None,
    }


def counted(row: Copy) -> bool:
    """Whether somebody has looked what lies there: a primary is first counted when it is verified."""
    return bool(row.structure_verified_at or row.run_at or row.objects_count)


def copy_line(row: Copy, *, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A copy in a list for people."""
    said = ", ".join(f"{number} {presence}" for presence, number in sorted((counts or {}).items()))
    return {
        "store": row.store.name,
        "kind": row.store.kind,
        "role": "primary" if row.is_primary else "copy" if row.enabled else "copy (off)",
        "health": row.health,
        "backups": said or "-",
        "stored": size_text(row.stored_bytes) if counted(row) else "not counted",
        "last run": (moment(row.run_at) or "-")[:_TIME_CHARS],
        "verified": (moment(row.structure_verified_at) or "-")[:_TIME_CHARS],
    }


def backup_copies(row: Backup) -> list[dict[str, Any]]:
    """Where a backup lies: in its primary store, and in each copy that has it or ought to have it."""
    ended = row.state in ENDED_STATES and row.trashed_at is None
    lines = [] if ended or not row.manifest_sha256 or row.left_at is not None else [_in_primary(row)]
    copies = [each for each in row.copies.all() if not (ended and each.presence == BackupPresence.MISSING)]
    return lines + [_backup_copy(each) for each in copies]


def _in_primary(row: Backup) -> dict[str, Any]:
    return {
        "store": row.tenant.store.name,
        "role": "primary",
        "state": "damaged" if row.damaged else "present",
        "verified_at": moment(row.verified_at),
        "bytes": row.stored_bytes,
        "locked_until": None,
    }


def _backup_copy(row: BackupCopy) -> dict[str, Any]:
    locked = row.presence == "present" and row.locked_until is not None and row.locked_until > clock.now()
    return {
        "store": row.copy.store.name,
        "role": "copy",
        "state": "locked" if locked else row.presence,
        "verified_at": moment(row.verified_at),
        "bytes": row.bytes,
        "locked_until": moment(row.locked_until),
    }


def protection(row: Protection) -> dict[str, Any]:
    """The 3-2-1 rule for one tenant."""
    return {
        "tenant": row.tenant,
        "holds": row.holds,
        "copies": row.copies,
        "media": list(row.media),
        "offsite": list(row.offsite),
        "lacks": list(row.lacks),
        "next": row.next_step,
        "stores": list(row.stores),
    }


def protection_lines(rows: Collection[Protection]) -> list[str]:
    """The same for people: what falls short, and what to do about it."""
    lines = []
    for row in rows:
        if row.holds:
            lines.append(
                f"{row.tenant}: 3-2-1 holds: {row.copies} copies, {len(row.media)} media ({', '.join(row.media)}), "
                f"off site in {', '.join(row.offsite)}"
            )
            continue
        lines += [f"{row.tenant}: falls short: {'; '.join(row.lacks)}", f"    next: {row.next_step}"]
    return lines or ["There are no tenants yet."]
