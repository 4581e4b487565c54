"""Hooks as operators configure them: add, change, switch off and on, remove."""

from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, models, transaction

from audit.services import record
from core import sealing
from core.errors import Conflict, NotFound
from core.tenancy import tenant_checked
from core.text import url_without_secrets
from engine.adapters import parse_config
from engine.errors import UsageError
from operations.handlers import hooked_kinds
from operations.models import Hook, HookEvent, HookFailure

TIMEOUT_SECONDS_MAX = 3600
NAME_CHARS_MAX = 60


def hook_add(
    name: str,
    *,
    event: str,
    operation_kind: str,
    kind: str,
    values: Mapping[str, str],
    actor: str,
    tenant: str = "",
    timeout_seconds: int = 60,
    on_failure: str = HookFailure.STOP,
    position: int = 0,
) -> Hook:
    """Save a hook. Raises UsageError, NotFound for an unknown tenant, Conflict for a name that is taken."""
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"{name[:80]!r} cannot be the name of a hook", hint="1 to 60 printable characters")
    if operation_kind not in hooked_kinds():
        raise UsageError(
            f"there are no hooks around {operation_kind[:40]!r}", hint=f"one of: {', '.join(hooked_kinds())}"
        )
    from operations.hook_actions import KINDS

    if kind not in KINDS:
        raise UsageError(f"unknown kind of hook {kind[:40]!r}", hint=f"one of: {', '.join(sorted(KINDS))}")
    tenant_checked(tenant)
    row = Hook(
        name=name,
        operation_kind=operation_kind,
        event=HookEvent(event),
        tenant=tenant,
        kind=kind,
        timeout_seconds=_timeout_checked(timeout_seconds),
        on_failure=HookFailure(on_failure),
        position=position,
    )
    _settings_put(row, sealing.resolved(KINDS[kind], values))
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            _audit("hook.added", row, actor, on_failure=on_failure)
    except IntegrityError:
        raise Conflict(
            f"a hook named {name!r} exists already", hint="choose another name, or change it: hook set"
        ) from None
    return row


def hook_update(
    name: str,
    *,
    actor: str,
    values: Mapping[str, str] | None = None,
    timeout_seconds: int | None = None,
    on_failure: str | None = None,
    position: int | None = None,
) -> Hook:
    """Change what is named; the rest stays as it is, secrets included. Raises NotFound and UsageError."""
    from operations.hook_actions import KINDS

    row = hook_get(name)
    changed = [*(values or ())]
    if values:
        present = {**row.config, **sealing.unseal(row.sealed, owner=_owner(row))}
        _settings_put(row, {**present, **sealing.resolved(KINDS[row.kind], values)})
    if timeout_seconds is not None:
        row.timeout_seconds = _timeout_checked(timeout_seconds)
        changed.append("timeout_seconds")
    if on_failure is not None:
        row.on_failure = HookFailure(on_failure)
        changed.append("on_failure")
    if position is not None:
        row.position = position
        changed.append("position")
    if not changed:
        raise UsageError("nothing to change was named", hint="--set KEY=VALUE, --timeout, --on-failure or --position")
    with transaction.atomic():
        row.save(update_fields=["config", "sealed", "timeout_seconds", "on_failure", "position"])
        _audit("hook.changed", row, actor, changed=sorted(changed))
    return row


def hook_enable(name: str, *, enabled: bool, actor: str) -> Hook:
    """Have a hook run, or leave it out. Raises NotFound."""
    row = hook_get(name)
    with transaction.atomic():
        Hook.objects.filter(pk=row.pk).update(enabled=enabled)
        _audit("hook.enabled" if enabled else "hook.disabled", row, actor)
    row.enabled = enabled
    return row


def hook_get(name: str) -> Hook:
    """Find a hook by name. Raises NotFound."""
    found = Hook.objects.filter(name__iexact=name).first()
    if found is None:
        raise NotFound(f"there is no hook {name[:60]!r}", hint="hook list shows them")
    return found


def hook_list(tenant: str = "") -> "models.QuerySet[Hook]":
    """All hooks, or those that run for a tenant. Raises NotFound for a tenant that there is not."""
    tenant_checked(tenant)
    rows = Hook.objects.order_by("operation_kind", "-event", "position", "name")
    return rows.filter(tenant__in=("", tenant)) if tenant else rows


def hook_remove(name: str, *, actor: str) -> None:
    """Remove a hook; what its runs left stays. Raises NotFound."""
    row = hook_get(name)
    with transaction.atomic():
        _audit("hook.removed", row, actor)
        Hook.objects.filter(pk=row.pk).delete()


def hook_config(row: Hook) -> Any:
    """The typed settings of a hook, its secrets opened. Raises WrongKey when the root key is another."""
    from operations.hook_actions import KINDS

    return sealing.config_of(KINDS[row.kind], row.config, row.sealed, owner=_owner(row))


def _settings_put(row: Hook, values: Mapping[str, Any]) -> None:
    from operations.hook_actions import KINDS

    config_class = KINDS[row.kind]
    config: Any = parse_config(config_class, values)
    config.validate()
    kept = sealing.seal(config_class, sealing.given(config_class, config, values), owner=_owner(row))
    row.config, row.sealed = kept.plain, kept.sealed


def _timeout_checked(seconds: int) -> int:
    if not 1 <= seconds <= TIMEOUT_SECONDS_MAX:
        raise UsageError(f"a time limit is 1 to {TIMEOUT_SECONDS_MAX} seconds")
    return seconds


def _owner(row: Hook) -> str:
    return f"hook:{row.pk}"


def _audit(event: str, row: Hook, actor: str, **data: Any) -> None:
    record(
        event,
        message=f"hook {row.name}: {row.event} {row.operation_kind}, {row.kind}",
        actor=actor,
        tenant=row.tenant,
        level="warning",
        data={"hook": row.pk, "name": row.name, "config": _told(row.config), **data},
    )


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the audit log, which is sent on and forgets nothing, has them."""
    return {**config, **({"url": url_without_secrets(str(config["url"]))} if config.get("url") else {})}
