"""`audit list|show|export|verify|proof|checkpoint|checkpoints|truncate|witness|forward`.

Here and not in the app of the log, which knows no masters: a truncation may need two of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, master_of
from audit.export import FORMATS, entry_json, export, log_rows
from audit.models import Level
from audit.selectors import LIST_MAX, Filter, entry_get, entry_list
from audit.services import record
from core.cli import Answer, Argument, Call, NounCommand, Verb, argument, count, moment
from core.errors import Exit, NotFound
from core.tenancy import tenant_checked
from core.text import reason_checked
from engine.errors import UsageError

if TYPE_CHECKING:
    from audit.models import Checkpoint
    from audit.truncation import Cut

AREA = "audit"
SIZE_MAX = 1 << 53

_FILTERS: tuple[Argument, ...] = (
    argument("--tenant", default="", metavar="SLUG"),
    argument("--type", default="", help="a type or what it begins with: backup, backup.created"),
    argument("--level", default="", choices=Level.values),
    argument("--user", "--actor", default="", dest="user", help="who did it"),
    argument("--since", type=moment, metavar="TIME", help="RFC 3339; UTC without an offset"),
    argument("--until", type=moment, metavar="TIME"),
    argument("--text", default="", help="part of the message"),
)


def _filter(call: Call) -> Filter:
    options = call.options
    return Filter(
        tenant=options.tenant,
        type=options.type,
        level=options.level,
        user=options.user,
        since=options.since,
        until=options.until,
        text=options.text,
        before=getattr(options, "before", None),
    )


def list_(call: Call) -> Answer:
    rows = entry_list(_filter(call), limit=call.options.limit)
    if not rows:
        tenant_checked(call.options.tenant)
    full = len(rows) == call.options.limit
    return Answer(
        {"data": [entry_json(row) for row in rows], "next": rows[-1].sequence if full else None},
        text=[
            f"{row.sequence:>6}  {row.timestamp:%Y-%m-%d %H:%M:%S}  {row.level:<8}{row.user_id:<20} {row.message}"
            for row in rows
        ]
        or ["none"],
    )


def show(call: Call) -> Mapping[str, Any]:
    return entry_json(entry_get(call.options.entry))


def verify(call: Call) -> Answer:
    from audit.verification import audit_verify

    verdict = audit_verify(witnessed=not call.options.offline)
    data = {
        "status": "passed" if verdict.intact else "failed",
        "log": verdict.log_id,
        "entries": verdict.size,
        "first": verdict.first,
        "root_hash": verdict.root_hash,
        "checkpoints": verdict.checkpoints,
        "witnesses": verdict.witnesses,
        "findings": verdict.findings,
        "warnings": verdict.warnings,
    }
    for finding in verdict.findings:
        call.terminal.note(finding)
    for warning in verdict.warnings:
        call.terminal.note(f"warning: {warning}")
    if not verdict.intact:
        return Answer(data, exit=Exit.INTEGRITY)
    return Answer(data, exit=Exit.WARNED if verdict.warnings else Exit.OK)


def export_(call: Call) -> None:
    wanted = _filter(call)
    if not entry_list(wanted, limit=1):
        tenant_checked(call.options.tenant)
    asked = {name: str(value) for name, value in vars(call.options).items() if name in _NAMES and value}
    # Before the first line: who stops reading in the middle has read, too.
    record("audit.exported", message=f"audit log exported as {call.options.format}", actor=call.actor, data=asked)
    for piece in export(log_rows(wanted), format=call.options.format):
        call.terminal.raw(piece)


_NAMES = ("tenant", "type", "level", "user", "since", "until", "text", "format")


# ---------------------------------------------------------------- checkpoints and proofs


def _checkpoint_output(row: "Checkpoint") -> dict[str, Any]:
    from audit.checkpoints import verifier_key

    return {
        "id": row.pk, "log": row.log_id, "size": row.size, "root_hash": row.root_hash, "at": row.created_at,
        "key": verifier_key(row.log_id, row.key.public), "note": row.note,
    }  # fmt: skip


def checkpoint(call: Call) -> Answer:
    from audit.checkpoints import checkpoint_make

    row = checkpoint_make()
    data = _checkpoint_output(row)
    return Answer(data, [*row.note.rstrip("\n").split("\n"), "", f"key: {data['key']}"])


def checkpoints(call: Call) -> Answer:
    from audit.checkpoints import checkpoint_list

    if call.options.notes:
        for row in _oldest_first():
            call.terminal.raw(row.note + "\n")
        return Answer({})
    rows = [_checkpoint_output(row) for row in checkpoint_list(limit=call.options.limit, before=call.options.before)]
    return Answer(
        {"data": rows}, [f"{row['size']:>10}  {row['at']:%Y-%m-%d %H:%M:%S}  {row['root_hash']}" for row in rows]
    )


def _oldest_first() -> "Iterator[Checkpoint]":
    from audit.models import Checkpoint

    return Checkpoint.objects.order_by("size").iterator(chunk_size=1_000)


def proof(call: Call) -> Answer:
    from audit.checkpoints import checkpoint_get
    from audit.proofs import consistency_prove, inclusion_prove
    from audit.services import head_get

    options = call.options
    if (options.entry is None) == (getattr(options, "from") is None):
        raise UsageError("what is to be proved?", hint="audit proof ENTRY, or audit proof --from SIZE --to SIZE")
    head = head_get()
    size = options.to or (head.checkpoint_size if head else 0)
    if options.entry is not None:
        entry = entry_get(options.entry)
        if entry.sequence >= size:
            raise NotFound(
                f"entry {entry.sequence} is newer than the newest checkpoint ({size} entries)",
                hint="audit checkpoint makes one; then again",
            )
        said = inclusion_prove(entry, size=size).output()
    else:
        said = consistency_prove(getattr(options, "from"), size).output()
    note = checkpoint_get(size).note
    text = [f"{name}: {value}" for name, value in said.items()]
    return Answer({**said, "checkpoint": note}, [*text, "checkpoint:", *note.rstrip("\n").split("\n")])


# ---------------------------------------------------------------- truncation


def truncate(call: Call) -> Answer:
    from audit.truncation import audit_truncate, cut_plan

    options = call.options
    if (options.export is None) == (not options.without_export):
        raise UsageError(
            "what becomes of the entries that go?",
            hint="--export FILE keeps them in a new file, --without-export says that nobody will need them",
        )
    cut, reason = cut_plan(options.before), reason_checked(options.reason)
    call.confirm(AREA, what=f"delete {cut.count} entries of the audit log, all before {cut.before:%Y-%m-%d %H:%M} UTC")
    actor = master_of(call) or call.actor
    said = audit_truncate(
        cut, actor=actor, export_to=Path(options.export) if options.export else None, agreed=_agreed(cut, actor, reason),
        reason=reason,
    )  # fmt: skip
    return Answer(said, [f"{said['entries']} entries cut off; the log begins with entry {said['upto']} now."])


def _agreed(cut: "Cut", actor: str, reason: str) -> Any:
    from access.approvals import Action, approval_ask, approval_use

    # Bound to the time that was named, not to numbers: the request and the deed see different logs.
    details = {"before": cut.before.isoformat(), "log": cut.log_id, "reason": reason}
    action = Action(AREA, "audit.truncate", details=details)
    approval = approval_ask(action, requested_by=actor)
    return lambda: approval_use(approval, action, actor=actor)


# ---------------------------------------------------------------- those who receive the log


def witness(call: Call) -> Answer:
    from audit.witness import witness_status, witnesses_send

    failed = [each for each in (witnesses_send(urgent=True) if call.options.send else []) if each.error]
    for each in failed:
        call.terminal.note(f"{each.name}: {each.error}")
    return Answer({"data": witness_status()}, exit=Exit.FAILED if failed else Exit.OK)


def forward(call: Call) -> Answer:
    from audit.forwarding import entries_forward, forward_status

    status = forward_status()
    if status is None:
        raise NotFound("entries are sent to nobody", hint="LASTRO_AUDIT_SYSLOG names a receiver")
    done = entries_forward(urgent=True) if call.options.send else None
    if done is not None and done.error:
        call.terminal.note(done.error)
    data = dict(forward_status() or {})
    return Answer(data, exit=Exit.FAILED if done is not None and done.error else Exit.OK)


_SEND = argument("--send", action="store_true", help="send now what was not sent yet")


class Command(NounCommand):
    help = "What was done, by whom, and the proof that the record is whole."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "list",
            list_,
            "newest first",
            (
                *_FILTERS,
                argument("--before", type=int, metavar="SEQUENCE", help="go on before this entry"),
                argument("--limit", type=count(LIST_MAX), default=100, help=f"at most {LIST_MAX}"),
            ),
        ),
        Verb(
            "show", show, "one entry with all that it says", (argument("entry", metavar="ENTRY", help="id or number"),)
        ),
        Verb(
            "verify",
            verify,
            "find entries that were altered, removed or cut off (exit 7)",
            (argument("--offline", action="store_true", help="ask no witness"),),
        ),
        Verb(
            "export",
            export_,
            "write entries to stdout, oldest first",
            (*_FILTERS, argument("--format", choices=FORMATS, default="json")),
        ),
        Verb("checkpoint", checkpoint, "sign the log as it is now"),
        Verb(
            "checkpoints",
            checkpoints,
            "signed checkpoints, newest first",
            (
                argument("--before", type=count(SIZE_MAX), metavar="SIZE", help="go on before this one"),
                argument("--limit", type=count(LIST_MAX), default=100, help=f"at most {LIST_MAX}"),
                argument(
                    "--notes", action="store_true", help="all notes, oldest first, for docs/formats/audit_verify.py"
                ),
            ),
        ),
        Verb(
            "proof",
            proof,
            "that an entry is in the log, or one checkpoint the beginning of another",
            (
                argument("entry", nargs="?", metavar="ENTRY", help="id or number"),
                argument("--from", type=count(SIZE_MAX), metavar="SIZE", help="the smaller checkpoint"),
                argument("--to", type=count(SIZE_MAX), metavar="SIZE", help="the checkpoint (the newest)"),
            ),
        ),
        Verb(
            "truncate",
            truncate,
            "cut off the oldest entries, on record; the rest goes on verifying",
            (
                argument("--before", type=moment, required=True, metavar="TIME", help="what is older goes"),
                argument("--export", metavar="FILE", help="write what goes into this new file first"),
                argument("--without-export", action="store_true", help="what goes is not kept"),
                argument("--reason", default="", metavar="TEXT"),
                *MASTER_ARGUMENTS,
            ),
            confirm=True,
        ),
        Verb("witness", witness, "who receives checkpoints, and how far they are", (_SEND,)),
        Verb("forward", forward, "how far the receiver of entries is", (_SEND,)),
    )
