"""Stores that the environment of an older set-up names become rows on the first start, and are ordinary stores from then on."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings

from core import sealing
from engine.adapters import parse_config
from engine.errors import LastroError, UsageError
from tenants import wiring
from tenants.models import StoreConfig


def inherited_stores() -> list[StoreConfig]:
    """The rows, unsaved; nothing is asked over the network, so that they are tested when they are first used.

    Raises UsageError for what cannot be right, naming the variables.
    """
    named: Mapping[str, Mapping[str, str]] = settings.INHERITED_STORES
    return [_row(kind, values) for kind, values in named.items()]


def _row(kind: str, values: Mapping[str, str]) -> StoreConfig:
    adapter: Any = wiring.store_kind(kind)
    try:
        config = parse_config(adapter.Config, sealing.resolved(adapter.Config, values))
    except LastroError as error:
        variables = {"s3": "AWS_S3_BUCKET, AWS_REGION", "gcs": "GCS_BUCKET, GCS_PROJECT_ID, GCS_KEY_FILE"}[kind]
        raise UsageError(
            f"the environment ({variables}): {error.message}", hint="set them right or unset them; nothing was made yet"
        ) from error
    row = StoreConfig(name=kind, kind=kind)
    kept = sealing.seal(adapter.Config, sealing.given(adapter.Config, config, values), owner=f"store:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed
    return row
