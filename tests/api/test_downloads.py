"""Fetching a backup as a file."""

import datetime
import hashlib
import io
import tarfile
from pathlib import Path

from core import clock
from operations.services import operation_run
from tenants.archives import archives_clear
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


def test_what_is_gone_is_gone(desk: Desk) -> None:
    """Goal: 410 for a backup that was ended."""
    from tenants.models import Backup

    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    Backup.objects.filter(pk=backup.pk).update(state="deleted")
    answer = desk.asker("admin").get(f"/api/v1/backups/{backup.pk}/download")
    assert (answer.status_code, answer.json()["code"]) == (410, "backup.gone")
