"""Lastro's own settings: read once from the environment, typed, documented in docs/settings.md.

Every setting has one `_Reader` call below. A secret may be given in a file by NAME_FILE instead of NAME.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

from django.core.exceptions import ImproperlyConfigured

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


@dataclass(frozen=True)
class Environment:
    """The values, checked for shape; `config.checks` judges their sense."""

    data: Path
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    stop_seconds: int
    secret_key: str = field(repr=False)
    root_key: str = field(repr=False)
    root_key_old: str = field(repr=False)
    kms_key_id: str
    kms_endpoint: str
    kms_region: str
    four_eyes: tuple[str, ...]
    approval_hours: int
    allowed_hosts: tuple[str, ...]
    trusted_origins: tuple[str, ...]
    tls: bool
    behind_proxy: bool
    debug: bool
    workers: int
    heartbeat_seconds: int
    hook_commands: str
    drill_folder: str
    drill_dsn: str = field(repr=False)
    session_hours: int
    plan_hours: int
    undo_days: int
    history_days: int
    evidence_days: int
    trash_days: int
    retention_zone: str
    schedule_runs_max: int
    inherited_schedule: str
    """When backups are taken unless an operator says otherwise, from a variable that is not Lastro's own; first start only."""
    audit_checkpoint_entries: int
    audit_checkpoint_minutes: int
    audit_witness: tuple[str, ...]
    audit_syslog: str
    audit_syslog_format: str
    audit_syslog_ca: str
    audit_syslog_certificate: str
    metrics_token: str = field(repr=False)
    metrics_allow: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    metrics_tenants: int
    metrics_seconds: int
    log_level: str
    log_stderr: bool
    outgoing_allow: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    smtp_url: str = field(repr=False)
    ping_url: str = field(repr=False)
    public_url: str
    inherited_channels: Mapping[str, str] = field(repr=False)
    """What channels are made of on the first start, from variables that are not Lastro's own."""
    inherited_stores: Mapping[str, Mapping[str, str]]
    """Settings of stores by kind, from variables that are not Lastro's own; used on the first start only."""


class _Reader:
    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str, default: str = "") -> str:
        return self._variables.get(name, "").strip() or default

    def secret(self, name: str) -> str:
        """NAME itself or the content of the file that NAME_FILE names, never both."""
        value, path = self._variables.get(name, "").strip(), self._variables.get(f"{name}_FILE", "").strip()
        if value and path:
            raise ImproperlyConfigured(f"{name} and {name}_FILE are both set; keep one")
        if not path:
            return value
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ImproperlyConfigured(f"{name}_FILE: cannot read {path}: {error}") from error
        if not value:
            raise ImproperlyConfigured(f"{name}_FILE: {path} is empty")
        return value

    def flag(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in _TRUE | _FALSE:
            raise ImproperlyConfigured(f"{name}: {value!r} is not yes or no; use 1 or 0")
        return value in _TRUE

    def number(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self.text(name, str(default))
        if not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
            raise ImproperlyConfigured(f"{name}: {value!r} is not a whole number from {least} to {most}")
        return int(value)

    def zone(self, name: str, default: str) -> str:
        value = self.text(name, default)
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ImproperlyConfigured(f"{name}: there is no time zone {value!r}; for example Europe/Lisbon") from error
        return value

    def names(self, name: str, default: str = "") -> tuple[str, ...]:
        return tuple(part for part in (part.strip() for part in self.text(name, default).split(",")) if part)

    def networks(self, name: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        found = []
        for part in self.names(name):
            try:
                found.append(ipaddress.ip_network(part, strict=False))
            except ValueError:
                raise ImproperlyConfigured(
                    f"{name}: {part!r} is no address or network; for example 10.1.2.0/24"
                ) from None
        return tuple(found)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default).upper()
        if value not in choices:
            raise ImproperlyConfigured(f"{name}: {value!r} is not one of {', '.join(choices)}")
        return value


def read(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the settings. Raises ImproperlyConfigured naming the variable that cannot be right."""
    reader = _Reader(variables)
    return Environment(
        data=Path(reader.text("LASTRO_DATA", "var")).expanduser().absolute(),
        database_url=reader.secret("LASTRO_DATABASE_URL"),
        redis_url=_redis_url(reader),
        stop_seconds=reader.number("LASTRO_STOP_SECONDS", 60, least=1, most=86_400),
        secret_key=reader.secret("LASTRO_SECRET_KEY"),
        root_key=reader.secret("LASTRO_ROOT_KEY"),
        root_key_old=reader.secret("LASTRO_ROOT_KEY_OLD"),
        kms_key_id=reader.text("LASTRO_KMS_KEY_ID"),
        kms_endpoint=reader.text("LASTRO_KMS_ENDPOINT"),
        kms_region=reader.text("LASTRO_KMS_REGION"),
        four_eyes=reader.names("LASTRO_FOUR_EYES"),
        approval_hours=reader.number("LASTRO_APPROVAL_HOURS", 24, least=1, most=720),
        allowed_hosts=reader.names("LASTRO_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]"),
        trusted_origins=reader.names("LASTRO_TRUSTED_ORIGINS"),
        tls=reader.flag("LASTRO_TLS"),
        behind_proxy=reader.flag("LASTRO_BEHIND_PROXY"),
        debug=reader.flag("LASTRO_DEBUG"),
        workers=reader.number("LASTRO_WORKERS", os.cpu_count() or 1, least=1, most=256),
        heartbeat_seconds=reader.number("LASTRO_HEARTBEAT_SECONDS", 15, least=1, most=600),
        drill_folder=reader.text("LASTRO_DRILL_FOLDER"),
        drill_dsn=reader.secret("LASTRO_DRILL_DSN"),
        hook_commands=reader.text("LASTRO_HOOK_COMMANDS"),
        session_hours=reader.number("LASTRO_SESSION_HOURS", 12, least=1, most=720),
        plan_hours=reader.number("LASTRO_PLAN_HOURS", 24, least=1, most=720),
        undo_days=reader.number("LASTRO_UNDO_DAYS", 30, least=1, most=3_650),
        history_days=reader.number("LASTRO_HISTORY_DAYS", 90, least=7, most=36_500),
        evidence_days=reader.number("LASTRO_EVIDENCE_DAYS", 730, least=30, most=36_500),
        trash_days=reader.number("LASTRO_TRASH_DAYS", 7, least=0, most=3_650),
        retention_zone=reader.zone("LASTRO_RETENTION_ZONE", "UTC"),
        schedule_runs_max=reader.number("LASTRO_SCHEDULE_RUNS_MAX", 32, least=1, most=1_000),
        inherited_schedule=reader.text("BACKUP_SCHEDULE"),
        audit_checkpoint_entries=reader.number("LASTRO_AUDIT_CHECKPOINT_ENTRIES", 1_000, least=10, most=100_000),
        audit_checkpoint_minutes=reader.number("LASTRO_AUDIT_CHECKPOINT_MINUTES", 60, least=1, most=10_080),
        audit_witness=reader.names("LASTRO_AUDIT_WITNESS"),
        audit_syslog=reader.text("LASTRO_AUDIT_SYSLOG"),
        audit_syslog_format=reader.choice("LASTRO_AUDIT_SYSLOG_FORMAT", "RFC5424", ("RFC5424", "CEF")),
        audit_syslog_ca=reader.text("LASTRO_AUDIT_SYSLOG_CA"),
        audit_syslog_certificate=reader.text("LASTRO_AUDIT_SYSLOG_CERTIFICATE"),
        metrics_token=reader.secret("LASTRO_METRICS_TOKEN"),
        metrics_allow=reader.networks("LASTRO_METRICS_ALLOW"),
        metrics_tenants=reader.number("LASTRO_METRICS_TENANTS", 200, least=0, most=5_000),
        metrics_seconds=reader.number("LASTRO_METRICS_SECONDS", 15, least=1, most=600),
        log_level=reader.choice("LASTRO_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
        log_stderr=reader.flag("LASTRO_LOG_STDERR"),
        outgoing_allow=reader.networks("LASTRO_OUTGOING_ALLOW"),
        smtp_url=reader.secret("LASTRO_SMTP_URL"),
        ping_url=reader.secret("LASTRO_PING_URL"),
        public_url=reader.text("LASTRO_PUBLIC_URL").rstrip("/"),
        inherited_channels={
            "email": reader.text("BACKUP_NOTIFY_EMAIL"),
            "slack": reader.text("SLACK_WEBHOOK_URL"),
        },
        inherited_stores=_inherited_stores(reader),
    )


def _redis_url(reader: _Reader) -> str:
    url = reader.secret("LASTRO_REDIS_URL")
    if url and not url.startswith(("redis://", "rediss://", "unix://")):
        raise ImproperlyConfigured("LASTRO_REDIS_URL must begin with redis://, rediss:// or unix://")
    return url


def _inherited_stores(reader: _Reader) -> Mapping[str, Mapping[str, str]]:
    key_file = reader.text("GCS_KEY_FILE")
    wanted = {
        "s3": {"bucket": reader.text("AWS_S3_BUCKET"), "region": reader.text("AWS_REGION")},
        "gcs": {
            "bucket": reader.text("GCS_BUCKET"),
            "project": reader.text("GCS_PROJECT_ID"),
            "key": f"@{key_file}" if key_file else "",
        },
    }
    return {
        kind: {name: value for name, value in values.items() if value}
        for kind, values in wanted.items()
        if values["bucket"]
    }
