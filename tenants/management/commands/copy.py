"""`copy`: backups in more than one store."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.cli_output import size_text, table
from core.errors import Exit
from core.text import counted
from tenants.promotion_outputs import PROMOTION

_TENANT = argument("tenant", metavar="TENANT")
_STORE = argument("store", metavar="STORE")
_REASON = argument("--reason", default="", help="why; kept in the audit log")
_AT_ONCE_MAX = 32


def _add(call: Call) -> Answer:
    from tenants import copy_outputs, selectors
    from tenants.services.copies import copy_add
    from tenants.services.stores import store_get

    options = call.options
    tenant, store = selectors.tenant_get(options.tenant), store_get(options.store)
    row = copy_add(tenant, store, afterwards=not options.by_schedule, images=options.images, actor=call.actor)
    when = "by a schedule or copy run" if options.by_schedule else "after every backup, by a worker"
    return Answer(
        copy_outputs.copy(row),
        [
            f"Backups of {tenant.slug} will be copied to {store.name}: {when}.",
            f"Next: copy run {tenant.slug} --store {store.name}",
        ],
    )


def _set(call: Call) -> Answer:
    from engine.errors import UsageError
    from tenants import copy_outputs
    from tenants.services.copies import copy_set

    options = call.options
    if options.enabled is None and options.afterwards is None and options.images is None:
        raise UsageError("nothing is to be changed", hint="copy set --help")
    row = copy_set(
        _copy(options), enabled=options.enabled, afterwards=options.afterwards, images=options.images, actor=call.actor
    )
    return Answer(copy_outputs.copy(row), [f"The copy of {row.tenant.slug} in {row.store.name} is changed."])


def _remove(call: Call) -> Answer:
    from tenants import copy_outputs
    from tenants.services.copies import copy_remove

    row = _copy(call.options)
    call.confirm(row.tenant.slug, what=f"keep the copy of {row.tenant.slug} in {row.store.name} up no more")
    data = copy_outputs.copy(row)
    copy_remove(row, actor=call.actor, reason=call.options.reason)
    return Answer(
        data,
        [f"Nothing more is copied to {row.store.name}; what lies there under r/{row.tenant.repository_id} stays."],
    )


def _copy(options: Any) -> Any:
    from tenants import selectors
    from tenants.copy_selectors import copy_get
    from tenants.services.stores import store_get

    return copy_get(selectors.tenant_get(options.tenant), store_get(options.store))


def _list(call: Call) -> Answer:
    from tenants import copy_outputs, selectors
    from tenants.copy_selectors import copies_of, copy_primary, presence_counts

    tenant = selectors.tenant_get(call.options.tenant)
    rows = [copy_primary(tenant), *copies_of(tenant)]
    counts = presence_counts(rows)
    data = [copy_outputs.copy(row, counts=counts[row.pk]) for row in rows]
    return Answer({"data": data}, list(table([copy_outputs.copy_line(row, counts=counts[row.pk]) for row in rows])))


def _run(call: Call) -> Answer:
    from core.errors import Conflict
    from tenants import selectors
    from tenants.commanding import followed, result_of
    from tenants.copy_selectors import copies_of
    from tenants.services.copies import copy_run_start

    options = call.options
    if options.all:
        return _all(call, "run")
    tenant = selectors.tenant_get(_one_tenant(options))
    copies = [_copy(options)] if options.store else [row for row in copies_of(tenant) if row.enabled]
    if not copies:
        raise Conflict(f"tenant {tenant.slug} has no copy", hint=f"copy add {tenant.slug} STORE makes one")
    answers = []
    for copy in copies:
        operation = copy_run_start(
            copy,
            actor=call.actor,
            reason=options.reason,
            here=options.here,
            look=not options.quick,
            read_back=options.verify,
        )
        answers.append(followed(call, operation, data=result_of, text=_ran))
    return _together(answers)


def _one_tenant(options: Any) -> str:
    from engine.errors import UsageError

    if not options.tenant:
        raise UsageError("of which tenant?", hint="name one, or say --all")
    return str(options.tenant)


def _together(answers: list[Answer]) -> Answer:
    """One store's answer, or the answers of several under `data` with the gravest exit code."""
    if len(answers) == 1:
        return answers[0]
    grave = [answer.exit for answer in answers if answer.exit not in (Exit.OK, Exit.WARNED)]
    warned = [answer.exit for answer in answers if answer.exit == Exit.WARNED]
    return Answer(
        {"data": [dict(answer.data) for answer in answers]},
        [line for answer in answers for line in answer.text or ()],
        exit=(grave or warned or [int(Exit.OK)])[0],
    )


def _ran(data: Mapping[str, Any]) -> list[str]:
    rate = size_text(data["bytes_per_second"])
    held = f"{counted(data['held'], 'backup')}, {data['copied']} of them new"
    moved = f"{counted(data['objects'], 'object')}, {size_text(data['bytes'])} moved ({rate}/s)"
    lines = [f"{data['store']} is {data['health']}: {held}; {moved}"]
    if data["dropped"]:
        lines.append(f"dropped: {counted(data['dropped'], 'backup')}, {size_text(data['dropped_bytes'])} freed")
    if data["not_dropped_because"]:
        lines.append(f"nothing was dropped: {data['not_dropped_because']}")
    return [*lines, *(f"{each['store']}: {each['code']}: {each['message']}" for each in data["findings"])]


def _verify(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.services.copies import copy_verify_start

    options = call.options
    mode = "deep" if options.deep else "sample" if options.sample else "structure"
    if options.all:
        return _all(call, mode)
    _one_tenant(options)
    options.store = options.store or _primary_name(options)
    operation = copy_verify_start(
        _copy(options), mode=mode, actor=call.actor, here=options.here, repair=not options.no_repair
    )
    return followed(call, operation, data=result_of, text=_verified, exit=_found_exit)


def _primary_name(options: Any) -> str:
    from tenants import selectors

    return selectors.tenant_get(options.tenant).store.name


def _verified(data: Mapping[str, Any]) -> list[str]:
    if not data["findings"]:
        what = {"structure": "structure", "sample": "the share that was due", "deep": "every byte"}[data["mode"]]
        return [f"{data['store']} is whole ({what}): {data['objects']} objects, {size_text(data['bytes'])} read"]
    lines = [f"{each['code']}: {each['message']}" for each in data["findings"]]
    if data["affected"]:
        lines.append(f"not whole in {data['store']}: {', '.join(data['affected'][:20])}")
    repair = data["repair"]
    said = f"is queued: {repair}" if repair else f"was not queued: copy repair {data['tenant']} --store {data['store']}"
    return [*lines, f"the repair {said}"]


def _found_exit(operation: Any) -> int:
    from operations.following import operation_exit

    if (operation.result or {}).get("findings"):
        return int(Exit.INTEGRITY)
    return operation_exit(operation)


def _repair(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.services.copies import copy_repair_start

    options = call.options
    options.store = options.store or _primary_name(options)
    operation = copy_repair_start(_copy(options), actor=call.actor, reason=options.reason, here=options.here)
    return followed(call, operation, data=result_of, text=_repaired, exit=_damaged_exit)


def _repaired(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{each['key']}: mended from {each['from']}" for each in data["mended"]]
    lines += [f"{each['key']}: lost: {each['why']}" for each in data["lost"]]
    if data["whole_again"]:
        lines.append(f"whole again: {', '.join(data['whole_again'][:20])}")
    if data["damaged"]:
        lines.append(f"not whole in {data['store']}: {', '.join(data['damaged'][:20])}; take a full backup now")
    return lines or [f"{data['store']}: nothing was known to be lost or altered"]


def _damaged_exit(operation: Any) -> int:
    from operations.following import operation_exit

    if (operation.result or {}).get("damaged"):
        return int(Exit.INTEGRITY)
    return operation_exit(operation)


def _promote(call: Call) -> Answer:
    from tenants import selectors
    from tenants.promotion_outputs import promotion_followed
    from tenants.services.stores import store_get

    options = call.options
    tenant, store = selectors.tenant_get(options.tenant), store_get(options.store)
    return promotion_followed(call, tenant, store, lost=options.lost, ending=options.end_old, deep=options.deep)


def _strangers(call: Call) -> Answer:
    from dataclasses import asdict

    from tenants.commanding import followed, result_of
    from tenants.copy_opening import copy_open
    from tenants.services.strangers import strangers_found, strangers_start

    options = call.options
    options.store = options.store or _primary_name(options)
    copy = _copy(options)
    if options.set_aside:
        operation = strangers_start(copy, actor=call.actor, reason=options.reason, here=options.here)
        return followed(call, operation, data=result_of, text=_set_aside)
    with copy_open(copy) as repository:
        found = strangers_found(copy.tenant, repository)
    lines = [f"{each.key}: {size_text(each.bytes)}: {each.why}" for each in found]
    if found:
        lines.append(f"Next: copy strangers {copy.tenant.slug} --store {copy.store.name} --set-aside")
    data = {"tenant": copy.tenant.slug, "store": copy.store.name, "strangers": [asdict(each) for each in found]}
    return Answer(
        data,
        lines or [f"{copy.store.name} holds nothing of strangers among the numbers of {copy.tenant.slug}"],
        exit=Exit.INTEGRITY if found else Exit.OK,
    )


def _set_aside(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{each['key']}: set aside, its bytes are kept in damaged/" for each in data["set_aside"]]
    return lines or ["nothing was there to be set aside"]


def _all(call: Call, what: str) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.services.copies import copies_all_start

    options = call.options
    operation = copies_all_start(what=what, at_once=options.at_once, actor=call.actor, here=options.here)
    return followed(call, operation, data=result_of, text=_all_ran)


def _all_ran(data: Mapping[str, Any]) -> list[str]:
    said = ", ".join(f"{number} {state}" for state, number in sorted(data["counts"].items()))
    return [
        f"copies: {said or 'none'}",
        *(f"{each['tenant']} in {each['store']}: {each['error']}" for each in data["failed"]),
    ]


def _status(call: Call) -> Answer:
    from tenants import copy_outputs, selectors
    from tenants.copy_selectors import protections, tenants_page

    options = call.options
    if options.tenant:
        tenants = [selectors.tenant_get(options.tenant)]
    else:
        tenants = tenants_page(after=options.after, limit=options.limit)
    rows = protections(tenants)
    shown = [row for row in rows if not (options.short and row.holds)]
    exit_code = Exit.OK if all(row.holds for row in rows) else Exit.WARNED
    return Answer(
        {"data": [copy_outputs.protection(row) for row in shown]}, copy_outputs.protection_lines(shown), exit=exit_code
    )


_ALL = (
    argument("--all", action="store_true", help="of all tenants"),
    argument("--at-once", type=count(_AT_ONCE_MAX), default=2, help=f"with --all: so many at a time (2, at most {_AT_ONCE_MAX})"),
)  # fmt: skip


class Command(NounCommand):
    help = "Keep backups in more than one store: add copies, run, verify and repair them, see whether they suffice."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "have a further store hold the tenant's backups",
            (
                _TENANT,
                _STORE,
                argument("--by-schedule", action="store_true", help="not after every backup"),
                argument("--images", action="store_true", help="copy the change images of restores, too"),
            ),
        ),
        Verb(
            "set",
            _set,
            "change when and whether a copy is kept up",
            (
                _TENANT,
                _STORE,
                argument("--on", dest="enabled", action="store_const", const=True, help="keep it up"),
                argument("--off", dest="enabled", action="store_const", const=False, help="keep it as it is"),
                argument("--afterwards", action="store_const", const=True, help="after every backup"),
                argument(
                    "--by-schedule", dest="afterwards", action="store_const", const=False, help="not after every backup"
                ),
                argument("--images", action="store_const", const=True, help="with change images of restores"),
                argument("--no-images", dest="images", action="store_const", const=False, help="without them"),
            ),
        ),
        Verb("remove", _remove, "keep a copy up no more; its objects stay", (_TENANT, _STORE, _REASON), confirm=True),
        Verb("list", _list, "list a tenant's primary and copies", (_TENANT,)),
        Verb(
            "run",
            _run,
            "bring copies up to date, and drop what their retention has let go",
            (
                argument("tenant", metavar="TENANT", nargs="?", default=""),
                argument("--store", default="", metavar="S", help="only this one"),
                argument("--quick", action="store_true", help="believe the copy's index instead of listing its packs"),
                argument("--verify", action="store_true", help="read back whole what was copied"),
                _REASON,
                *_ALL,
            ),
            long=True,
        ),
        Verb(
            "verify",
            _verify,
            "check what lies in a store",
            (
                argument("tenant", metavar="TENANT", nargs="?", default=""),
                argument("--store", default="", metavar="S", help="the store (the primary)"),
                argument(
                    "--structure",
                    "--structural",
                    action="store_true",
                    help="manifests, index, packs listed (the default)",
                ),
                argument("--sample", action="store_true", help="read the share of bytes that is due today"),
                argument("--deep", action="store_true", help="the structure, and every byte"),
                argument("--no-repair", action="store_true", help="queue no repair of what is found"),
                *_ALL,
            ),
            long=True,
        ),
        Verb(
            "repair",
            _repair,
            "mend what was found lost or altered from another copy",
            (_TENANT, argument("--store", default="", metavar="S", help="the store (the primary)"), _REASON),
            long=True,
        ),
        Verb(
            "promote",
            _promote,
            "make a copy the primary: brought up to date and verified first, or with --lost after a loss",
            (_TENANT, _STORE, *PROMOTION),
            long=True,
            confirm=True,
        ),
        Verb(
            "strangers",
            _strangers,
            "list what somebody put among a repository's numbers, and set it aside",
            (
                _TENANT,
                argument("--store", default="", metavar="S", help="the store (the primary)"),
                argument(
                    "--set-aside", action="store_true", help="free their places; their bytes are kept in damaged/"
                ),
                _REASON,
            ),
            long=True,
        ),
        Verb(
            "status",
            _status,
            "whether copies, media and places are enough (3-2-1)",
            (
                argument("tenant", metavar="TENANT", nargs="?", default=""),
                argument("--short", action="store_true", help="only those that fall short"),
                argument("--after", default="", metavar="SLUG", help="go on after this tenant"),
                argument("--limit", type=count(200), default=200, help="at most 200"),
            ),
        ),
    )
