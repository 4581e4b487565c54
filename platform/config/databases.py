"""Where the catalogue lives: SQLite in the data folder, or PostgreSQL by a URL."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

SQLITE_BUSY_SECONDS = 20
CONNECTION_AGE_SECONDS = 300

# WAL lets readers and one writer work at once. synchronous=NORMAL may lose the last commits of the catalogue in
# a power cut, never its consistency. That is acceptable here and nowhere else: a backup is acknowledged by its
# signed manifest, which is synced in the store, and a row that was lost is found again there; FULL would cost an
# fsync for every heartbeat and progress row.
_SQLITE_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit=67108864"


def catalogue_database(url: str, data: Path) -> dict[str, Any]:
    """Give Django's settings of the catalogue. Raises ImproperlyConfigured without repeating the URL."""
    if not url:
        return _sqlite(data / "catalogue.sqlite3")
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _sqlite(Path(unquote(parts.path)))
    if parts.scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured("LASTRO_DATABASE_URL must begin with postgresql:// or sqlite://")
    try:
        port = str(parts.port or "")
    except ValueError as error:
        raise ImproperlyConfigured("LASTRO_DATABASE_URL: the port is not a number") from error
    options = {"connect_timeout": 10, "application_name": "lastro", **dict(parse_qsl(parts.query))}
    host = options.pop("host", "") or unquote(parts.hostname or "")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.removeprefix("/")) or "lastro",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": port,
        "CONN_MAX_AGE": CONNECTION_AGE_SECONDS,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options,
    }


def _sqlite(path: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "CONN_MAX_AGE": CONNECTION_AGE_SECONDS,
        "OPTIONS": {
            "timeout": SQLITE_BUSY_SECONDS,
            # A deferred transaction that turns writer fails at once with "database is locked"; an immediate one waits.
            "transaction_mode": "IMMEDIATE",
            "init_command": _SQLITE_PRAGMAS,
        },
        # On disk: several threads write, and a shared in-memory database locks whole tables without waiting.
        "TEST": {"NAME": str(path.with_name("catalogue-test.sqlite3"))},
    }
