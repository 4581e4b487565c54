"""Alerts: what is wrong, to whom it was said, by which channels, under which rules."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower

from core.models import Record


class Severity(models.TextChoices):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class AlertState(models.TextChoices):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


LIVE_STATES = (AlertState.OPEN, AlertState.ACKNOWLEDGED)


class Alert(Record):
    """One thing that is wrong, from the look that found it to the look that no longer does; see operations.alerting."""

    id_prefix: ClassVar[str] = "alt"

    rule = models.CharField(max_length=40)
    fingerprint = models.CharField(max_length=200)
    """What tells it from others of its rule; while it lives there is one of it."""
    tenant = models.CharField(max_length=63, blank=True)
    subject = models.CharField(max_length=200, blank=True)
    severity = models.CharField(max_length=10, choices=Severity.choices)
    state = models.CharField(max_length=16, choices=AlertState.choices, default=AlertState.OPEN)
    message = models.TextField()
    hint = models.TextField(blank=True)
    cause = models.CharField(max_length=200, blank=True)
    """Alerts of one rule and one cause are told in one message."""
    occurrence = models.CharField(max_length=100, blank=True)
    """The event that was seen last; another one counts as another occurrence."""
    occurrences = models.PositiveIntegerField(default=1)
    last_seen_at = models.DateTimeField()
    absent_since = models.DateTimeField(null=True)
    """Since when no look has found it; it is resolved when the rule's calm has passed."""
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=200, blank=True)
    note = models.CharField(max_length=1_000, blank=True)
    muted_until = models.DateTimeField(null=True)
    told_at = models.DateTimeField(null=True)
    """When it was last said; None: it has still to be said."""
    step = models.PositiveSmallIntegerField(default=0)
    """Channels up to this step were told."""
    escalate_at = models.DateTimeField(null=True)
    resolved_at = models.DateTimeField(null=True)
    recovery_due = models.BooleanField(default=False)
    """It was told, and that it is over has still to be said."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "fingerprint"], condition=Q(state__in=LIVE_STATES), name="operations_alert_live"
            )
        ]
        indexes = [
            models.Index(fields=["rule", "fingerprint", "-id"], name="operations_alert_print"),
            models.Index(fields=["state", "-id"], name="operations_alert_state"),
            models.Index(fields=["tenant", "-id"], name="operations_alert_tenant"),
            models.Index(
                fields=["escalate_at"], condition=Q(escalate_at__isnull=False), name="operations_alert_escalate"
            ),
            models.Index(fields=["rule"], condition=Q(recovery_due=True), name="operations_alert_recovery"),
        ]


class RuleVersion(Record):
    """What somebody set for a rule, for all tenants or for one; a version is never changed, only followed."""

    id_prefix: ClassVar[str] = "arv"

    rule = models.CharField(max_length=40)
    tenant = models.CharField(max_length=63, blank=True)
    enabled = models.BooleanField(null=True)
    """None here and empty below: as the level above says."""
    severity = models.CharField(max_length=10, choices=Severity.choices, blank=True)
    escalate_minutes = models.PositiveIntegerField(null=True)
    values = models.JSONField(default=dict)
    current = models.BooleanField(default=True)
    set_by = models.CharField(max_length=200, blank=True)
    superseded_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "tenant"], condition=Q(current=True), name="operations_rule_current"
            )
        ]


class Channel(Record):
    """A way to tell people: a mailbox, a chat room, a program."""

    id_prefix: ClassVar[str] = "chn"

    name = models.CharField(max_length=60)
    kind = models.CharField(max_length=20)
    config = models.JSONField(default=dict)
    sealed = models.JSONField(default=dict)
    """Secret settings, each sealed by the root key under the context `channel:<id>:<field>`, base64."""
    enabled = models.BooleanField(default=True)
    tenant = models.CharField(max_length=63, blank=True)
    """Slug of the only tenant it hears of; empty for all, and for what is about none."""
    severity = models.CharField(max_length=10, choices=Severity.choices, default=Severity.WARNING)
    """The least that it is told."""
    step = models.PositiveSmallIntegerField(default=1)
    """1 hears at once; later ones when nobody has acknowledged."""
    notices = models.BooleanField(default=False)
    reports = models.BooleanField(default=False)
    per_minute = models.PositiveIntegerField(default=20)
    failing_since = models.DateTimeField(null=True)
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(Lower("name"), name="operations_channel_name")]


class MessageKind(models.TextChoices):
    OPENED = "opened"
    REMINDER = "reminder"
    ESCALATED = "escalated"
    RESOLVED = "resolved"
    NOTICE = "notice"
    REPORT = "report"
    TEST = "test"


class AlertMessage(Record):
    """Something to be said once; its words are made when it is sent, from alerts that may have been cleared since."""

    id_prefix: ClassVar[str] = "msg"

    ALERTS_MAX: ClassVar[int] = 20

    kind = models.CharField(max_length=12, choices=MessageKind.choices)
    rule = models.CharField(max_length=40, blank=True)
    cause = models.CharField(max_length=200, blank=True)
    severity = models.CharField(max_length=10, choices=Severity.choices, default=Severity.INFO)
    alerts = models.JSONField(default=list)
    """Ids of the first ALERTS_MAX that it is about; `count` says of how many."""
    count = models.PositiveIntegerField(default=0)
    content = models.JSONField(default=dict)
    """Of notices and reports: slugs, times and figures, nothing of what tenants keep."""

    class Meta:
        indexes = [models.Index(fields=["rule", "cause", "-id"], name="operations_message_group")]


class DeliveryState(models.TextChoices):
    QUEUED = "queued"
    DELIVERED = "delivered"
    FAILED = "failed"
    DROPPED = "dropped"


class AlertDelivery(Record):
    """One message by one channel, and each try with its outcome: the delivery log."""

    id_prefix: ClassVar[str] = "dlv"

    message = models.ForeignKey(AlertMessage, on_delete=models.CASCADE, related_name="deliveries")
    channel = models.ForeignKey(Channel, null=True, on_delete=models.SET_NULL, related_name="deliveries")
    channel_name = models.CharField(max_length=60)
    state = models.CharField(max_length=12, choices=DeliveryState.choices, default=DeliveryState.QUEUED)
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField()
    claimed_until = models.DateTimeField(null=True)
    """A sender is at it until then; one that dies leaves it to the next."""
    tried_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    log = models.JSONField(default=list)
    """[{"at", "status", "duration_ms", "said"}], one for each try."""

    class Meta:
        indexes = [
            models.Index(fields=["due_at"], condition=Q(state="queued"), name="operations_delivery_due"),
            models.Index(fields=["channel", "-tried_at"], name="operations_delivery_rate"),
        ]
