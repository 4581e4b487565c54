"""Fetching a backup as a file."""

import datetime
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from core import clock
from engine.errors import TargetFull
from operations.minutely import minute
from operations.models import Operation
from operations.services import operation_run
from tenants.archives import archive_find, archive_put, archive_room_checked, archive_workplace, archives_clear
from tenants.models import Backup
from tests.api.conftest import Desk


def test_an_archive_is_fetched_whole_and_in_parts(desk: Desk, monkeypatch: object) -> None:
    """Goal: the bytes of the files, hash-checked, resumable; fetch whole, in three ranges, and beyond its end."""
    tenant = desk.house.tenant()
    desk.house.files(tenant, a="one", b="two" * 1000)
    backup = desk.house.backup(tenant)
    ask = desk.asker("restore:write")
    address = f"/api/v1/backups/{backup.pk}/download"
    whole = ask.get(address)
    content = whole.getvalue()
    tag = whole.headers["ETag"]
    assert tag == f'"{hashlib.sha256(content).hexdigest()}"'
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = {each.name.partition("/")[2] for each in tar.getmembers()}
    assert {"manifest.json", "SHA256SUMS", "assets.tar.gz"} <= names
    cut = len(content) // 3
    parts = [ask.get(address, Range=f"bytes={first}-{last}", If_Range=tag) for first, last in
             ((0, cut - 1), (cut, 2 * cut - 1), (2 * cut, ""))]  # fmt: skip
    assert [each.status_code for each in parts] == [206] * 3
    assert b"".join(each.getvalue() for each in parts) == content
    assert ask.get(address, Range="bytes=-10").getvalue() == content[-10:]
    assert ask.get(address, Range=f"bytes={len(content)}-").status_code == 416
    changed = ask.get(address, Range="bytes=0-9", If_Range='"other"')
    assert (changed.status_code, changed.getvalue()) == (200, content)
    assert ask.get(f"/api/admin/backups/{backup.pk}/download/").getvalue() == content


def test_a_large_archive_is_made_by_a_worker(desk: Desk, monkeypatch: object) -> None:
    """Goal: no request waits for hours; let nothing be small enough, run what the worker would, ask again."""
    import api.resources.downloads as downloads

    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    ask = desk.asker("restore:write")
    before, downloads.AT_ONCE_BYTES = downloads.AT_ONCE_BYTES, -1
    try:
        begun = ask.get(f"/api/v1/backups/{backup.pk}/download")
        assert begun.status_code == 202
        again = ask.get(f"/api/v1/backups/{backup.pk}/download")
        assert (again.status_code, again.json()["id"]) == (202, begun.json()["id"]), "polling queues nothing more"
        assert Operation.objects.filter(kind="archive").count() == 1
        operation_run(begun.json()["id"])
        assert ask.get(f"/api/v1/backups/{backup.pk}/download").status_code == 200
    finally:
        downloads.AT_ONCE_BYTES = before


def test_archives_go_after_a_day_and_with_the_tenant(desk: Desk) -> None:
    """Goal: no clear copy stays; only Lastro's account reads it; let a day go by, and remove a tenant's."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    ask = desk.asker("restore:write")
    ask.get(f"/api/v1/backups/{backup.pk}/download").getvalue()
    (path,) = Path(desk.house.data).glob("downloads/*/*.tar")
    assert path.stat().st_mode & 0o77 == 0
    assert path.parent.stat().st_mode & 0o77 == 0
    assert archives_clear() == 0
    with clock.held(clock.now() + datetime.timedelta(hours=25)):
        assert archives_clear() == 1
    assert not path.exists()
    ask.get(f"/api/v1/backups/{backup.pk}/download").getvalue()
    assert archives_clear(tenant) == 1
    assert not path.exists()


def test_what_a_killed_worker_left_goes_too_and_stops_nobody(desk: Desk) -> None:
    """Goal: clear data ends by its term whatever happened; leave an export's folders and a draft, let a day go by."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    folder = archive_workplace(backup, "opr_killed")
    for left in (folder, folder.with_name(f".{folder.name}.opr_killed")):
        left.mkdir()
        (left / "rows.sql").write_text("clear")
    (folder.parent / f"{backup.pk}.00.draft").write_text("clear")
    assert minute() == {}
    assert len(list(folder.parent.iterdir())) == 3, "somebody may still be at it"
    with clock.held(clock.now() + datetime.timedelta(hours=25)):
        assert minute() == {}
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    assert not archive_workplace(backup, "opr_next").exists()
    assert not folder.exists(), "who does it again clears at once"


def test_two_who_make_an_archive_at_once_do_not_spoil_it(desk: Desk, tmp_path: Path) -> None:
    """Goal: never the bytes of one with the checksum of the other; let one lie down between its two files."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    for name, text in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    slow = archive_put(backup, tmp_path / "a")
    told = slow.path.with_suffix(".json").read_text()
    kept = slow.path.open("rb")  # So that its inode is not given away again.
    fast = archive_put(backup, tmp_path / "b")
    assert (archive_find(backup), slow.size) == (fast, fast.size)
    slow.path.with_suffix(".json").write_text(told)
    assert archive_find(backup) is None
    kept.close()
    assert [each.name for each in slow.path.parent.glob("*.draft")] == []
    assert os.stat(slow.path).st_mode & 0o77 == 0


def test_an_archive_leaves_room_on_the_disk(desk: Desk) -> None:
    """Goal: no token fills the disk that the catalogue lies on; ask for one of which the disk cannot hold two."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    archive_room_checked(backup)
    status = os.statvfs(desk.house.data)
    Backup.objects.filter(pk=backup.pk).update(size_bytes=status.f_bavail * status.f_frsize // 2)
    backup.refresh_from_db()
    with pytest.raises(TargetFull, match="of the disk free"):
        archive_room_checked(backup)
    begun = desk.asker("restore:write").get(f"/api/v1/backups/{backup.pk}/download")
    assert (operation_run(begun.json()["id"]).error or {})["code"] == "target.full"


def test_what_is_gone_is_gone(desk: Desk) -> None:
    """Goal: 410 for a backup that was ended."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    Backup.objects.filter(pk=backup.pk).update(state="deleted")
    answer = desk.asker("admin").get(f"/api/v1/backups/{backup.pk}/download")
    assert (answer.status_code, answer.json()["code"]) == (410, "backup.gone")
