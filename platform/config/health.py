"""`/health/live`: the process answers. `/health/ready`: it can do its work."""

import logging
import os
import time

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

log = logging.getLogger(__name__)

FRESH_SECONDS = 15.0

_migrated = False
_fresh: tuple[float, dict[str, bool]] = (float("-inf"), {})


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 when the catalogue answers, is migrated, and the data folder can be written; 503 naming what is not.

    `freshness` says whether somebody looks for alerts and every source has a recent backup: with `?fresh` a monitor
    gets 503 when not. A balancer does not ask that: a page that tells of a dead worker must stay reachable.
    Open to everyone, so it names parts and no details; those are in the log.
    """
    checks = {"catalogue": _catalogue(), "data_folder": os.access(settings.LASTRO_DATA, os.W_OK | os.X_OK)}
    ok = all(checks.values())
    freshness = _freshness() if checks["catalogue"] else {}
    if "fresh" in request.GET:
        ok = ok and bool(freshness) and all(freshness.values())
    document = {"status": "ok" if ok else "unready", "checks": checks, "freshness": freshness}
    return JsonResponse(document, status=200 if ok else 503)


def _freshness() -> dict[str, bool]:
    """Asked at most every FRESH_SECONDS by one process, whoever calls how often; empty when it cannot be told."""
    global _fresh
    at, known = _fresh
    if time.monotonic() - at > FRESH_SECONDS:
        from tenants.freshness import freshness_now

        try:
            now = freshness_now()
        except DatabaseError:
            log.exception("the catalogue does not say how fresh everything is")
            return {}
        known = {"watch": not now.watch_silent, "backups": not now.late}
        _fresh = time.monotonic(), known
    return known


def _catalogue() -> bool:
    global _migrated
    try:
        if not _migrated:
            from django.db.migrations.executor import MigrationExecutor

            executor = MigrationExecutor(connection)
            # Asked until it is so: reading all migration files takes too long for every probe.
            _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
            return _migrated
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        log.exception("the catalogue does not answer")
        return False
    return True
