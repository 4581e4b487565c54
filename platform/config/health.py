"""`/health/live`: the process answers. `/health/ready`: it can do its work."""

import logging
import os

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

log = logging.getLogger(__name__)

_migrated = False


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 when the catalogue answers, is migrated, and the data folder can be written; 503 naming what is not.

    Open to everyone, so it names parts and no details; those are in the log.
    """
    checks = {"catalogue": _catalogue(), "data_folder": os.access(settings.LASTRO_DATA, os.W_OK | os.X_OK)}
    ok = all(checks.values())
    return JsonResponse({"status": "ok" if ok else "unready", "checks": checks}, status=200 if ok else 503)


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
