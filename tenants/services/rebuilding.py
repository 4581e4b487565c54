"""Tenants of which the catalogue knows nothing, rebuilt from what their manifests tell."""

import contextlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from django.db import IntegrityError, transaction

from audit.services import record
from core import clock
from core.rootkey import root_key
from engine.adapters import secret_fields
from engine.errors import LastroError, ObjectMissing
from engine.keys import Keyring
from engine.manifest import Manifest
from engine.ports import Store
from engine.repository import Repository
from tenants import wiring
from tenants.keyring_places import KEYRING_BYTES_MAX, place_note
from tenants.models import Category, RepositoryMirror, Source, StoreConfig, Tenant
from tenants.rules import NAME_CHARS_MAX, SLUG_CHARS_MAX, SOURCE_NAME_CHARS_MAX

Note = Callable[[str], None]
MANIFESTS_LOOKED_AT_MAX = 50
"""How many of the newest backups are asked which sources there were."""
_NO_SLUG = re.compile("[^a-z0-9]+")


def tenants_rebuild(row: StoreConfig, *, actor: str, note: Note) -> list[str]:
    """Add every tenant whose repository the store lists and the catalogue lacks; their slugs.

    They come back with names, sources (switched off: their settings are as the backups noted them, without secrets) and
    no backups yet; reconciling brings those. What another root key wrapped is somebody else's and is left alone.
    """
    known = set(Tenant.objects.values_list("repository_id", flat=True))
    rebuilt = []
    with wiring.store_open(row) as store:
        for repository_id in repositories_listed(store):
            if repository_id in known:
                continue
            try:
                tenant = _rebuilt(row, store, repository_id, actor)
            except LastroError as error:
                note(f"{repository_id} is left alone: {error.message}")
                continue
            rebuilt.append(tenant.slug)
            note(f"{tenant.slug} ({tenant.name}) was rebuilt from its manifests")
    return rebuilt


def repositories_listed(store: Store) -> Iterator[str]:
    """Ids of the tenants' repositories in a store, each once; streams its whole listing."""
    last = ""
    for info in store.list("r/rep_"):
        repository_id = info.key.split("/")[1]
        if repository_id != last:
            last = repository_id
            yield repository_id


def _rebuilt(row: StoreConfig, store: Store, repository_id: str, actor: str) -> Tenant:
    try:
        blob = store.get(f"r/{repository_id}/keyring", 0, KEYRING_BYTES_MAX)
    except ObjectMissing:
        raise ObjectMissing("its keyring is not in this store", hint="adopt from a store that keeps keys") from None
    keyring = Keyring.of(blob, root_key(), repository_id=repository_id)
    repository = Repository.open(store, repository_id=repository_id, keyring=keyring, cache=wiring.cache_folder())
    newest = list(_newest(repository))
    name = str(newest[0].document["metadata"]["tenant_name"]) if newest else repository_id
    with transaction.atomic():
        tenant = _tenant_add(keyring, row, blob, name, newest)
        for node in _sources(newest):
            _source_add(tenant, node)
        RepositoryMirror.objects.create(
            tenant=tenant, behind_since=clock.now(), behind_reason="rebuilt", succession_due=True
        )
        place_note(tenant, row, blob)
        record(
            "tenant.rebuilt",
            message=f"tenant {tenant.slug} ({tenant.name}) was rebuilt from its manifests",
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={"repository": repository_id, "store": row.name},
        )
    return tenant


def _newest(repository: Repository) -> Iterator[Manifest]:
    count = 0
    for number in sorted(repository.numbers(), reverse=True):
        with contextlib.suppress(LastroError):
            manifest = repository.manifest(number)
            if manifest.kind == "manifest":
                yield manifest
                count += 1
        if count >= MANIFESTS_LOOKED_AT_MAX:
            return


def _tenant_add(keyring: Keyring, row: StoreConfig, blob: bytes, name: str, newest: list[Manifest]) -> Tenant:
    for slug in _slugs(name):
        try:
            with transaction.atomic():
                return Tenant.objects.create(
                    id=keyring.tenant_id,
                    slug=slug,
                    name=name[:NAME_CHARS_MAX],
                    store=row,
                    repository_id=keyring.repository_id,
                    keyring=blob,
                    repository_ready=True,
                    platform_version=str(newest[0].document["metadata"]["platform_version"]) if newest else "",
                )
        except IntegrityError:
            if Tenant.objects.filter(pk=keyring.tenant_id).exists():
                raise
    raise AssertionError("there is always a free slug")


def _slugs(name: str) -> Iterator[str]:
    """A slug made of the name, then the same with a number behind it: slugs are in no manifest."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    base = _NO_SLUG.sub("-", plain).strip("-")[: SLUG_CHARS_MAX - 6].strip("-") or "tenant"
    base = base if base[0].isalpha() else f"t-{base}"
    yield base
    for number in range(2, 100_000):
        yield f"{base}-{number}"


def _sources(newest: list[Manifest]) -> list[Mapping[str, Any]]:
    """Each source as the newest backup that holds it describes it."""
    found: dict[str, Mapping[str, Any]] = {}
    for manifest in newest:
        for node in manifest.document["sources"]:
            found.setdefault(str(node["name"]), node)
    return list(found.values())


def _source_add(tenant: Tenant, node: Mapping[str, Any]) -> None:
    category = node["category"] if node["category"] in Category.values else Category.ASSETS
    Source.objects.create(
        tenant=tenant,
        name=str(node["name"])[:SOURCE_NAME_CHARS_MAX],
        kind=node["kind"],
        category=category,
        config=_settings(str(node["kind"]), node["facts"]),
        enabled=False,
        tested_summary="rebuilt from a backup: check its settings (source set), then source enable",
    )


def _settings(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of a source's settings its backups have noted."""
    try:
        config_class: Any = wiring.connector_kind(kind).Config
    except LastroError:
        return {}
    secrets = secret_fields(config_class)
    names = {each.name for each in fields(config_class)} - set(secrets)
    plain = {name: value for name, value in facts.items() if name in names and value not in (None, [], "")}
    return {
        name: "\n".join(value) if isinstance(value, list) else value
        for name, value in json.loads(json.dumps(plain)).items()
    }
