"""`approval list|show|approve|reject`: the second pair of eyes."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Argument, Call, NounCommand, Verb, argument, count
from engine.errors import UsageError

MASTER_ARGUMENTS: tuple[Argument, ...] = (
    argument("--master", metavar="NAME", help="who you are"),
    argument("--password", metavar="@FILE|env:NAME", help="where your password is read; asked for on a terminal"),
)


def master_of(call: Call) -> str:
    """The master who stands at the keyboard, checked by password; empty when none was named."""
    from access.approvals import master_checked
    from engine.adapters import resolve_secret

    name, given = call.options.master, call.options.password
    if not name:
        return ""
    if given is None and call.interactive:
        import getpass

        return master_checked(name, getpass.getpass(f"Password of {name}: "))
    if given is None or not given.startswith(("@", "env:")):
        raise UsageError(
            "a password does not belong on a command line" if given else "a master is known by a password",
            hint="--password @FILE or env:NAME",
        )
    return master_checked(name, resolve_secret(given))


def agreed(call: Call, action: Any) -> tuple[str, Any]:
    """Who acts, and the agreement to exactly this action: None where its area needs none. Raises ApprovalNeeded."""
    from access.approvals import approval_ask

    master = master_of(call)
    return master or call.actor, approval_ask(action, requested_by=master)


def _output(row: Any) -> dict[str, Any]:
    from core import clock

    expired = row.expires_at <= clock.now() and row.state in ("requested", "approved")
    return {
        "id": row.pk,
        "area": row.area,
        "action": row.action,
        "tenant": row.tenant or None,
        "tenant_id": row.tenant_id or None,
        "details": row.details,
        "digest": row.digest,
        "state": "expired" if expired else row.state,
        "requested_by": row.requested_by,
        "requested_at": row.created_at,
        "expires_at": row.expires_at,
        "decided_by": row.decided_by or None,
        "decided_at": row.decided_at,
        "reason": row.decision_reason or None,
        "used_at": row.used_at,
    }


def _list(call: Call) -> Mapping[str, Any]:
    from access.approvals import approval_list

    rows = [_output(row) for row in approval_list(pending=call.options.pending, limit=call.options.limit)]
    left_out = ("details", "digest", "decided_at", "reason", "used_at")
    shown = rows if call.options.json else [{k: v for k, v in row.items() if k not in left_out} for row in rows]
    return {"data": shown}


def _show(call: Call) -> Mapping[str, Any]:
    from access.approvals import approval_get

    return _output(approval_get(call.options.approval))


def _decide(call: Call, *, approve: bool) -> Answer:
    from access.approvals import approval_decide, approval_get

    row, master = approval_get(call.options.approval), master_of(call)
    if not master:
        raise UsageError("who agrees?", hint="--master NAME")
    row = approval_decide(row, approve=approve, master=master, reason=call.options.reason)
    done = f"{row.requested_by} can do it now, by the same command" if approve else "it will not be done"
    return Answer(_output(row), [f"{row.pk} ({row.action} {row.tenant}) is {row.state}: {done}."])


def _approve(call: Call) -> Answer:
    return _decide(call, approve=True)


def _reject(call: Call) -> Answer:
    return _decide(call, approve=False)


_APPROVAL = argument("approval", metavar="APPROVAL")
_REASON = argument("--reason", default="", metavar="TEXT", help="for the audit log")


class Command(NounCommand):
    help = "Agree to what needs a second master, or refuse it."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "list",
            _list,
            "what was asked for, newest first",
            (
                argument("--pending", action="store_true", help="only what waits for a decision"),
                argument("--limit", type=count(200), default=200, help="at most 200"),
            ),
        ),
        Verb("show", _show, "what exactly would be done", (_APPROVAL,)),
        Verb("approve", _approve, "agree; not for who asked", (_APPROVAL, _REASON, *MASTER_ARGUMENTS)),
        Verb("reject", _reject, "refuse it, or take the agreement back", (_APPROVAL, _REASON, *MASTER_ARGUMENTS)),
    )
