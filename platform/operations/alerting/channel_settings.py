"""Channels as operators configure them: add, change, try, switch off and on, remove; each on record."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from audit.services import record
from core import clock, sealing
from core.errors import Conflict, NotFound
from core.models import Fact
from core.tenancy import tenants_unknown
from core.text import url_without_secrets
from engine.adapters import parse_config
from engine.errors import LastroError, UsageError
from operations.alerting.channels import channel_kind
from operations.alerting.telling import message_queue
from operations.alerting.transitions import delivery_to
from operations.models import AlertDelivery, AlertMessage, Channel, DeliveryState, MessageKind, Severity

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
STEP_MAX = 9
PER_MINUTE_MAX = 600
INHERITED_FACT = "inherited_channels"
_ACTOR = "system:environment"


@dataclass(frozen=True)
class ChannelWish:
    """Whom a channel tells of what; None leaves it as it is, or at its default."""

    tenant: str | None = None
    severity: str | None = None
    step: int | None = None
    notices: bool | None = None
    reports: bool | None = None
    per_minute: int | None = None

    def put(self, row: Channel) -> list[str]:
        """Set what is named; the names. Raises UsageError, NotFound."""
        if self.tenant and tenants_unknown([self.tenant]):
            raise NotFound(f"there is no tenant {self.tenant[:60]!r}", hint="tenant list shows them")
        if self.severity is not None and self.severity not in Severity.values:
            raise UsageError(
                f"there is no severity {self.severity[:20]!r}", hint=f"one of: {', '.join(Severity.values)}"
            )
        if self.step is not None and not 1 <= self.step <= STEP_MAX:
            raise UsageError(f"a step is 1 to {STEP_MAX}", hint="1 hears at once, 2 when nobody has acknowledged")
        if self.per_minute is not None and not 1 <= self.per_minute <= PER_MINUTE_MAX:
            raise UsageError(f"a channel takes 1 to {PER_MINUTE_MAX} messages a minute")
        named = [name for name, value in vars(self).items() if value is not None]
        for name in named:
            setattr(row, name, getattr(self, name))
        return named


def channel_add(
    name: str, *, kind: str, values: Mapping[str, str], actor: str, wish: ChannelWish | None = None
) -> Channel:
    """Save a channel; nothing is sent. Raises UsageError, NotFound, Conflict for a name that is taken."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a channel", hint="letters, digits, dot, dash, underscore; up to 60"
        )
    adapter = channel_kind(kind)
    row = Channel(name=name, kind=kind)
    (wish or ChannelWish()).put(row)
    given = sealing.resolved(adapter.Config, values)
    if kind == "webhook" and not given.get("secret"):
        from operations.alerting.channels.webhook import secret_made

        given["secret"] = secret_made()
    _settings_put(row, given)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            _audit("channel.added", row, actor)
    except IntegrityError:
        raise Conflict(
            f"a channel named {name!r} exists already", hint="choose another name, or: channel set"
        ) from None
    return row


def channel_update(
    name: str, *, actor: str, values: Mapping[str, str] | None = None, wish: ChannelWish | None = None
) -> Channel:
    """Change what is named; the rest stays as it is, secrets included. An empty value takes a setting back.

    Raises NotFound and UsageError; nothing is changed then.
    """
    row = channel_get(name)
    changed = (wish or ChannelWish()).put(row)
    if values:
        config_class = channel_kind(row.kind).Config
        given = sealing.resolved(config_class, {key: value for key, value in values.items() if value != ""})
        present = {**row.config, **sealing.unseal(row.sealed, owner=_owner(row)), **given}
        _settings_put(row, {key: value for key, value in present.items() if values.get(key) != ""})
        changed += sorted(values)
    if not changed:
        raise UsageError(
            "nothing to change was named", hint="--set KEY=VALUE, --severity, --step, --tenant, --notices …"
        )
    with transaction.atomic():
        row.save()
        _audit("channel.changed", row, actor, changed=changed)
    return row


def channel_rotate(name: str, *, actor: str) -> tuple[Channel, str]:
    """Give a webhook a new secret; the one before signs, too, until `former_secret` is taken back. Shown once."""
    from operations.alerting.channels.webhook import secret_made

    row = channel_get(name)
    if row.kind != "webhook":
        raise Conflict(
            f"channel {row.name} is of kind {row.kind}: only a webhook signs", hint="channel set changes secrets"
        )
    former = sealing.unseal(row.sealed, owner=_owner(row)).get("secret", "")
    made = secret_made()
    return channel_update(row.name, actor=actor, values={"secret": made, "former_secret": former}), made


def channel_secret(row: Channel) -> str:
    """The secret that receivers check signatures by; empty for other kinds."""
    return sealing.unseal(row.sealed, owner=_owner(row)).get("secret", "") if row.kind == "webhook" else ""


def channel_enable(name: str, *, enabled: bool, actor: str) -> Channel:
    """Use a channel again, or not; what is still queued for one that is switched off is dropped. Raises NotFound."""
    row = channel_get(name)
    with transaction.atomic():
        Channel.objects.filter(pk=row.pk).update(enabled=enabled)
        dropped = 0 if enabled else _drop(row, "the channel was switched off")
        _audit("channel.enabled" if enabled else "channel.disabled", row, actor, dropped=dropped)
    row.refresh_from_db()
    return row


def channel_remove(name: str, *, actor: str) -> None:
    """Remove a channel; the log of its deliveries stays. Raises NotFound."""
    row = channel_get(name)
    with transaction.atomic():
        dropped = _drop(row, "the channel was removed")
        _audit("channel.removed", row, actor, dropped=dropped)
        Channel.objects.filter(pk=row.pk).delete()


def _drop(row: Channel, why: str) -> int:
    queued = list(AlertDelivery.objects.filter(channel=row, state=DeliveryState.QUEUED))
    for delivery in queued:
        delivery_to(delivery, DeliveryState.DROPPED, reason=why, finished_at=clock.now())
    return len(queued)


def channel_get(name: str) -> Channel:
    """Find a channel by name. Raises NotFound."""
    row = Channel.objects.filter(name__iexact=name).first()
    if row is None:
        raise NotFound(f"there is no channel {name[:60]!r}", hint="channel list shows them")
    return row


def channel_list() -> list[Channel]:
    """All channels, those that hear first before the others."""
    return list(Channel.objects.order_by("step", "name"))


def channel_config(row: Channel) -> Any:
    """The typed settings, secrets opened. Raises WrongKey when the root key is another."""
    return sealing.config_of(channel_kind(row.kind).Config, row.config, row.sealed, owner=_owner(row))


def channel_test(name: str, *, actor: str) -> AlertDelivery:
    """Queue a test message; the delivery. Also for a channel that is switched off."""
    row = channel_get(name)
    with transaction.atomic():
        message = AlertMessage(kind=MessageKind.TEST)
        (delivery,) = message_queue(message, [row], now=clock.now())
        _audit("channel.tested", row, actor, delivery=delivery.pk)
    return delivery


def channels_inherit() -> list[Channel]:
    """Make channels of what the environment names (BACKUP_NOTIFY_EMAIL, SLACK_WEBHOOK_URL), once. Raises UsageError."""
    named = {kind: value for kind, value in settings.INHERITED_CHANNELS.items() if value}
    if not named or Fact.objects.filter(pk=INHERITED_FACT).exists():
        return []
    wanted = {"email": "to", "slack": "url"}
    with transaction.atomic():
        _, is_first = Fact.objects.get_or_create(pk=INHERITED_FACT, defaults={"value": ", ".join(sorted(named))})
        if not is_first:
            return []
        made = []
        for kind, value in sorted(named.items()):
            if Channel.objects.filter(name__iexact=kind).exists():
                continue
            try:
                made.append(channel_add(kind, kind=kind, values={wanted[kind]: value}, actor=_ACTOR))
            except LastroError as error:
                variable = {"email": "BACKUP_NOTIFY_EMAIL", "slack": "SLACK_WEBHOOK_URL"}[kind]
                raise UsageError(
                    f"{variable}: {error.message}", hint=error.hint or "set it right or unset it"
                ) from None
    return made


def channel_output(row: Channel) -> dict[str, Any]:
    """A channel as commands and the API give it; secrets are only said to be set."""
    return {
        "name": row.name,
        "kind": row.kind,
        "settings": sealing.shown(row.config, row.sealed),
        "enabled": row.enabled,
        "tenant": row.tenant or None,
        "severity": row.severity,
        "step": row.step,
        "notices": row.notices,
        "reports": row.reports,
        "per_minute": row.per_minute,
        "failing_since": row.failing_since,
        "error": row.error,
    }


def _settings_put(row: Channel, values: Mapping[str, Any]) -> None:
    config_class = channel_kind(row.kind).Config
    config: Any = parse_config(config_class, values)
    config.validate()
    kept = sealing.seal(config_class, sealing.given(config_class, config, values), owner=_owner(row))
    row.config, row.sealed = kept.plain, kept.sealed


def _owner(row: Channel) -> str:
    return f"channel:{row.pk}"


def _audit(event: str, row: Channel, actor: str, **data: Any) -> None:
    record(
        event,
        message=f"channel {row.name} ({row.kind})",
        actor=actor,
        tenant=row.tenant,
        level="warning",
        data={"channel": row.pk, "name": row.name, "config": _told(row.config), **data},
    )


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the audit log, which is sent on and forgets nothing, has them."""
    return {**config, **({"url": url_without_secrets(str(config["url"]))} if config.get("url") else {})}
