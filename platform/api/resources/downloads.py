"""A backup as one portable file, fetched in one piece or in several."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

import audit.services
from access.models import Scope
from api.authentication import actor_of
from api.problems import CONTENT_TYPE, problem_json
from api.resources.backups import backup_of
from api.schema import answers
from api.views import View, accepted
from core.errors import Conflict
from operations.services import operation_run
from tenants.archives import Archive, archive_find
from tenants.models import Backup
from tenants.models.backup import ENDED_STATES
from tenants.services.backups import backup_archive_pending, backup_archive_start

AT_ONCE_BYTES = 64 * 1024 * 1024
"""Up to this size an archive is made while the client waits; larger ones by a worker."""
_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class ArchiveFailed(Conflict):
    code = "backup.archive_failed"


class DownloadView(View):
    scopes = {"GET": Scope.RESTORE_WRITE, "HEAD": Scope.RESTORE_WRITE}

    @extend_schema(responses={**answers(OpenApiTypes.BINARY), 206: OpenApiTypes.BINARY, 202: OpenApiTypes.OBJECT})
    def get(self, request: Request, backup_id: str) -> Any:
        """A tar of files that standard tools read, with SHA256SUMS: the tenant's data in clear, so it needs `restore:write`.

        202 with an operation while a worker makes it; ask again afterwards. It is kept for a day: `Range` and
        `If-Range` go on with a broken download, the ETag is its SHA-256.
        """
        backup = backup_of(request, backup_id)
        if backup.state in ENDED_STATES:
            return _gone(backup)
        archive = archive_find(backup)
        if archive is None:
            pending = backup_archive_pending(backup)
            if pending is not None:
                return accepted(pending)
            here = backup.size_bytes <= AT_ONCE_BYTES
            operation = backup_archive_start(backup, actor=actor_of(request), here=here)
            if not here:
                return accepted(operation)
            ended = operation_run(operation.pk, here=True)
            archive = archive_find(backup)
            if archive is None:
                told = ended.error or {}
                raise ArchiveFailed(told.get("detail", "the archive was not made"), hint=told.get("hint", ""))
        audit.services.record(
            "backup.downloaded",
            message=f"backup {backup.pk} of {backup.tenant.slug} fetched",
            actor=actor_of(request),
            tenant=backup.tenant.slug,
            level="warning",
            data={"backup": backup.pk, "sha256": archive.sha256, "range": request.headers.get("Range", "")[:60]},
        )
        return _sent(request, backup, archive)


def _gone(backup: Backup) -> Response:
    body = problem_json(
        status=410, code="backup.gone", title="Gone", detail=f"backup {backup.pk} is {backup.state}",
        hint="GET /api/v1/backups?state=succeeded shows those that are there",
    )  # fmt: skip
    return Response(body, status=410, content_type=CONTENT_TYPE)


def _sent(request: Request, backup: Backup, archive: Archive) -> StreamingHttpResponse:
    tag = f'"{archive.sha256}"'
    begin, end, status = 0, archive.size, 200
    asked = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if asked and request.headers.get("If-Range", tag) == tag and any(asked.groups()):
        first, last = asked.groups()
        if first:
            begin, end = int(first), min(archive.size, int(last) + 1 if last else archive.size)
        else:
            begin = max(0, archive.size - int(last))
        status = 206 if begin < end else 416
    response = StreamingHttpResponse(
        _Pieces(archive.path, begin, end) if status != 416 else iter(()),
        status=status,
        content_type="application/x-tar",
    )
    if status != 416:
        response["Content-Length"] = str(end - begin)
    if status == 206:
        response["Content-Range"] = f"bytes {begin}-{end - 1}/{archive.size}"
    elif status == 416:
        response["Content-Range"] = f"bytes */{archive.size}"
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = tag
    response["Content-Disposition"] = f'attachment; filename="{backup.tenant.slug}-{backup.pk}.tar"'
    return response


class _Pieces:
    """The bytes of a file from `begin` to before `end`; open from now on, so that nobody takes it away meanwhile."""

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self._file = path.open("rb")
        self._file.seek(begin)
        self._left = end - begin

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._file.read(min(_PIECE_BYTES, self._left))
        if not piece:
            raise StopIteration
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """Called by the server when the answer has gone out, or nobody waits for it any more."""
        self._file.close()
