"""Stores that the environment names on the first start."""

import json
from pathlib import Path

import pytest
from django.conf import LazySettings

from config.environment import read
from core import sealing
from engine.errors import UsageError
from stores._gcs.config import GcsConfig
from tenants.models import StoreConfig
from tenants.services.stores import store_default

VARIABLES = {
    "AWS_S3_BUCKET": "my-backups",
    "AWS_REGION": "eu-south-1",
    "GCS_BUCKET": "other-backups",
    "GCS_PROJECT_ID": "p1",
}


@pytest.mark.django_db
def test_they_become_stores_once(settings: LazySettings, tmp_path: Path) -> None:
    """Goal: an older set-up goes on; start with its variables, look at the rows, start again with others."""
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "service_account"}))
    settings.INHERITED_STORES = read({**VARIABLES, "GCS_KEY_FILE": str(key)}).inherited_stores
    store_default()
    rows = {row.name: row for row in StoreConfig.objects.all()}
    assert set(rows) == {"default", "s3", "gcs"}
    assert rows["s3"].config == {"bucket": "my-backups", "region": "eu-south-1"}
    assert rows["gcs"].config == {"bucket": "other-backups", "project": "p1"}
    assert "service_account" not in str(rows["gcs"].sealed)
    opened = sealing.config_of(GcsConfig, rows["gcs"].config, rows["gcs"].sealed, owner=f"store:{rows['gcs'].pk}")
    assert opened.key == key.read_text()
    assert not rows["s3"].tested
    StoreConfig.objects.filter(name="s3").delete()
    store_default()
    assert not StoreConfig.objects.filter(name="s3").exists()


@pytest.mark.django_db
@pytest.mark.parametrize("wrong", [{"GCS_KEY_FILE": "/no/such/file"}, {"AWS_S3_BUCKET": "NO"}, {"AWS_REGION": "?"}])
def test_what_cannot_be_right_stops_the_first_start(wrong: dict[str, str], settings: LazySettings) -> None:
    """Goal: no copy is missed in silence; start with a key file that is missing, and with wrong names."""
    settings.INHERITED_STORES = read({**VARIABLES, **wrong}).inherited_stores
    with pytest.raises(UsageError, match=next(iter(wrong))):
        store_default()
    assert not StoreConfig.objects.exists()


def test_nothing_is_inherited_without_a_bucket() -> None:
    """Goal: a region alone, which many hosts set, makes no store."""
    assert read({"AWS_REGION": "eu-south-1", "GCS_PROJECT_ID": "p"}).inherited_stores == {}
