"""`/backups`: recovery points."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.authentication import actor_of, token_of
from api.bodies import Body
from api.cursors import between, chosen, page_answer
from api.idempotency import repeatable
from api.permissions import ScopeMissing, permitted, refused, tenants_permitted
from api.resources.tenants import tenant_of
from api.schema import BETWEEN, LISTED, OBJECT, REPEATABLE, TENANT, accepts, answers, states
from api.views import View, accepted, read_recorded
from core.errors import Conflict
from tenants import outputs, reading, wiring
from tenants.models import Backup, BackupState, BackupType
from tenants.selectors import backup_get, backup_usable
from tenants.services.backups import BackupWish, backup_delete_start, backup_hold, backup_start, backup_verify_start
from tenants.services.comparing import backups_compare

NAMES_MAX = 100
COMPARED_BYTES_MAX = 2 << 30
"""A comparison may have to read both backups, and keeps one of the server's few threads as long."""


class TooLargeToCompare(Conflict):
    code = "backup.too_large_to_compare"


class BackupBody(Body):
    tenant = shapes.Text(max_length=63)
    type = shapes.Choice(choices=BackupType.values, default=BackupType.INCREMENTAL)
    sources = shapes.Texts(child=shapes.Text(max_length=63), max_length=NAMES_MAX, default=list)
    since = shapes.Moment(required=False, help_text="compare with the newest backup at or before this time")
    tags = shapes.Texts(child=shapes.Text(max_length=100), max_length=NAMES_MAX, default=list)
    encrypt = shapes.Flag(default=True, help_text="false leaves the data readable in the store, and needs `admin`")
    compress = shapes.Flag(default=True)
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


class VerifyBody(Body):
    deep = shapes.Flag(default=False, help_text="read every stored byte")


class ProtectBody(Body):
    held = shapes.Flag()
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


def backup_of(request: Request, backup_id: str, *, usable: bool = False) -> Backup:
    """The backup, if the token may touch its tenant. Raises NotFound."""
    what = f"there is no backup {backup_id[:60]!r}"
    backup = permitted(request, lambda: backup_get(backup_id), lambda row: row.tenant.slug, what=what)
    # Only then: how a backup stands is told to those who may touch it.
    return backup_usable(backup_id) if usable else backup


def backup_begin(request: Request, slug: str, given: dict[str, Any]) -> tuple[Backup, Any]:
    """Queue a backup as a body asks."""
    if not given["encrypt"] and Scope.ADMIN not in token_of(request).scopes:
        error = ScopeMissing("a backup in clear needs the scope admin", hint="leave out encrypt: it is on")
        raise refused(request, error, tenant=slug, scope=Scope.ADMIN.value)
    wish = BackupWish(
        type=given["type"],
        sources=tuple(given["sources"]),
        since=given.get("since"),
        tags=tuple(given["tags"]),
        encrypt=given["encrypt"],
        compress=given["compress"],
        trigger="api",
    )
    return backup_start(tenant_of(request, slug), wish, actor=actor_of(request), reason=given["reason"])


class BackupsView(View):
    scopes = {"POST": Scope.BACKUP_WRITE}

    @extend_schema(
        parameters=[*LISTED, TENANT, states("state", BackupState.values), states("type", BackupType.values), *BETWEEN],
        responses=answers(shapes.page_of(shapes.BackupShape)),
    )
    def get(self, request: Request) -> Response:
        """Backups, newest first."""
        return page_answer(request, backups_listed(request), outputs.backup)

    @extend_schema(parameters=[REPEATABLE], request=BackupBody, responses=accepts())
    @repeatable()
    def post(self, request: Request) -> Response:
        """Take a backup of one tenant: all its sources, or those named."""
        given = self.body(BackupBody)
        _, operation = backup_begin(request, given["tenant"], given)
        return accepted(operation)


def backups_listed(request: Request) -> Any:
    """The backups that the request asks for and may see."""
    rows = Backup.objects.select_related("tenant__store", "parent").prefetch_related("sources", "copies__copy__store")
    rows = between(request, rows, prefix="bkp")
    limited = tenants_permitted(request)
    if limited is not None:
        rows = rows.filter(tenant__slug__in=limited)
    if slug := request.query_params.get("tenant", ""):
        rows = rows.filter(tenant=tenant_of(request, slug))
    if wanted := chosen(request, "state", BackupState.values):
        rows = rows.filter(state__in=wanted)
    if types := chosen(request, "type", BackupType.values):
        rows = rows.filter(type__in=types)
    return rows


class BackupView(View):
    scopes = {"DELETE": Scope.BACKUP_WRITE}

    @extend_schema(responses=answers(shapes.BackupShape))
    def get(self, request: Request, backup_id: str) -> Response:
        """One backup."""
        return Response(outputs.backup(backup_of(request, backup_id)))

    @extend_schema(request=None, responses=accepts())
    def delete(self, request: Request, backup_id: str) -> Response:
        """Put it into the trash, from where it goes for good; 409 for one that is held or some source's last good one."""
        return accepted(backup_delete_start(backup_of(request, backup_id), actor=actor_of(request)))


class VerifyView(View):
    scopes = {"POST": Scope.BACKUP_WRITE}

    @extend_schema(parameters=[REPEATABLE], request=VerifyBody, responses=accepts())
    @repeatable()
    def post(self, request: Request, backup_id: str) -> Response:
        """Check that everything the backup needs is stored and, with `deep`, whole."""
        given = self.body(VerifyBody)
        backup = backup_of(request, backup_id, usable=True)
        return accepted(backup_verify_start(backup, deep=given["deep"], actor=actor_of(request)))


class ProtectView(View):
    scopes = {"POST": Scope.BACKUP_WRITE}

    @extend_schema(request=ProtectBody, responses=answers(shapes.BackupShape))
    def post(self, request: Request, backup_id: str) -> Response:
        """Put a legal hold on it, or with `admin` take it off."""
        given = self.body(ProtectBody)
        backup = backup_of(request, backup_id)
        if not given["held"] and Scope.ADMIN not in token_of(request).scopes:
            error = ScopeMissing("taking off a legal hold needs the scope admin", hint="putting one on does not")
            raise refused(request, error, tenant=backup.tenant.slug, scope=Scope.ADMIN.value)
        return Response(
            outputs.backup(backup_hold(backup, held=given["held"], reason=given["reason"], actor=actor_of(request)))
        )


class CopiesView(View):
    @extend_schema(responses=answers(OBJECT))
    def get(self, request: Request, backup_id: str) -> Response:
        """Where it lies and how it was found there last."""
        return Response({"data": outputs.backup(backup_of(request, backup_id))["copies"]})


class ManifestView(View):
    @extend_schema(responses=answers(OBJECT))
    def get(self, request: Request, backup_id: str) -> Response:
        """The signed manifest, as it lies in the store."""
        backup = backup_of(request, backup_id, usable=True)
        with reading.backups_open(backup.tenant, [backup]) as repository:
            document = wiring.manifest_of(repository, backup).document
        read_recorded(request, "manifest", backup)
        return Response(document)


class DiffView(View):
    scopes = {"GET": Scope.RESTORE_WRITE, "HEAD": Scope.RESTORE_WRITE}

    @extend_schema(responses=answers(OBJECT))
    def get(self, request: Request, backup_id: str, other_id: str) -> Response:
        """What changed from one backup of a tenant to another: counts of all, samples of rows and paths, which are the
        tenant's data: it needs `restore:write`, and the audit log has it."""
        old = backup_of(request, backup_id, usable=True)
        new = backup_of(request, other_id, usable=True)
        if max(old.size_bytes, new.size_bytes) > COMPARED_BYTES_MAX:
            raise TooLargeToCompare(
                f"backups of more than {COMPARED_BYTES_MAX} bytes are not compared while a client waits",
                hint=f"on the host: backup diff {old.pk} {new.pk}",
            )
        return Response(backups_compare(old, new, actor=actor_of(request)))
