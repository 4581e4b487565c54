"""Four eyes: a destructive action is done only when a second master has agreed to exactly that."""

import datetime
import hashlib
from collections.abc import Mapping
from typing import Any, cast

import rfc8785
from django.conf import settings
from django.db import transaction

import audit.services
from access.models import Account, Approval, ApprovalState
from access.transitions import approval_transition
from core import clock
from core.errors import Conflict, NotAllowed, NotFound
from core.text import reason_checked

LIST_MAX = 200
_OPEN = (ApprovalState.REQUESTED, ApprovalState.APPROVED)


class ApprovalNeeded(NotAllowed):
    """Another master has to agree first; the request is recorded under `approval`."""

    code = "access.approval_needed"

    def __init__(self, message: str, *, hint: str = "", approval: str = "") -> None:
        super().__init__(message, hint=hint)
        self.approval = approval


class MasterRefused(NotAllowed):
    code = "access.master_refused"


def four_eyes(area: str) -> bool:
    """Whether actions of this area need a second master (LASTRO_FOUR_EYES)."""
    return area in settings.LASTRO_FOUR_EYES


def action_digest(*, area: str, action: str, tenant: str, details: Mapping[str, Any]) -> str:
    """What an approval is bound to: SHA-256 of the RFC 8785 form of everything that was asked for."""
    asked = {"area": area, "action": action, "tenant": tenant, "details": dict(details)}
    return hashlib.sha256(rfc8785.dumps(cast(Any, asked))).hexdigest()


def master_checked(username: str, password: str) -> str:
    """The name of the master whose password this is. Raises MasterRefused, and says in the audit log who tried."""
    account = Account.objects.filter(username=username, is_master=True, is_active=True).first()
    if account is None:
        Account().set_password(password)  # As much time as a wrong password takes.
    if account is None or not account.check_password(password):
        audit.services.record(
            "master.refused", message=f"wrong password for {username[:60]!r}", actor="", level="warning"
        )
        raise MasterRefused(f"{username[:60]!r} and this password are no master's", hint="master list shows the names")
    return account.username


def approval_ask(
    *, area: str, action: str, tenant: str = "", details: Mapping[str, Any], requested_by: str
) -> Approval | None:
    """The agreement that exactly this action has; None when its area needs none.

    Without one it is asked for, in a transaction of its own, and ApprovalNeeded raised. Give what is returned to
    `approval_use` in the transaction that does the deed.
    """
    if not four_eyes(area):
        return None
    if not requested_by:
        raise NotAllowed(
            f"{action} needs two masters, and nobody has said who asks for it", hint="--master NAME (and your password)"
        )
    digest, now = action_digest(area=area, action=action, tenant=tenant, details=details), clock.now()
    rows = Approval.objects.filter(digest=digest, requested_by=requested_by, expires_at__gt=now, state__in=_OPEN)
    found = {row.state: row for row in rows.order_by("id")}
    if ApprovalState.APPROVED in found:
        return found[ApprovalState.APPROVED]
    row = found.get(ApprovalState.REQUESTED) or _requested(area, action, tenant, details, digest, requested_by)
    raise ApprovalNeeded(
        f"{action} needs a second master; {row.pk} asks for it, until {row.expires_at:%Y-%m-%d %H:%M} UTC",
        hint=f"another master: approval approve {row.pk} --master NAME; then the same command again",
        approval=row.pk,
    )


def _requested(
    area: str, action: str, tenant: str, details: Mapping[str, Any], digest: str, requested_by: str
) -> Approval:
    expires = clock.now() + datetime.timedelta(hours=settings.LASTRO_APPROVAL_HOURS)
    with transaction.atomic():
        row = Approval.objects.create(
            area=area,
            action=action,
            tenant=tenant,
            details=dict(details),
            digest=digest,
            requested_by=requested_by,
            expires_at=expires,
        )
        _recorded("approval.requested", row, actor=requested_by)
    return row


def approval_use(approval: Approval | None, *, actor: str) -> None:
    """Use the agreement up, inside the transaction that does the deed. Raises StateConflict when it was used or taken back."""
    if approval is None:
        return
    if approval.expires_at <= clock.now():
        raise Conflict(f"approval {approval.pk} has expired", hint="ask again")
    approval_transition(approval, to=ApprovalState.USED, actor=actor, used_at=clock.now())
    _recorded("approval.used", approval, actor=actor)


def approval_decide(approval: Approval, *, approve: bool, master: str, reason: str = "") -> Approval:
    """Agree or refuse; the one who asked cannot agree. Raises NotAllowed, Conflict."""
    if approve and approval.requested_by == master:
        raise NotAllowed(f"{master} asked for it; another master has to agree", hint="two pairs of eyes are the point")
    if approval.expires_at <= clock.now():
        raise Conflict(f"approval {approval.pk} has expired", hint="it has to be asked for again")
    reason = reason_checked(reason)[:500]
    with transaction.atomic():
        approval_transition(
            approval,
            to=ApprovalState.APPROVED if approve else ApprovalState.REJECTED,
            actor=master,
            reason=reason,
            decided_by=master,
            decided_at=clock.now(),
            decision_reason=reason,
        )
        _recorded("approval.approved" if approve else "approval.rejected", approval, actor=master)
    return approval


def approval_get(approval_id: str) -> Approval:
    """Find an approval. Raises NotFound."""
    row = Approval.objects.filter(pk=approval_id).first()
    if row is None:
        raise NotFound(f"there is no approval {approval_id[:60]!r}", hint="approval list shows them")
    return row


def approval_list(*, pending: bool = False, limit: int = LIST_MAX) -> list[Approval]:
    """Approvals, newest first; `pending` leaves those that somebody can still decide."""
    rows = Approval.objects.order_by("-id")
    if pending:
        rows = rows.filter(state=ApprovalState.REQUESTED, expires_at__gt=clock.now())
    return list(rows[: min(limit, LIST_MAX)])


def _recorded(event: str, row: Approval, *, actor: str) -> None:
    audit.services.record(
        event,
        message=f"{row.action}" + (f" of {row.tenant}" if row.tenant else ""),
        actor=actor,
        tenant=row.tenant,
        level="warning",
        data={"approval": row.pk, "digest": row.digest, "requested_by": row.requested_by},
    )
