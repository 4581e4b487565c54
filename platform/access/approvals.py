"""Four eyes: a destructive action is done only when a second master has agreed to exactly that."""

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Action:
    """One destructive action, exactly as it was asked for; `details` are JSON without secrets."""

    area: str
    """What LASTRO_FOUR_EYES names."""
    name: str
    tenant: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    tenant_id: str = ""
    """With the slug: a slug may come to be another tenant's, and an agreement must not."""

    def __post_init__(self) -> None:
        assert bool(self.tenant) == bool(self.tenant_id), "an agreement is bound to the tenant, not to its slug"

    @property
    def digest(self) -> str:
        """What an approval is bound to: SHA-256 of the RFC 8785 form of all of it."""
        asked = {
            "area": self.area,
            "action": self.name,
            "tenant": self.tenant,
            "tenant_id": self.tenant_id,
            "details": dict(self.details),
        }
        return hashlib.sha256(rfc8785.dumps(cast(Any, asked))).hexdigest()


def approval_ask(action: Action, *, requested_by: str) -> Approval | None:
    """The agreement that exactly this action has; None when its area needs none.

    Without one it is asked for, in a transaction of its own, and ApprovalNeeded raised. Give what is returned to
    `approval_use` in the transaction that does the deed.
    """
    if not four_eyes(action.area):
        return None
    # An account of the host, as the command line names it, is nobody of whom there are two.
    known = Account.objects.filter(username=requested_by, is_master=True, is_active=True).exists()
    if not known or ":" in requested_by:
        raise NotAllowed(
            f"{action.name} needs two masters, and none has said who asks for it",
            hint="--master NAME, and your password",
        )
    now = clock.now()
    rows = Approval.objects.filter(digest=action.digest, requested_by=requested_by, expires_at__gt=now, state__in=_OPEN)
    found = {row.state: row for row in rows.order_by("id")}
    if ApprovalState.APPROVED in found:
        return found[ApprovalState.APPROVED]
    row = found.get(ApprovalState.REQUESTED) or _requested(action, requested_by)
    raise ApprovalNeeded(
        f"{action.name} needs a second master; {row.pk} asks for it, until {row.expires_at:%Y-%m-%d %H:%M} UTC",
        hint=f"another master: approval approve {row.pk} --master NAME; then the same command again",
        approval=row.pk,
    )


def _requested(action: Action, requested_by: str) -> Approval:
    expires = clock.now() + datetime.timedelta(hours=settings.LASTRO_APPROVAL_HOURS)
    with transaction.atomic():
        row = Approval.objects.create(
            area=action.area,
            action=action.name,
            tenant=action.tenant,
            tenant_id=action.tenant_id,
            details=dict(action.details),
            digest=action.digest,
            requested_by=requested_by,
            expires_at=expires,
        )
        _recorded("approval.requested", row, actor=requested_by)
    return row


def approval_use(approval: Approval | None, action: Action, *, actor: str) -> None:
    """Use the agreement up, inside the transaction that does the deed.

    Raises ApprovalNeeded when the area needs one and there is none, or one for another action, or when one of the two is
    no master any more; StateConflict when it was used or taken back meanwhile.
    """
    if approval is None and not four_eyes(action.area):
        return
    if approval is None or approval.digest != action.digest:
        raise ApprovalNeeded(f"{action.name} needs the agreement of a second master", hint="approval list shows them")
    if approval.expires_at <= clock.now():
        raise Conflict(f"approval {approval.pk} has expired", hint="ask again")
    approval.refresh_from_db()
    for name in (approval.requested_by, approval.decided_by):
        if not _is_master(name):
            raise ApprovalNeeded(
                f"{name or 'nobody'} is no master any more, so that {approval.pk} is no agreement of two"
            )
    approval_transition(approval, to=ApprovalState.USED, actor=actor, used_at=clock.now())
    _recorded("approval.used", approval, actor=actor)


def approval_decide(approval: Approval, *, approve: bool, master: str, reason: str = "") -> Approval:
    """Agree or refuse; the one who asked cannot agree, nor can an account that was made since. Raises NotAllowed, Conflict."""
    account = Account.objects.filter(username=master, is_master=True, is_active=True).first()
    if account is None:
        raise NotAllowed(f"{master[:60]!r} is no master", hint="master list shows the names")
    if approve and approval.requested_by == master:
        _refused(approval, master, "asked for it")
        raise NotAllowed(f"{master} asked for it; another master has to agree", hint="two pairs of eyes are the point")
    if approve and account.created_at >= approval.created_at:
        _refused(approval, master, "was made after it was asked for")
        raise NotAllowed(
            f"the account {master} was made after {approval.pk} was asked for; one that was there before has to agree",
            hint="who asks could have made it: look at audit list --type master",
        )
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


def _is_master(username: str) -> bool:
    return Account.objects.filter(username=username, is_master=True, is_active=True).exists()


def _refused(row: Approval, master: str, why: str) -> None:
    audit.services.record(
        "approval.refused",
        message=f"{master} cannot agree to {row.pk}: {why}"[:900],
        actor=master,
        tenant=row.tenant,
        level="warning",
        data={"approval": row.pk, "requested_by": row.requested_by, "why": why},
    )


def approvals_void(*, actor: str, why: str) -> int:
    """Let every open request and agreement expire; how many there were. For a catalogue that came back from an older one.

    Inside the caller's transaction: what was used, or taken back, may stand in it as agreed to.
    """
    open_ones = Approval.objects.filter(state__in=_OPEN, expires_at__gt=clock.now())
    ids = list(open_ones.order_by("id").values_list("pk", flat=True))
    if ids:
        open_ones.update(expires_at=clock.now())
        audit.services.record(
            "approval.voided",
            message=f"{len(ids)} requests and agreements have expired: {why}",
            actor=actor,
            level="warning",
            data={"approvals": ids[:LIST_MAX]},
        )
    return len(ids)


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
