"""Looking at the backups of the catalogue that the stores keep: they are asked, not the catalogue."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.errors import NotFound
from engine.errors import LastroError
from tenants import wiring
from tenants.catalogue.places import catalogue_repository, kept_get, kept_list
from tenants.models import StoreConfig
from tenants.owning import installation_get
from tenants.services.stores import store_get


@dataclass
class Listed:
    """Backups of the catalogue, newest first, and the stores that could not be asked."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def catalogue_list(store_name: str = "") -> Listed:
    """Ask every store, or one, for the backups of this catalogue. Raises NotFound for an unknown store."""
    found = Listed()
    for row in _stores(store_name):
        try:
            with wiring.store_open(row) as store:
                if not wiring.repository_present(store, installation_get().repository_id):
                    continue
                for kept in kept_list(catalogue_repository(store)):
                    metadata = kept.manifest.document["metadata"]
                    found.rows.append(
                        {
                            "id": kept.id,
                            "store": row.name,
                            "number": kept.manifest.number,
                            "timestamp": kept.taken_at,
                            "size": metadata["size_bytes"],
                            "stored": metadata["stored_bytes"],
                        }
                    )
        except LastroError as error:
            found.failed.append({"store": row.name, "code": error.code, "detail": error.message, "hint": error.hint})
    found.rows.sort(key=lambda each: str(each["timestamp"]), reverse=True)
    return found


def catalogue_show(backup_id: str = "", *, store_name: str = "") -> dict[str, Any]:
    """What one backup of the catalogue holds; the newest without an id. Raises NotFound, DamageError."""
    for row in _stores(store_name):
        with wiring.store_open(row) as store:
            if not wiring.repository_present(store, installation_get().repository_id):
                continue
            kept = kept_list(catalogue_repository(store))
            if not kept or (backup_id and backup_id not in {each.id for each in kept}):
                continue
            chosen = kept_get(kept, backup_id) if backup_id else kept[0]
            header = chosen.opened().header
        return {
            "id": chosen.id,
            "store": row.name,
            "number": chosen.manifest.number,
            **{key: header[key] for key in ("taken_at", "software", "installation_id", "generation", "audit")},
            "rows": {each["model"]: each["rows"] for each in header["models"] if each["rows"]},
        }
    raise NotFound(
        f"no store keeps the backup {backup_id[:60]!r} of the catalogue" if backup_id else "no store keeps one yet",
        hint="catalogue list shows them; catalogue backup --here takes one",
    )


def _stores(name: str) -> Iterator[StoreConfig]:
    if name:
        yield store_get(name)
    else:
        yield from StoreConfig.objects.order_by("name")
