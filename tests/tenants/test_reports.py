"""The printed proof of a restore: whole in one file, and nothing in it can run."""

import re

from core.cli_output import to_json
from tenants.models import Tenant
from tenants.reports import restore_report_html
from tenants.restore_outputs import restore as restore_json
from tests.tenants.conftest import House


def test_the_report_proves_and_escapes(house: House) -> None:
    """Goal: one page says what was done, checked and by whom; give names and reasons that would break a careless page."""
    tenant = house.tenant()
    Tenant.objects.filter(pk=tenant.pk).update(name="<script>alert(1)</script> & Söhne")
    folder = house.folder(house.files(tenant, **{"<img src=x>": "one"}))
    house.database(tenant)
    backup = house.backup(tenant)
    (folder / "<img src=x>").write_text("changed")
    restore = house.restore(backup)
    page = restore_report_html(restore)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; Söhne" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)
    for needed in (restore.pk, backup.pk, restore.safety_backup_id, "Passed", "Checksums", "Time to restore", "users"):
        assert str(needed) in page


def test_a_restore_that_failed_has_a_report_too(house: House) -> None:
    """Goal: failures are evidence as well; restore from a backup whose manifest is another one."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    type(backup).objects.filter(pk=backup.pk).update(manifest_sha256="0" * 64)
    restore = house.restore(backup, ok=False)
    page = restore_report_html(restore)
    assert "Failed" in page
    assert "not the one that backup" in page


def test_the_validation_record(house: House) -> None:
    """Goal: the record has the agreed fields and the four checks by name; restore files and a database."""
    tenant = house.tenant()
    house.files(tenant)
    house.database(tenant)
    backup = house.backup(tenant)
    restore = house.restore(backup)
    record = restore_json(restore)["validation_record"]
    assert set(record) == {
        "id", "tenant_id", "backup_id", "timestamp", "duration_ms", "checks", "status", "report",
    }  # fmt: skip
    assert (record["tenant_id"], record["backup_id"], record["status"]) == (tenant.pk, backup.pk, "passed")
    assert list(record["checks"]) == [
        "checksum_verification", "data_integrity", "schema_compatibility", "asset_completeness",
    ]  # fmt: skip
    checksums = record["checks"]["checksum_verification"]
    assert set(checksums["expected"]) <= {"assets", "db"}
    assert checksums["expected"] == checksums["actual"]
    assert record["report"]["time_to_restore_ms"] == restore.duration_ms
    assert to_json(record)
    unvalidated = house.restore(backup, validate=False)
    assert restore_json(unvalidated)["validation_record"] is None
