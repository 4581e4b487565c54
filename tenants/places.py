"""Where sources, targets, stores and our own data may lie on this host without eating one another."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from core import sealing
from engine.errors import UsageError
from tenants import wiring
from tenants.models import Source, StoreConfig

_OWN_FOLDERS = ("keys", "cache", "log", "static", "downloads")


def forbidden_folders() -> dict[Path, str]:
    """Folders in which nobody's data belongs: local stores and our own keys, caches and logs."""
    data = wiring.data_folder()
    places = {data / name: f"Lastro's own {name}" for name in _OWN_FOLDERS}
    for row in StoreConfig.objects.filter(kind="local"):
        places[Path(row.config["path"])] = f"the store {row.name}"
    places.setdefault(data / "store", "the default store")
    return places


def source_folder_checked(path: str, *, excluded: Callable[[bytes], bool] | None) -> None:
    """Refuse a folder as a source when a backup of it would hold its own store, keys or catalogue.

    `excluded` tells whether the source leaves out a path below it (relative, bytes).
    """
    root = Path(os.path.realpath(path))
    data = wiring.data_folder()
    places = {data: "Lastro's own data folder", **forbidden_folders()}
    for place, what in places.items():
        real = Path(os.path.realpath(place))
        if place != data and _within(root, real):
            raise UsageError(f"{path} lies in {what} ({place})", hint="a source cannot be a part of Lastro's own data")
        if _within(real, root) and not (excluded and _leaves_out(excluded, root, real)):
            inside = os.path.relpath(real, root)
            raise UsageError(
                f"{path} contains {what} ({place})",
                hint="choose another folder"
                if inside == "."
                else f"leave it out with --set exclude=/{inside}, or move it elsewhere",
            )


def target_folder_checked(path: str) -> None:
    """Refuse a folder as a restore target when writing there would change a store, keys or the catalogue."""
    root = Path(os.path.realpath(path))
    if root == Path(os.path.realpath(wiring.data_folder())):
        raise UsageError(f"{path} is Lastro's own data folder", hint="choose a folder of its own for the target")
    for place, what in forbidden_folders().items():
        real = Path(os.path.realpath(place))
        if _within(root, real) or _within(real, root):
            raise UsageError(f"{path} and {what} ({place}) overlap", hint="choose a folder of its own for the target")


def target_of_others_checked(source: Source, settings: Mapping[str, str]) -> None:
    """Refuse a target where another tenant's source lives: a confirmation speaks for the tenant that is restored alone.

    Schemas are compared by name, on whatever server they are; databases by name, port and the addresses of their hosts.
    """
    # Removed ones too: what they protected may still be live.
    for other in Source.every.exclude(tenant=source.tenant_id).select_related("tenant"):
        theirs, path, schema = other.config, settings.get("path"), settings.get("schema")
        overlap = False
        if path and theirs.get("path"):
            here, there = Path(os.path.realpath(path)), Path(os.path.realpath(theirs["path"]))
            overlap = _within(here, there) or _within(there, here)
        where = str(path) if overlap else f"schema {schema}"
        overlap = overlap or bool(schema and other.kind == source.kind and theirs.get("schema") == schema)
        if not overlap and settings.get("dsn") and other.kind == source.kind:
            overlap, where = _same_database(settings["dsn"], other), "that database"
        if overlap:
            raise UsageError(
                f"source {other.name} of tenant {other.tenant.slug} lives at {where}", hint="name a target of its own"
            )


def _same_database(dsn: str, other: Source) -> bool:
    """Everything in a database that is restored into goes, when that is confirmed: nobody else may live in it."""
    from connectors._postgresql.place import same_database

    theirs = {**other.config, **sealing.unseal(other.sealed, owner=f"source:{other.pk}")}.get("dsn", "")
    try:
        return bool(theirs) and same_database(dsn, str(theirs))
    except UsageError:
        return False  # A secret that cannot be read any more leads nowhere.


def _within(inner: Path, outer: Path) -> bool:
    return inner == outer or outer in inner.parents


def _leaves_out(excluded: Callable[[bytes], bool], root: Path, place: Path) -> bool:
    relative = place.relative_to(root)
    steps = [Path(*relative.parts[: n + 1]) for n in range(len(relative.parts))]
    return any(excluded(os.fsencode(step)) for step in steps)
