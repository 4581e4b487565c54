"""Stores: added, tested, and the default one that exists from the start."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction

from audit.services import record
from core import sealing
from core.errors import Conflict, NotFound
from engine.adapters import parse_config
from engine.errors import LastroError, ObjectExists, StoreDenied, StoreError
from engine.ports import Store
from tenants import wiring
from tenants.models import StoreConfig
from tenants.rules import name_checked

DEFAULT_STORE = "default"
PROBE_KEY = "probe"


@dataclass(frozen=True)
class StoreProbe:
    """What a test of a store found out."""

    conditional: bool
    """A second create of a taken key was refused by the store itself: it can be a primary."""
    free_bytes: int | None


def store_default() -> StoreConfig:
    """The default store: a local folder `store` in the data folder, made and recorded on first use."""
    row = StoreConfig.objects.filter(is_default=True).first()
    if row is not None:
        return row
    values = {"path": str(wiring.data_folder() / "store")}
    row = StoreConfig(name=DEFAULT_STORE, kind="local", config=values, is_default=True)
    wiring.store_make(row)  # Before its row: a folder that is missing later has been lost.
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            record("store.added", message=f"default store in {values['path']}", actor="", data={"store": row.name})
            return row
    except IntegrityError:  # Another process was first.
        return StoreConfig.objects.get(is_default=True)


def store_get(name: str) -> StoreConfig:
    """Find a store by name. Raises NotFound."""
    if name == DEFAULT_STORE:
        return store_default()
    try:
        return StoreConfig.objects.get(name=name)
    except StoreConfig.DoesNotExist:
        raise NotFound(f"there is no store {name!r}", hint="store list shows them") from None


def store_add(name: str, *, kind: str, values: Mapping[str, str], actor: str, test: bool = True) -> StoreConfig:
    """Add a store and make its place, tested before it is saved unless told otherwise.

    Raises Conflict, UsageError, StoreError.
    """
    name_checked("store", name)
    store_default()
    if StoreConfig.objects.filter(name__iexact=name).exists():
        raise Conflict(f"a store named {name!r} exists already", hint="choose another name")
    adapter: Any = wiring.store_kind(kind)
    config = parse_config(adapter.Config, sealing.resolved(adapter.Config, values))
    row = StoreConfig(name=name, kind=kind)
    kept = sealing.seal(adapter.Config, sealing.given(adapter.Config, config, values), owner=f"store:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed
    wiring.store_make(row)
    if test:
        probe = store_test(row)
        if not probe.conditional:
            raise StoreDenied(
                f"store {name!r} lets two writers create one object", hint="it cannot keep manifests: use another store"
            )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            record("store.added", message=f"store {name} ({kind})", actor=actor, data={"store": name, "kind": kind})
    except IntegrityError:
        raise Conflict(f"a store named {name!r} exists already", hint="choose another name") from None
    return row


def store_test(row: StoreConfig) -> StoreProbe:
    """Write, read back, try to overwrite by `create`, delete. Raises StoreError when any of it fails."""
    with wiring.store_open(row) as store:
        key = f"{PROBE_KEY}/{os.urandom(8).hex()}"
        content = os.urandom(1024)
        try:
            store.create(key, [content])
            if store.get(key) != content:
                raise StoreError(f"store {row.name} gives back other bytes than were written", hint="do not use it")
            conditional = _refuses_second(store, key, content)
        finally:
            _delete_quietly(store, key)
        free = getattr(store, "free_bytes", None)
        return StoreProbe(conditional=conditional, free_bytes=free() if free else None)


def _refuses_second(store: Store, key: str, content: bytes) -> bool:
    try:
        store.create(key, [content[::-1]])
    except ObjectExists:
        return store.get(key) == content
    return False


def _delete_quietly(store: Store, key: str) -> None:
    # The error that led here says more than one about a probe of a kilobyte left behind.
    try:
        store.delete(key)
    except LastroError:
        pass
