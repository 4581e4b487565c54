"""`retention`: which backups stay, for how long, and why."""

from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Call, NounCommand, Verb, argument, count
from engine.errors import UsageError

_TENANT = argument("tenant", metavar="TENANT")
_TENANT_OR_ALL = argument("tenant", metavar="TENANT", nargs="?", help="without one: every tenant")
_SOURCE = argument("--source", metavar="S", help="for this source alone")
_STORE = argument("--store", metavar="S", help="for what lies in this store alone")
_SET = argument(
    "--set", action="append", metavar="KEY=VALUE", help="one number, for example daily_count=14 (repeatable)"
)
_PRESET = argument("--preset", default="", metavar="NAME", help="begin from default, structure or tiers")
_POLICY = argument("--policy", metavar="FILE", help="begin from a JSON file as `retention show --json` prints it")
_DRY = argument("--dry-run", action="store_true", help="only say what would change")
_REASON = argument("--reason", default="", help="why; kept in the audit log")


def _place(call: Call) -> Any:
    from tenants import selectors
    from tenants.services.retention import Place
    from tenants.services.stores import store_get

    options = call.options
    tenant = selectors.tenant_get(options.tenant) if options.tenant else None
    if options.source and tenant is None:
        raise UsageError(
            "a source belongs to a tenant", hint=f"retention {options.verb} TENANT --source {options.source}"
        )
    source = selectors.source_get(tenant, options.source) if options.source and tenant else None
    return Place(tenant, source, store_get(options.store) if options.store else None)


def _wished(call: Call, place: Any) -> Any:
    """The policy that the options describe, on top of what is in force at the place."""
    import json
    from pathlib import Path

    from tenants.commanding import settings_of
    from tenants.retention.policy import policy_of, preset
    from tenants.services.retention import policy_at

    options = call.options
    if options.preset and options.policy:
        raise UsageError("--preset and --policy contradict each other")
    base = policy_at(place)[0]
    if options.preset:
        base = preset(options.preset, store_kind=place.store.kind if place.store else "")
    elif options.policy:
        try:
            values = json.loads(Path(options.policy).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{options.policy} cannot be read as JSON: {error}", hint='for example {"daily_count": 7}'
            ) from error
        if not isinstance(values, dict):
            raise UsageError(f"{options.policy} holds no object", hint='for example {"daily_count": 7}')
        base = policy_of(values)
    return policy_of(settings_of(options.set), base=base)


def _show(call: Call) -> Answer:
    from tenants.retention_outputs import policies_shown, tenant_shown

    place = _place(call)
    if place.tenant is None:
        data = policies_shown()
        lines = [f"{each['place']}: {each['words']}" for each in data["data"]]
        return Answer(data, lines)
    data = tenant_shown(place)
    head = [f"{each['place']}: {each['words']} ({each['from']})" for each in data["policies"]]
    return Answer(data, [*head, "", *(_kept_line(each) for each in data["data"])])


def _kept_line(row: Mapping[str, Any]) -> str:
    until = "" if row["rule"] == "trash" else f"goes {_short(row['goes_at'])}"
    return f"{row['id']}  {row['timestamp'][:16]}  {row['type']:<11}  {until or 'in the trash':<23}  {row['words']}"


def _short(at: str | None) -> str:
    return "never, as it is" if at is None else at[:16].replace("T", " ")


def _set(call: Call) -> Answer:
    from tenants.services.retention import policy_put

    options, place = call.options, _place(call)
    if not (options.set or options.preset or options.policy):
        raise UsageError("nothing to set was named", hint="--set daily_count=14, --preset default or --policy FILE")
    policy = _wished(call, place)
    actor, approval = _agreed(call, place, policy)
    change = policy_put(
        place,
        policy,
        actor=actor,
        reason=options.reason,
        confirmed=options.confirm,
        dry_run=options.dry_run,
        approval=approval,
    )
    return _changed(place, policy, change, dry_run=options.dry_run)


def _reset(call: Call) -> Answer:
    from tenants.services.retention import policy_at, policy_drop

    options, place = call.options, _place(call)
    actor, approval = _agreed(call, place, None)
    change = policy_drop(
        place,
        actor=actor,
        reason=options.reason,
        confirmed=options.confirm,
        dry_run=options.dry_run,
        approval=approval,
    )
    return _changed(place, policy_at(place)[0], change, dry_run=options.dry_run)


def _agreed(call: Call, place: Any, policy: Any) -> tuple[str, Any]:
    """Who sets it, and the agreement of a second master where it keeps less than today's."""
    from tenants.services.retention import policy_shortened

    action = None if call.options.dry_run else policy_shortened(place, policy)
    return agreed(call, action) if action is not None else (call.actor, None)


def _changed(place: Any, policy: Any, change: Any, *, dry_run: bool) -> Answer:
    from tenants.retention.policy import policy_words

    would = "would be" if dry_run else "is"
    text = [f"Retention of {place.said} {would}: {policy_words(policy)}."]
    if change.goes or change.stays:
        text.append(f"At the next run {change.goes} more backups go into the trash, {change.stays} more stay.")
    data = {
        "place": place.said,
        "policy": policy.to_json(),
        "words": policy_words(policy),
        "goes": change.goes,
        "stays": change.stays,
        "tenants_compared": change.tenants,
        "dry_run": dry_run,
    }
    return Answer(data, text)


def _simulate(call: Call) -> Answer:
    from tenants import selectors
    from tenants.services.retention import Place
    from tenants.services.simulating import retention_simulate

    options = call.options
    tenant = selectors.tenant_get(options.tenant)
    asked = options.set or options.preset or options.policy
    policy = _wished(call, Place(tenant)) if asked else None
    found = retention_simulate(tenant, days=options.days, cadence=_cadence(call), policy=policy)
    rows = found.lines()
    data = {
        "tenant": tenant.slug,
        "days": options.days,
        "policy": found.policy.to_json(),
        "words": found.said,
        "kept": sum(row["kept"] for row in rows),
        "gone": sum(not row["kept"] for row in rows),
        "data": rows,
    }
    lines = [f"{found.said}: after {options.days} days {data['kept']} backups are there, {data['gone']} went."]
    return Answer(data, [*lines, *(_fate_line(row) for row in rows)])


def _fate_line(row: Mapping[str, Any]) -> str:
    when = f"goes {_short(row['goes_at'])}" if row["kept"] else f"went {_short(row['goes_at'])}"
    name = "(to come)" if row["simulated"] else row["id"]
    return f"{row['timestamp'][:16]}  {row['type']:<11}  {when:<23}  {row['words']}  {name}"


def _cadence(call: Call) -> Any:
    import datetime

    from tenants.retention.calendar import Cadence

    names = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    weekday = -1 if call.options.full_on == "always" else names.index(call.options.full_on)
    return Cadence(datetime.timedelta(hours=call.options.every_hours), full_weekday=weekday)


def _upcoming(call: Call) -> Answer:
    from tenants import selectors
    from tenants.retention_outputs import upcoming_shown

    tenant = selectors.tenant_get(call.options.tenant) if call.options.tenant else None
    data = upcoming_shown(tenant, days=call.options.days)
    lines = [
        f"{_short(row['goes_at'])}  {row['tenant']}  {row['id']}  {row['timestamp'][:16]}  {row['words']}".rstrip()
        for row in data["data"]
    ]
    return Answer(data, lines or [f"nothing goes within {call.options.days} days"])


def _run(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.selectors import tenant_get
    from tenants.services.retention import retention_start

    options = call.options
    if not options.tenant:
        return _run_all(call)
    operation = retention_start(
        tenant_get(options.tenant),
        actor=call.actor,
        reason=options.reason,
        here=options.here,
        prune=not options.no_prune,
        dry_run=options.dry_run,
    )
    return followed(call, operation, data=result_of, text=_ran)


def _ran(data: Mapping[str, Any]) -> list[str]:
    from tenants.space_text import space_lines

    if data["frozen"]:
        return [f"nothing was done: {data['frozen']}"]
    go, were = ("would go", "would be") if data["dry_run"] else ("went", "were")
    trashed, forgotten = len(data["trashed"]), data["forgotten"]
    line = f"{data['tenant']}: {data['kept']} backups stay, {trashed} {go} into the trash, {forgotten} {were} forgotten"
    return [line, *space_lines(data)]


def _run_all(call: Call) -> Answer:
    """Look at every tenant; what has to go is queued, or with --here done one tenant after another."""
    from core.errors import Exit
    from tenants.services.retention import retention_look

    if call.options.dry_run or call.options.no_prune:
        raise UsageError("--dry-run and --no-prune are for one tenant", hint="retention upcoming shows all of them")
    looked = retention_look(actor=call.actor, here=call.options.here)
    data = {
        "tenants": looked.tenants,
        "backups": looked.backups,
        "going": looked.going,
        "queued": looked.queued,
        "frozen": looked.frozen,
        "failed": [],
    }
    if looked.frozen:
        return Answer(data, [f"nothing was done: {looked.frozen}"], exit=Exit.WARNED)
    if call.options.here:
        data["failed"] = [operation for operation in looked.queued if not _done(call, operation)]
    text = [f"{looked.tenants} tenants, {looked.backups} backups: {looked.going} go into the trash"]
    if looked.queued and not call.options.here:
        text.append(f"{len(looked.queued)} operations were queued for a worker; with --here they are done at once")
    return Answer(data, text, exit=Exit.FAILED if data["failed"] else Exit.OK)


def _done(call: Call, operation_id: str) -> bool:
    """Run one of many operations; what is wrong with it is said, and stops none of the others."""
    from core.errors import Busy
    from operations.services import operation_run

    try:
        ended = operation_run(operation_id, here=True)
    except Busy as error:
        call.terminal.note(f"{operation_id}: {error}")
        return False
    if ended.error:
        call.terminal.note(f"{ended.tenant}: {ended.error.get('detail', '')} (operation show {ended.pk})")
    return not ended.error


def _thaw(call: Call) -> Answer:
    from tenants.retention_outputs import upcoming_shown
    from tenants.services.clock_watch import thaw

    due = upcoming_shown(None, days=1)["data"]
    call.confirm("all", what=f"let backups be ended again: {len(due)} go within a day")
    frozen, again = thaw(actor=call.actor, reason=call.options.reason)
    data = {"freeze": frozen.pk, "was": frozen.reason, "terms_begun_again": again, "going_within_a_day": len(due)}
    return Answer(
        data, [f"Thawed. {again} backups in the trash have their whole term again; {len(due)} backups go within a day."]
    )


class Command(NounCommand):
    help = "Say, set and simulate which backups stay, and end the others."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "show",
            _show,
            "the policies in force, and for each backup of a tenant why it stays and when it goes",
            (_TENANT_OR_ALL, _SOURCE, _STORE),
        ),
        Verb(
            "set",
            _set,
            "set the policy of everything, a tenant, a source or a store",
            (_TENANT_OR_ALL, _SOURCE, _STORE, _SET, _PRESET, _POLICY, _DRY, _REASON, *MASTER_ARGUMENTS),
            confirm=True,
        ),
        Verb(
            "reset",
            _reset,
            "take a policy back: the wider one holds again",
            (_TENANT_OR_ALL, _SOURCE, _STORE, _DRY, _REASON, *MASTER_ARGUMENTS),
            confirm=True,
        ),
        Verb(
            "simulate",
            _simulate,
            "let days pass, and see what becomes of each backup",
            (
                _TENANT,
                argument("--days", type=count(3_660), default=365, help="how many (365)"),
                argument("--every-hours", type=count(24), default=24, help="a backup each so many hours (24)"),
                argument(
                    "--full-on",
                    default="sunday",
                    choices=("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "always"),
                    help="when the day's first backup is full",
                ),
                _SET,
                _PRESET,
                _POLICY,
            ),
        ),
        Verb(
            "upcoming",
            _upcoming,
            "backups that go soon, the first first",
            (_TENANT_OR_ALL, argument("--days", type=count(3_660), default=30, help="how many days ahead (30)")),
        ),
        Verb(
            "run",
            _run,
            "put what no rule keeps into the trash, empty it of what is over, prune",
            (
                _TENANT_OR_ALL,
                _DRY,
                argument("--no-prune", action="store_true", help="leave the trash and the store as they are"),
                _REASON,
            ),
            long=True,
        ),
        Verb(
            "thaw",
            _thaw,
            "trust the clock again after it jumped",
            (_REASON,),
            confirm=True,
        ),
    )
