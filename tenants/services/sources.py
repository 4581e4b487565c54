"""Sources: added, changed and tested; their secrets go in and never come out."""

from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction

from audit.services import record
from core import clock, sealing
from core.errors import Conflict, NotFound
from engine.adapters import parse_config, secret_fields
from engine.errors import UsageError
from engine.ports import Probe
from tenants import wiring
from tenants.models import BackupSource, Source, SourceClass, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.places import source_folder_checked
from tenants.rules import name_checked
from tenants.selectors import source_get
from tenants.services.tenants import idle_checked

_SUMMARY_CHARS_MAX = 500


def source_add(
    tenant: Tenant,
    name: str,
    *,
    kind: str,
    category: str,
    values: Mapping[str, str],
    actor: str,
    criticality: str = "",
    test: bool = True,
) -> tuple[Source, Probe | None]:
    """Add a source, tested before it is saved unless told otherwise.

    Raises UsageError for settings that cannot be right, Conflict for a name in use, SourceError with a hint
    when the test fails; nothing is saved then.
    """
    name_checked("source", name)
    adapter: Any = wiring.connector_kind(kind)
    if category not in adapter.categories:
        raise UsageError(
            f"a {kind} source cannot be of category {category!r}", hint=f"use --category {adapter.categories[0]}"
        )
    if Source.objects.filter(tenant=tenant, name__iexact=name).exists():
        raise _taken(tenant, name)
    source = Source(tenant=tenant, name=name, kind=kind, category=category)
    source.criticality = criticality or tenant.criticality
    _settings_put(source, adapter, sealing.resolved(adapter.Config, values))
    probe = _tested(source) if test else None
    try:
        with transaction.atomic():
            source.save(force_insert=True)
            _audit("source.added", source, actor)
    except IntegrityError:
        raise _taken(tenant, name) from None
    return source, probe


def source_update(
    source: Source, *, values: Mapping[str, str], actor: str, criticality: str = "", test: bool = True
) -> tuple[Source, Probe | None]:
    """Change settings and class; those not named keep their values, secrets included. Raises as `source_add`."""
    if not values and not criticality:
        raise UsageError("nothing to change was named", hint="give --set KEY=VALUE or --class")
    adapter: Any = wiring.connector_kind(source.kind)
    present: dict[str, Any] = {**source.config, **sealing.unseal(source.sealed, owner=_owner(source))}
    _settings_put(source, adapter, {**present, **sealing.resolved(adapter.Config, values)})
    probe = _tested(source) if test else None
    with transaction.atomic():
        if criticality and criticality != source.criticality:
            # Objectives of the past are judged by the class of then.
            SourceClass.objects.create(source=source, criticality=source.criticality, until=clock.now())
        source.criticality = criticality or source.criticality
        source.save(update_fields=["config", "sealed", "tested_at", "tested_summary", "criticality"])
        _audit("source.changed", source, actor, changed=sorted([*values, *(["class"] if criticality else [])]))
    return source, probe


def source_archive(source: Source, *, actor: str) -> Source:
    """Remove a source from the tenant; its backups stay, and its settings until it is reinstated.

    Raises Busy while an operation of the tenant is under way.
    """
    idle_checked(source.tenant)
    with transaction.atomic():
        Source.objects.filter(pk=source.pk).update(archived_at=clock.now())
        _audit("source.removed", source, actor, backups=source_backup_count(source))
    source.refresh_from_db(from_queryset=Source.every.all())
    return source


def source_reinstate(tenant: Tenant, name: str, *, actor: str) -> Source:
    """Bring back the source of this name that was removed last. Raises NotFound, Conflict for a name in use."""
    source = Source.every.filter(tenant=tenant, name=name).exclude(archived_at=None).order_by("-archived_at").first()
    if source is None:
        raise NotFound(f"no source {name!r} of tenant {tenant.slug} was removed", hint=f"source list {tenant.slug}")
    try:
        with transaction.atomic():
            Source.every.filter(pk=source.pk).update(archived_at=None)
            _audit("source.reinstated", source, actor)
    except IntegrityError:
        raise _taken(tenant, name) from None
    return source_get(tenant, name)


def source_backup_count(source: Source) -> int:
    """How many good backups hold the source."""
    kept = BackupSource.objects.filter(source=source, state=BackupSource.State.KEPT)
    return kept.filter(backup__state__in=GOOD_STATES).count()


def source_test(source: Source, *, actor: str) -> Probe:
    """Test a saved source and keep when it passed. Raises SourceError with a hint."""
    probe = _tested(source)
    with transaction.atomic():
        source.save(update_fields=["tested_at", "tested_summary"])
        _audit("source.tested", source, actor)
    return probe


def source_enable(source: Source, *, enabled: bool, actor: str) -> Source:
    """Take a source into backups of the whole tenant, or leave it out of them."""
    with transaction.atomic():
        Source.objects.filter(pk=source.pk).update(enabled=enabled)
        _audit("source.enabled" if enabled else "source.disabled", source, actor)
    source.enabled = enabled
    return source


def _settings_put(source: Source, adapter: Any, values: Mapping[str, Any]) -> None:
    config = parse_config(adapter.Config, values)
    kept = sealing.seal(adapter.Config, sealing.given(adapter.Config, config, values), owner=_owner(source))
    source.config, source.sealed = kept.plain, kept.sealed
    _place_checked(source, adapter, config)


def _place_checked(source: Source, adapter: Any, config: Any) -> None:
    """A folder or file that is part of our own data, or holds it, would grow with each backup of itself."""
    if "path" in source.config and "path" not in secret_fields(adapter.Config):
        leaves_out = getattr(adapter(config), "leaves_out", None)
        source_folder_checked(str(source.config["path"]), excluded=leaves_out)


def _tested(source: Source) -> Probe:
    probe = wiring.connector_open(source).test()
    source.tested_at = clock.now()
    source.tested_summary = probe.summary[:_SUMMARY_CHARS_MAX]
    return probe


def _owner(source: Source) -> str:
    return f"source:{source.pk}"


def _audit(event: str, source: Source, actor: str, **data: Any) -> None:
    slug = source.tenant.slug
    record(
        event,
        message=f"source {source.name} of tenant {slug} ({source.kind})",
        actor=actor,
        tenant=slug,
        data={"source": source.name, "kind": source.kind, **data},
    )


def _taken(tenant: Tenant, name: str) -> Conflict:
    return Conflict(
        f"tenant {tenant.slug} has a source {name!r} already", hint="choose another name, or change it with source set"
    )
