"""Portable archives for download: one tar per backup, in `downloads/<tenant's id>/` of the data folder, for a day.

They hold a tenant's data in clear, so they are readable by Lastro's own account alone, and go with the tenant's keys.
"""

import datetime
import hashlib
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from core import clock
from core.durable import private_folder
from tenants.models import Backup, Tenant

KEPT = datetime.timedelta(hours=24)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """An archive that is there; `sha256` is that of the whole file, in hexadecimal."""

    path: Path
    size: int
    sha256: str


def archive_find(backup: Backup) -> Archive | None:
    """The archive of a backup, if it was made within the last day on this machine."""
    path = _path(backup)
    try:
        told = json.loads(path.with_suffix(".json").read_text())
        found = path.stat()
    except (OSError, ValueError):
        return None
    made = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
    if found.st_size != told["size"] or clock.now() - made > KEPT:
        return None
    return Archive(path, found.st_size, told["sha256"])


def archive_put(backup: Backup, folder: Path) -> Archive:
    """Put the files of an export into the backup's archive; names in order, so that the same files give the same bytes."""
    path = _path(backup)
    draft = path.with_suffix(".draft")
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for each in sorted(folder.rglob("*")):
            tar.add(each, f"{backup.pk}/{each.relative_to(folder)}", recursive=False, filter=_plain)
    digest = hashlib.sha256()
    with draft.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    size = draft.stat().st_size
    path.with_suffix(".json").unlink(missing_ok=True)
    draft.replace(path)
    path.with_suffix(".json").write_text(json.dumps({"size": size, "sha256": digest.hexdigest()}))
    return Archive(path, size, digest.hexdigest())


def archives_clear(tenant: Tenant | None = None) -> int:
    """Remove the archives of one tenant, or all that are older than a day; how many."""
    top = Path(settings.LASTRO_DATA) / "downloads"
    if tenant is not None:
        count = len(list((top / tenant.pk).glob("*.tar")))
        shutil.rmtree(top / tenant.pk, ignore_errors=True)
        return count
    oldest, count = (clock.now() - KEPT).timestamp(), 0
    for path in top.glob("*/*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
            count += path.suffix == ".tar"
    return count


def archive_workplace(backup: Backup) -> Path:
    """A folder beside the archive for the export that it is made of; not there yet."""
    return _path(backup).with_suffix(".files")


def _path(backup: Backup) -> Path:
    return private_folder(Path(settings.LASTRO_DATA) / "downloads" / backup.tenant_id) / f"{backup.pk}.tar"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member
