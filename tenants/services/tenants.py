"""Tenants: added with keys and a repository of their own."""

import datetime
from collections.abc import Collection

from django.db import IntegrityError, transaction

from access.approvals import approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import Busy, Conflict
from core.ids import new_id
from core.rootkey import root_key
from core.text import reason_checked
from engine.errors import LastroError, UsageError
from engine.keys import Keyring
from operations.models import Operation, OperationState
from operations.selectors import operations_active
from tenants import wiring
from tenants.models import Backup, Criticality, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.rules import slug_checked, title_checked, version_checked
from tenants.services.holds import release_action
from tenants.services.stores import primary_checked, store_default, store_get
from tenants.shredded import keys_present

HELD_REASON_CHARS_MAX = 500
WAITING_KINDS = ("copy", "copy_verify", "copy_repair")


def tenant_add(
    slug: str, *, name: str, actor: str, criticality: str = Criticality.NORMAL, store_name: str = ""
) -> Tenant:
    """Add a tenant and make its repository. Raises Conflict for a slug in use, StoreError when the store fails.

    The row comes first, with the wrapped keys in it: whatever then happens to this process, the keys of a
    repository that exists are in the catalogue.
    """
    slug_checked(slug)
    title = title_checked(name)
    if Tenant.objects.filter(slug=slug).exists():
        raise _taken(slug)
    store_row = store_get(store_name) if store_name else store_default()
    primary_checked(store_row)
    tenant = Tenant(slug=slug, name=title, criticality=criticality, store=store_row, repository_id=new_id("rep"))
    root = root_key()
    keyring = Keyring.create(root, tenant_id=tenant.pk, repository_id=tenant.repository_id)
    tenant.keyring = keyring.to_bytes(root)
    with wiring.store_open(store_row) as store:
        try:
            with transaction.atomic():
                tenant.save(force_insert=True)
                record("tenant.added", message=f"tenant {slug} ({title})", actor=actor, tenant=slug)
        except IntegrityError:
            raise _taken(slug) from None
        try:
            wiring.repository_create(tenant, store)
        except LastroError as error:
            with transaction.atomic():
                Tenant.objects.filter(pk=tenant.pk, repository_ready=False).delete()
                record(
                    "tenant.add_failed",
                    message=f"tenant {slug}: {error.message}",
                    actor=actor,
                    tenant=slug,
                    level="error",
                )
            raise
    return tenant


def tenant_update(
    tenant: Tenant,
    *,
    actor: str,
    name: str | None = None,
    criticality: str | None = None,
    platform_version: str | None = None,
) -> Tenant:
    """Change what is given; the slug, the keys and the repository stay for ever. Raises UsageError.

    `platform_version` is what the tenant's application runs; each later backup records it.
    """
    changes: dict[str, str] = {}
    if name is not None:
        changes["name"] = title_checked(name)
    if criticality is not None:
        changes["criticality"] = Criticality(criticality).value
    if platform_version is not None:
        changes["platform_version"] = version_checked(platform_version)
    if not changes:
        raise UsageError("nothing to change was named", hint="give --name, --class or --platform-version")
    before = {field: getattr(tenant, field) for field in changes}
    with transaction.atomic():
        Tenant.objects.filter(pk=tenant.pk).update(**changes)
        record(
            "tenant.changed",
            message=f"tenant {tenant.slug}: {', '.join(sorted(changes))}",
            actor=actor,
            tenant=tenant.slug,
            data={"before": before, "after": changes},
        )
    tenant.refresh_from_db()
    return tenant


def tenant_archive(tenant: Tenant, *, actor: str) -> Tenant:
    """Remove a tenant from the work: no new backups, in no list. Keys, sources and backups stay, also in the store.

    Raises Busy while an operation of the tenant is under way. Its slug is never given to another tenant.
    """
    idle_checked(tenant)
    return _archived_put(tenant, clock.now(), "tenant.removed", actor)


def tenant_reinstate(tenant: Tenant, *, actor: str) -> Tenant:
    """Take a removed tenant back into the work. Repeating it is no error."""
    keys_present(tenant)
    return _archived_put(tenant, None, "tenant.reinstated", actor)


def tenant_hold(tenant: Tenant, *, held: bool, reason: str, actor: str, approval: Approval | None = None) -> Tenant:
    """Put a legal hold on the tenant, or take it off. Under it no backup is ended and no key destroyed.

    Raises UsageError for a hold without a reason. Repeating it changes the reason.
    """
    asked, reason = reason, reason_checked(reason)[:HELD_REASON_CHARS_MAX]
    if held and not reason:
        raise UsageError("a legal hold needs its reason", hint="--reason TEXT")
    with transaction.atomic():
        if tenant.held and not held:
            approval_use(approval, release_action(tenant, asked), actor=actor)
        Tenant.objects.filter(pk=tenant.pk).update(held=held, held_reason=reason if held else "")
        record(
            "tenant.held" if held else "tenant.released",
            message=f"tenant {tenant.slug} {'is under legal hold' if held else 'was released'}"
            + (f": {reason}" if reason else ""),
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={"reason": reason},
        )
    tenant.refresh_from_db()
    return tenant


def tenant_backup_count(tenant: Tenant) -> int:
    """How many good backups the tenant has."""
    return Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES).count()


def idle_checked(tenant: Tenant, *, but: Collection[Operation] = ()) -> None:
    """Raise Busy while something of the tenant is queued or runs, these operations left aside.

    Copies that only wait hold nobody up: they bring along what there is whenever a worker comes to them.
    """
    spared = {each.pk for each in but}
    found = [each for each in operations_active(tenant=tenant.slug) if each.pk not in spared]
    active = [each for each in found if not (each.kind in WAITING_KINDS and each.state == OperationState.QUEUED)]
    if active:
        first = active[0]
        more = f", and {len(active) - 1} more (operation list {tenant.slug})" if len(active) > 1 else ""
        raise Busy(
            f"{first.kind} {first.pk} of tenant {tenant.slug} is {first.state}{more}",
            hint=f"wait for its end, or: operation cancel {first.pk}",
            operation=first.pk,
        )


def _archived_put(tenant: Tenant, at: datetime.datetime | None, event: str, actor: str) -> Tenant:
    with transaction.atomic():
        if Tenant.objects.filter(pk=tenant.pk, archived_at__isnull=at is not None).update(archived_at=at):
            data = {"backups": tenant_backup_count(tenant)}
            record(event, message=f"tenant {tenant.slug}", actor=actor, tenant=tenant.slug, level="warning", data=data)
    tenant.refresh_from_db()
    return tenant


def _taken(slug: str) -> Conflict:
    if Tenant.objects.filter(slug=slug).exclude(shredded_at=None).exists():
        hint = f"choose another slug; what was destroyed: key certificate show {slug}"
        return Conflict(
            f"a tenant {slug!r} was shredded: its slug stands in the certificate and is not used again", hint=hint
        )
    if Tenant.objects.filter(slug=slug).exclude(archived_at=None).exists():
        return Conflict(f"a tenant {slug!r} was removed", hint=f"choose another slug, or: tenant reinstate {slug}")
    return Conflict(f"a tenant {slug!r} exists already", hint="choose another slug, or use the tenant that exists")
