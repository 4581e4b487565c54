"""`audit list|verify|export`."""

from audit.export import FORMATS, entry_json, export
from audit.models import Level
from audit.selectors import LIST_MAX, Filter, entries, entry_list
from audit.verification import audit_verify
from core.cli import Answer, Argument, Call, NounCommand, Verb, argument, count, moment
from core.errors import Exit
from core.tenancy import tenant_checked

_FILTERS: tuple[Argument, ...] = (
    argument("--tenant", default="", metavar="SLUG"),
    argument("--type", default="", help="a type or what it begins with: backup, backup.created"),
    argument("--level", default="", choices=Level.values),
    argument("--user", default="", help="who did it"),
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
    return Answer(
        {"data": [entry_json(row) for row in rows]},
        text=[
            f"{row.sequence:>6}  {row.timestamp:%Y-%m-%d %H:%M:%S}  {row.level:<8}{row.user_id:<20} {row.message}"
            for row in rows
        ]
        or ["none"],
    )


def verify(call: Call) -> Answer:
    verdict = audit_verify()
    data = {
        "status": "passed" if verdict.intact else "failed",
        "entries": verdict.size,
        "root_hash": verdict.root_hash,
        "findings": verdict.findings,
    }
    for finding in verdict.findings:
        call.terminal.note(finding)
    return Answer(data, exit=Exit.OK if verdict.intact else Exit.INTEGRITY)


def export_(call: Call) -> None:
    if not entry_list(_filter(call), limit=1):
        tenant_checked(call.options.tenant)
    for piece in export(entries(_filter(call)), format=call.options.format):
        call.terminal.raw(piece)


class Command(NounCommand):
    help = "What was done, by whom, and the proof that the record is whole."
    verbs = (
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
        Verb("verify", verify, "find entries that were altered, removed or cut off (exit 7)"),
        Verb(
            "export",
            export_,
            "write entries to stdout, oldest first",
            (*_FILTERS, argument("--format", choices=FORMATS, default="json")),
        ),
    )
