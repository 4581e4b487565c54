"""`/api/admin/backups…`: the addresses that existing automation knows, in its words and in ours."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.authentication import actor_of
from api.bodies import Body
from api.cursors import page_answer
from api.idempotency import repeatable
from api.permissions import tenants_permitted
from api.resources.backups import NAMES_MAX, BackupView, backup_begin, backup_of, backups_listed
from api.resources.downloads import DownloadView
from api.resources.restores import restore_begin
from api.schema import BETWEEN, LISTED, OBJECT, REPEATABLE, TENANT, answers
from api.views import View, accepted, operation_shown
from core import clock
from core.cli_output import size_text
from engine.plans import MODES
from operations.models import ACTIVE_STATES, Operation, OperationState
from tenants import outputs
from tenants.models import Backup, BackupType, Tenant
from tenants.models.backup import ENDED_STATES
from tenants.previews import estimate
from tenants.selectors import protection_counts
from tenants.services.backups import backups_all_start

RUNNING_MAX = 200

AliasDownloadView = DownloadView


class TriggerBody(Body):
    tenant = shapes.Text(max_length=63, required=False)
    type = shapes.Choice(choices=BackupType.values, default=BackupType.INCREMENTAL)
    sources = shapes.Texts(child=shapes.Text(max_length=63), max_length=NAMES_MAX, default=list)
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


class AliasRestoreBody(Body):
    mode = shapes.Choice(choices=list(MODES), default="full")
    modules = shapes.Texts(child=shapes.Text(max_length=300), max_length=NAMES_MAX, default=list)
    validate_ = shapes.Flag(default=True)
    create_safety_backup = shapes.Flag(default=True)
    target = shapes.Text(max_length=2000, required=False, help_text="KEY=VALUE; needs `admin`")
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


def alias_backup(row: Backup) -> dict[str, Any]:
    """A backup in both vocabularies."""
    shown = outputs.backup(row)
    held = {each["store"] for each in shown["copies"] if each["state"] in ("present", "locked")}
    kinds = {each.copy.store.kind for each in row.copies.all() if each.copy.store.name in held}
    if row.tenant.store.name in held:
        kinds.add(row.tenant.store.kind)
    return {
        **shown,
        "date": shown["timestamp"],
        "size": size_text(row.size_bytes or 0),
        "status": row.state,
        "location": sorted(kinds),
    }


class AliasBackupsView(View):
    @extend_schema(parameters=[*LISTED, TENANT, *BETWEEN], responses=answers(shapes.AliasBackupsShape))
    def get(self, request: Request) -> Response:
        """Backups, newest first."""
        response = page_answer(request, backups_listed(request), alias_backup)
        response.data["backups"] = response.data.pop("data")
        return response


class AliasStatusView(View):
    @extend_schema(parameters=LISTED, responses=answers(OBJECT))
    def get(self, request: Request) -> Response:
        """The newest backup of each tenant by slug, what is under way, and how many sources are protected."""
        limited = tenants_permitted(request)
        rows = Tenant.objects.select_related("store").filter(archived_at=None)
        running = Operation.objects.filter(state__in=(OperationState.QUEUED, *ACTIVE_STATES)).order_by("-id")
        if limited is not None:
            rows, running = rows.filter(slug__in=limited), running.filter(tenant__in=limited)
        response = page_answer(request, rows, lambda tenant: {"tenant": tenant.slug}, key="slug", newest_first=False)
        newest = _newest([each["tenant"] for each in response.data["data"]])
        response.data["tenants"] = [
            {**each, "backup": newest.get(each["tenant"])} for each in response.data.pop("data")
        ]
        response.data["running"] = [operation_shown(each) for each in running[:RUNNING_MAX]]
        if limited is None:
            counts = protection_counts(now=clock.now())
            response.data["metrics"] = {
                "tenants": counts.tenants,
                "sources": counts.sources,
                "unprotected": counts.unprotected,
                "hours": counts.hours,
            }
        return response


def _newest(slugs: list[str]) -> dict[str, dict[str, Any]]:
    """By slug the newest backup; two queries for a page of tenants."""
    from django.db.models import OuterRef, Subquery

    newest = Backup.objects.filter(tenant=OuterRef("pk")).exclude(state__in=ENDED_STATES).order_by("-id")
    ids = Tenant.objects.filter(slug__in=slugs).annotate(newest=Subquery(newest.values("pk")[:1])).values("newest")
    rows = Backup.objects.filter(pk__in=[each["newest"] for each in ids if each["newest"]])
    rows = rows.select_related("tenant__store", "parent").prefetch_related("sources", "copies__copy__store")
    return {row.tenant.slug: alias_backup(row) for row in rows}


class AliasTriggerView(View):
    scopes = {"POST": Scope.BACKUP_WRITE}

    @extend_schema(
        parameters=[REPEATABLE],
        request=TriggerBody,
        responses=answers(shapes.AliasTriggeredShape, status=202, words="Begun"),
    )
    @repeatable()
    def post(self, request: Request) -> Response:
        """Back up one tenant, or without `tenant` every one that the token may touch."""
        given = self.body(TriggerBody)
        backup_id = ""
        if given.get("tenant"):
            whole = {**given, "tags": [], "encrypt": True, "compress": True}
            backup, operation = backup_begin(request, given["tenant"], whole)
            backup_id = backup.pk
        else:
            operation = backups_all_start(
                slugs=tenants_permitted(request), type=given["type"], actor=actor_of(request), reason=given["reason"]
            )
        return _told(operation, backup_id=backup_id, backupId=backup_id, timestamp=outputs.moment(clock.now()))


class AliasBackupView(BackupView):
    pass


class AliasRestoreView(View):
    scopes = {"POST": Scope.RESTORE_WRITE}

    @extend_schema(
        parameters=[REPEATABLE],
        request=AliasRestoreBody,
        responses=answers(shapes.AliasRestoredShape, status=202, words="Begun"),
    )
    @repeatable()
    def post(self, request: Request, backup_id: str) -> Response:
        """Restore the backup in place, whole unless the body says otherwise; the scope is the confirmation."""
        given = self.body(AliasRestoreBody)
        backup = backup_of(request, backup_id, usable=True)
        targets = [given["target"]] if given.get("target") else []
        wish = {
            "backup": backup.pk, "mode": given["mode"], "modules": given["modules"], "sources": [], "policies": [],
            "clocks": [], "targets": targets, "validate": given["validate"], "reason": given["reason"],
            "safety_backup": given["create_safety_backup"],
        }  # fmt: skip
        _, operation = restore_begin(request, wish)
        names = [each.name for each in backup.sources.all()]
        seconds = estimate(backup.tenant, names, backup.pk, mode=given["mode"], in_place=not targets)["seconds"]
        return _told(
            operation,
            message=f"the restore of {backup.tenant.slug} has begun; follow the operation",
            estimatedTime=seconds,
        )


def _told(operation: Operation, **more: Any) -> Response:
    response = accepted(operation)
    response.data = {"success": True, **more, "operation": response.data}
    return response
