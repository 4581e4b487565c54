"""The overview: a few figures of each part of the installation, at the same price whatever its size."""

from collections.abc import Callable, Mapping
from typing import Any

from django.utils.module_loading import autodiscover_modules

PARTS = ("tenant_backups", "general_backups", "restores", "releases")
_COUNTS = {"total_count": 0, "last_24h": 0, "failed_count": 0, "success_count": 0}
_NOTHING: Mapping[str, Mapping[str, Any]] = {
    "tenant_backups": {**_COUNTS, "avg_duration_ms": None, "avg_size_bytes": None, "last_success": None, "last_failure": None},
    "general_backups": {**_COUNTS, "avg_duration_ms": None, "avg_size_bytes": None, "last_success": None, "last_failure": None},
    "restores": {**_COUNTS, "avg_ttr_ms": None, "last_restore": None, "last_failure": None},
    "releases": {
        "total_count": 0, "last_24h": 0, "failed_count": 0, "active_version": None, "rollback_count": 0, "last_deploy": None,
        "last_rollback": None,
    },
}  # fmt: skip
"""What a part says of which there is nothing yet: the fields are there from the first day on."""

_parts: dict[str, Callable[[], Mapping[str, Any]]] = {}


def overview_register(part: str) -> Callable[[Callable[[], Mapping[str, Any]]], Callable[[], Mapping[str, Any]]]:
    """Have the decorated function tell a part's figures; called by an app's module `figures`."""
    assert part in PARTS, part

    def decorate(figures: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
        _parts[part] = figures
        return figures

    return decorate


def overview() -> dict[str, dict[str, Any]]:
    """The figures of every part."""
    autodiscover_modules("figures")
    return {part: {**_NOTHING[part], **(_parts[part]() if part in _parts else {})} for part in PARTS}
