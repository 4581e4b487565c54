"""Checks of the settings, with ids and hints; `manage.py check` and the server's start run them."""

import sqlite3
import stat
from pathlib import Path

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from config.settings import ENVIRONMENT
from engine.errors import LastroError

# "The WAL-reset bug", https://www.sqlite.org/wal.html: two connections that checkpoint at the same instant can
# damage a database in WAL mode. Fixed in 3.51.3 and in these older lines.
_SQLITE_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

FOUR_EYES_AREAS = ("audit", "keys", "restores", "retention", "stores")
_LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}


def run() -> list[CheckMessage]:
    """Everything that is wrong or unwise in any installation."""
    return [*_data_folder(), *_keys(), *_hook_commands(), *_outgoing(), *_audit()]


def run_deployment() -> list[CheckMessage]:
    """What `check --deploy` asks for besides."""
    return [*_debug(), *_plain_http(), *sqlite()]


def _data_folder() -> list[CheckMessage]:
    mode = stat.S_IMODE(settings.LASTRO_DATA.stat().st_mode)
    if mode & 0o077:
        return [
            Warning(
                f"{settings.LASTRO_DATA} is open to others (mode {mode:04o}); keys and catalogue lie in it",
                hint=f"chmod 700 {settings.LASTRO_DATA}",
                id="lastro.W001",
            )
        ]
    return []


def _audit() -> list[CheckMessage]:
    from audit.syslog import receiver_read

    found: list[CheckMessage] = []
    try:
        if settings.LASTRO_AUDIT_SYSLOG:
            receiver_read(settings.LASTRO_AUDIT_SYSLOG)
    except LastroError as error:
        found.append(Error(error.message, hint=error.hint, id="lastro.E010"))
    for name in settings.LASTRO_AUDIT_WITNESS:
        if not name.startswith(("store:", "https://", "http://")):
            said = f"LASTRO_AUDIT_WITNESS: {name[:80]!r} is no witness: nobody receives the checkpoints"
            found.append(Error(said, hint="store:NAME or https://…", id="lastro.E011"))
    return found


def _hook_commands() -> list[CheckMessage]:
    if not settings.LASTRO_HOOK_COMMANDS:
        return []
    from operations.hook_actions import commands_read

    try:
        commands_read(Path(settings.LASTRO_HOOK_COMMANDS))
    except LastroError as error:
        return [Error(error.message, hint=error.hint, id="lastro.E002")]
    return []


def _outgoing() -> list[CheckMessage]:
    """Addresses that are used at night, judged by day."""
    from core.outgoing import Reach, url_checked
    from operations.alerting.channels.mail import smtp_url_read

    found: list[CheckMessage] = []
    try:
        if settings.LASTRO_SMTP_URL:
            smtp_url_read(settings.LASTRO_SMTP_URL)
    except LastroError as error:
        found.append(Error(error.message, hint=error.hint, id="lastro.E004"))
    for name in ("LASTRO_PING_URL", "LASTRO_PUBLIC_URL"):
        try:
            if text := getattr(settings, name):
                url_checked(text, reach=Reach.HOUSE)
        except LastroError as error:
            found.append(Error(f"{name}: {error.message}", hint=error.hint, id="lastro.E005"))
    return found


def _keys() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if ENVIRONMENT.root_key:
        from engine.keys import RootKey

        try:
            RootKey.from_text(ENVIRONMENT.root_key)
        except LastroError as error:
            found.append(Error(f"LASTRO_ROOT_KEY: {error.message}", hint=error.hint, id="lastro.E001"))
    unknown = sorted(set(ENVIRONMENT.four_eyes) - set(FOUR_EYES_AREAS))
    if unknown:
        message = f"LASTRO_FOUR_EYES names {unknown[0]!r}, which nothing asks for: it protects nothing"
        found.append(Error(message, hint=f"known: {', '.join(FOUR_EYES_AREAS)}", id="lastro.E003"))
    shared_root = ENVIRONMENT.root_key or ENVIRONMENT.kms_key_id
    if ENVIRONMENT.database_url.startswith("postgres") and not (ENVIRONMENT.secret_key and shared_root):
        found.append(
            Warning(
                "the catalogue can be shared by several hosts, but a key is kept in this host's data folder",
                hint="give LASTRO_SECRET_KEY_FILE and LASTRO_ROOT_KEY_FILE (or LASTRO_KMS_KEY_ID), the same on every host",
                id="lastro.W002",
            )
        )
    return found


def sqlite() -> list[CheckMessage]:
    """The library's version; also asked by `doctor`. Not part of every command: the operator can rarely change it."""
    version = sqlite3.sqlite_version_info
    if not settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        return []
    if version >= _SQLITE_FIXED[0] or any(version[:2] == fixed[:2] and version >= fixed for fixed in _SQLITE_FIXED):
        return []
    return [
        Warning(
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug, which can damage a catalogue written by several workers",
            hint="use a Python with SQLite 3.51.3 or later, or a PostgreSQL catalogue (LASTRO_DATABASE_URL)",
            id="lastro.W003",
        )
    ]


def _debug() -> list[CheckMessage]:
    if not ENVIRONMENT.debug:
        return []
    return [Error("LASTRO_DEBUG shows settings and code to visitors", hint="unset it", id="lastro.E002")]


def _plain_http() -> list[CheckMessage]:
    if ENVIRONMENT.tls or set(ENVIRONMENT.allowed_hosts) <= _LOCAL_HOSTS:
        return []
    return [
        Warning(
            "other hosts reach this one without TLS: passwords and tokens can be read on the way",
            hint="terminate TLS in front, then set LASTRO_TLS=1 and LASTRO_BEHIND_PROXY=1",
            id="lastro.W004",
        )
    ]
