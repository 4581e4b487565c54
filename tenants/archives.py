"""Portable archives for download: one tar per backup, in `downloads/<tenant's id>/` of the data folder, for a day.

They hold a tenant's data in clear, so they are readable by Lastro's own account alone, and go with the tenant's keys.
"""

import datetime
import hashlib
import json
import os
import secrets
import shutil
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from core import clock
from core.durable import private_folder
from engine.errors import TargetFull
from tenants.models import Backup, Tenant

KEPT = datetime.timedelta(hours=24)
FREE_BYTES_MIN, FREE_SHARE_MIN = 10 << 30, 0.1
"""The smaller of the two stays free: the catalogue and many a store lie on the same disk, and fetching must stop neither."""


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
    # Of two who made it at once, one put the file there and the other what is said of it.
    if (told["size"], told.get("inode")) != (found.st_size, found.st_ino) or clock.now() - made > KEPT:
        return None
    return Archive(path, found.st_size, told["sha256"])


def archive_room_checked(backup: Backup) -> None:
    """Raise TargetFull when the files, and the archive that is made of them, would leave too little of the disk."""
    disk = shutil.disk_usage(_path(backup).parent)
    kept = min(FREE_BYTES_MIN, int(disk.total * FREE_SHARE_MIN))
    if disk.free - 2 * (backup.size_bytes or 0) < kept:
        raise TargetFull(
            f"an archive of backup {backup.pk} would leave less than {kept} bytes of the disk free",
            hint="archives go a day after they were made; or write the files elsewhere: backup export",
        )


def archive_put(backup: Backup, folder: Path) -> Archive:
    """Put the files of an export into the backup's archive; names in order, so that the same files give the same bytes."""
    path = _path(backup)
    told = path.with_suffix(".json")
    # A name of its own: who has lost the lease may still be writing.
    draft = path.with_suffix(f".{secrets.token_hex(8)}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for each in sorted(folder.rglob("*")):
                    tar.add(each, f"{backup.pk}/{each.relative_to(folder)}", recursive=False, filter=_plain)
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = os.fstat(file.fileno())
        told.unlink(missing_ok=True)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    told.write_text(json.dumps({"size": found.st_size, "sha256": digest, "inode": found.st_ino}))
    return Archive(path, found.st_size, digest)


def archives_clear(tenant: Tenant | None = None) -> int:
    """Remove the archives of one tenant, or all that are older than a day; how many.

    What a killed worker left goes by the same term: files of an export and drafts hold the same data in clear.
    """
    top = Path(settings.LASTRO_DATA) / "downloads"
    if tenant is not None:
        count = len(list((top / tenant.pk).glob("*.tar")))
        shutil.rmtree(top / tenant.pk, ignore_errors=True)
        return count
    oldest, count = (clock.now() - KEPT).timestamp(), 0
    for path in top.glob("*/*"):
        with suppress(FileNotFoundError):  # Another worker clears, too.
            if _touched(path) < oldest:
                _remove(path)
                count += path.suffix == ".tar"
    return count


def archive_workplace(backup: Backup, operation_id: str) -> Path:
    """A folder beside the archive for the export that it is made of; not there yet. Those of former tries are removed.

    Call it under the lease of the tenant.
    """
    path = _path(backup)
    for left in path.parent.glob(f"*{backup.pk}.*.files*"):
        _remove(left)
    return path.with_suffix(f".{operation_id}.files")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _touched(path: Path) -> float:
    """When it, or anything in it, was written last."""
    within = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return max(each.lstat().st_mtime for each in (path, *within))


def _path(backup: Backup) -> Path:
    return private_folder(Path(settings.LASTRO_DATA) / "downloads" / backup.tenant_id) / f"{backup.pk}.tar"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member
