"""The space report of a prune in words."""

from collections.abc import Mapping
from typing import Any

from core.cli_output import size_text

_KINDS = (
    ("live", "kept backups"),
    ("trash", "backups in the trash alone"),
    ("garbage", "nothing"),
    ("entombed", "nothing, waiting for deletion"),
)


def space_lines(data: Mapping[str, Any]) -> list[str]:
    """What a prune freed, or would free, and what the bytes are needed for; empty when none was run."""
    found = data.get("prune", data)
    if not found:
        return []
    before, after = found["before"], found["after"]
    freed = size_text(max(0, before["total"] - after["total"]))
    would = "would be " if found["dry_run"] else ""
    lines = [
        f"{freed} {would}freed: {found['packs_dropped']} of {found['packs']} packs {would}dropped",
        f"{'needed by':<32}{'before':>12}{'after':>12}",
    ]
    lines += [f"{noun:<32}{size_text(before[kind]):>12}{size_text(after[kind]):>12}" for kind, noun in _KINDS]
    if after["locked_packs"]:
        held = f"{size_text(after['locked'])} in {after['locked_packs']} packs"
        lines.append(f"{held} are locked by the store, the last until {after['locked_until'][:10]}; prune again then")
    return lines
