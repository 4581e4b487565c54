"""Object Lock of S3: dates of retention on the newest version of an object."""

import datetime
from collections.abc import Mapping
from typing import Any

from engine.errors import ObjectLocked
from stores._s3.config import S3Config

MODES = {"governance": "GOVERNANCE", "compliance": "COMPLIANCE"}


def lock_parameters(config: S3Config, until: datetime.datetime) -> dict[str, Any]:
    """What a put sends along to lock its object until then; governance where the store has no mode of its own."""
    return {"ObjectLockMode": MODES.get(config.lock_mode, "GOVERNANCE"), "ObjectLockRetainUntilDate": until}


def lock_of(head: Mapping[str, Any]) -> datetime.datetime | None:
    """Until when the object of a HEAD's answer is locked; None when it is not, or not any more."""
    until: datetime.datetime | None = head.get("ObjectLockRetainUntilDate")
    if until is None:
        return None
    until = until.astimezone(datetime.UTC)
    return until if until > datetime.datetime.now(datetime.UTC) else None


def locked(key: str, until: datetime.datetime) -> ObjectLocked:
    """The error that names the date."""
    return ObjectLocked(
        f"{key} is locked until {until:%Y-%m-%d %H:%M} UTC", hint="nothing can delete it before", until=until
    )


def version_of(head: Mapping[str, Any]) -> dict[str, str]:
    """The parameter that names the version of a HEAD's answer; none in a bucket without versions."""
    return {"VersionId": head["VersionId"]} if head.get("VersionId") else {}
