"""The proof of a restore as a page: self-contained, printable, every value escaped by the template engine."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from django.template.loader import render_to_string

from core import clock
from core.models import StateChange
from engine.ports import CHECK_NAMES
from tenants.models import Restore, RestoreKind, RestoreState, Validation, ValidationStatus
from tenants.previews import FILE_COUNTS, TABLE_COUNTS
from tenants.restore_outputs import restore as restore_json

VALUE_CHARS_MAX = 160
VALUES_SHOWN_MAX = 12
TABLES_SHOWN_MAX = 500
_DIGEST = re.compile("[0-9a-f]{64}")
_LABELS = {
    "checksum_verification": "Checksums",
    "data_integrity": "Integrity of the data",
    "schema_compatibility": "Schema",
    "asset_completeness": "Completeness of files",
}
_STANDING = {
    "old": "as it was before",
    "new": "changed as intended",
    "applying": "to be looked at",
    "unknown": "to be looked at",
}


def restore_report_html(row: Restore) -> str:
    """The page for one restore, also of one that failed: what was done, checked, changed, by whom and why."""
    data = restore_json(row)
    validation = row.validations.order_by("-id").first()
    noun = "Undo" if row.kind == RestoreKind.UNDO else "Restore"
    content = {
        "title": f"{noun} of {row.tenant.name}",
        "kicker": f"Restore report · {row.pk}",
        "verdict": _verdict(row, validation),
        "facts": [(name, value) for name, value in _facts(row, data) if value],
        "checks": _checks(data["checks"]),
        "sources": [_source(each) for each in data["sources"]],
        "warnings": [each["message"] for each in row.warnings],
        "steps": _steps(row),
        "footer": f"Made {clock.now():%Y-%m-%d %H:%M:%S} UTC from the catalogue. The audit log holds the same"
        f" steps in a form that shows any later change: audit verify.",
    }
    return render_to_string("restores/report.html", content)


def _verdict(row: Restore, validation: Validation | None) -> dict[str, str]:
    if row.state not in (RestoreState.SUCCEEDED, RestoreState.UNDONE):
        return {"tone": "bad", "word": row.state.capitalize(), "sentence": row.error or "It is not finished."}
    took = f"It took {_duration(row.duration_ms)}."
    if validation is None:
        return {"tone": "", "word": "Not validated", "sentence": f"The checks were left out on request. {took}"}
    if validation.status == ValidationStatus.FAILED:
        return {"tone": "bad", "word": "Checks failed", "sentence": f"Not every check passed. {took}"}
    undone = " It was undone later." if row.state == RestoreState.UNDONE else ""
    return {"tone": "good", "word": "Passed", "sentence": f"Every check that applies passed. {took}{undone}"}


def _facts(row: Restore, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    at = f" of {row.backup.taken_at:%Y-%m-%d %H:%M:%S} UTC" if row.backup.taken_at else ""
    what = f"back to before {row.undoes_id}" if row.undoes_id else f"{row.mode}, from backup {row.backup_id}{at}"
    modules = [f"{source}.{module}" for source, each in row.wishes.get("modules", {}).items() for module in each]
    return [
        ("Tenant", f"{row.tenant.name} ({row.tenant.slug})"),
        ("What", what),
        ("Where", "in place" if row.in_place else "at another place; nothing live was changed"),
        ("Modules", ", ".join(modules)),
        ("Not in this backup", f"{', '.join(data['not_in_backup'])}: left as it was" if data["not_in_backup"] else ""),
        ("Base of the merge", row.base_id or ""),
        ("Plan", row.plan_id or ""),
        ("Safety backup", row.safety_backup_id or ""),
        ("Asked for by", row.created_by),
        ("Reason", row.reason),
        ("Started", f"{row.started_at:%Y-%m-%d %H:%M:%S} UTC" if row.started_at else ""),
        ("Finished", f"{row.finished_at:%Y-%m-%d %H:%M:%S} UTC" if row.finished_at else ""),
        ("Time to restore", _duration(row.duration_ms)),
        ("Can be undone until", str(data["undo_until"] or "")[:16].replace("T", " ")),
        ("Hint", row.error_hint),
    ]


def _duration(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"label": _LABELS[name], "rows": [_check(check) for check in checks if check["name"] == name]}
        for name in CHECK_NAMES
    ]


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source": check["source"],
        "passed": check["passed"],
        "equal": bool(check["passed"]) and check["expected"] == check["actual"],
        "detail": _shown(check.get("detail") or ""),
        "expected": _shown(check["expected"]),
        "actual": _shown(check["actual"]),
    }


def _shown(value: Any) -> str:
    """A value for people: mappings as pairs, digests by their beginning."""
    if isinstance(value, Mapping):
        pairs = [f"{name} {_shown(each)}" for name, each in list(value.items())[:VALUES_SHOWN_MAX]]
        more = len(value) - VALUES_SHOWN_MAX
        return ", ".join(pairs) + (f" and {more} more" if more > 0 else "") or "nothing"
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value[:VALUES_SHOWN_MAX]) or "no difference"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if _DIGEST.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


def _source(each: Mapping[str, Any]) -> dict[str, Any]:
    tables = [table for table in each.get("tables") or () if any(table[count] for count in TABLE_COUNTS)]
    counts = [count for count in TABLE_COUNTS if any(table[count] for table in tables)]
    files = each.get("files")
    return {
        "name": each["name"],
        "kind": each["kind"],
        "standing": _STANDING[each["state"]],
        "counts": counts,
        "tables": [
            {"name": table["name"], "figures": [table[count] for count in counts]}
            for table in tables[:TABLES_SHOWN_MAX]
        ],
        "files": ", ".join(f"{files[count]} {count}" for count in FILE_COUNTS if files[count]) if files else "",
        "neighbours": _neighbours(each.get("neighbours")),
        "warnings": list(each.get("warnings") or ()),
    }


def _neighbours(proof: Mapping[str, Any] | None) -> str:
    """What was counted against the plan, and with `--prove` how many rows beside it were fingerprinted; not the digests."""
    if not proof:
        return ""
    tables = proof.get("tables") or {}
    changes = sum(sum(each["counted"].values()) for each in tables.values())
    counted = f"the database itself counted {changes} changes of rows, in each table as many as planned"
    prints = proof.get("fingerprints")
    beside = f"; all other rows of {len(prints)} tables have the same fingerprint as before" if prints else ""
    return f"Proof that nothing else was touched: {counted}{beside}."


def _steps(row: Restore) -> list[dict[str, str]]:
    subjects = [row.pk, *([row.plan_id] if row.plan_id else [])]
    changes = StateChange.objects.filter(subject_id__in=subjects).order_by("at", "id")
    return [
        {
            "at": f"{change.at:%Y-%m-%d %H:%M:%S}",
            "what": f"{'plan' if change.subject_id == row.plan_id else 'restore'} {change.to_state}",
            "who": change.actor,
            "why": row.reason if change.to_state == RestoreState.APPROVED else change.reason,
        }
        for change in changes
    ]
