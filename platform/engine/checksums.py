"""The checksums of a backup: SHA-256, per category, over the parts' own digests."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from engine.manifest import canonical

CATEGORIES = ("database", "assets", "configurations")


def source_digest(source: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the canonical JSON of a source's sorted [sort, name, sha256] rows."""
    rows = [
        [sort, part["name"], part["sha256"]]
        for sort in ("documents", "tables", "trees")
        for part in source.get(sort, ())
        if not part.get("volatile")
    ]
    return hashlib.sha256(canonical(sorted(rows))).hexdigest()


def category_checksums(sources: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """Per category the SHA-256 over sorted [source, digest] rows; None for a category without sources."""
    rows: dict[str, list[list[str]]] = {}
    for source in sources:
        rows.setdefault(source["category"], []).append([source["name"], source_digest(source)])
    return {
        category: hashlib.sha256(canonical(sorted(rows[category]))).hexdigest() if category in rows else None
        for category in CATEGORIES
    }
