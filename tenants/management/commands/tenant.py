"""`tenant`: the customers of the platform."""

from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Call, NounCommand, Verb, argument, count
from engine.errors import UsageError
from tenants.promotion_outputs import PROMOTION

_CLASSES = ("critical", "important", "normal")


def _add(call: Call) -> Answer:
    from tenants import outputs
    from tenants.services.tenants import tenant_add

    options = call.options
    row = tenant_add(
        options.slug, name=options.name, criticality=options.criticality, store_name=options.store, actor=call.actor
    )
    return Answer(
        outputs.tenant(row),
        [
            f"Tenant {row.slug} is there, with keys and a repository of its own in store {row.store.name}.",
            f"Next: source add {row.slug} NAME --kind files --category assets --set path=DIR",
        ],
    )


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import selectors

    rows = selectors.tenant_list(after=call.options.after, limit=call.options.limit)
    return {
        "data": [
            {
                "slug": row.tenant.slug,
                "name": row.tenant.name,
                "class": row.tenant.criticality,
                "sources": row.source_count,
                "newest_backup": row.newest.pk if row.newest else None,
                "state": row.newest.state if row.newest else None,
            }
            for row in rows
        ]
    }


def _set(call: Call) -> Answer:
    from tenants import outputs
    from tenants.selectors import tenant_get
    from tenants.services.tenants import tenant_update

    options = call.options
    changed = (options.name, options.criticality, options.platform_version) != (None, None, None)
    if options.store is not None:
        return _move(call, changed=changed)
    if options.lost or options.end_old or options.deep:
        raise UsageError("--lost, --end-old and --deep go with --store", hint="tenant set SLUG --store NAME")
    row = tenant_update(
        tenant_get(options.slug),
        name=options.name,
        criticality=options.criticality,
        platform_version=options.platform_version,
        actor=call.actor,
    )
    return Answer(outputs.tenant(row), [f"Tenant {row.slug} is changed; backups taken from now on record it."])


def _move(call: Call, *, changed: bool) -> Answer:
    from tenants.promotion_outputs import promotion_followed
    from tenants.selectors import tenant_get
    from tenants.services.stores import store_get

    options = call.options
    if changed:
        raise UsageError(
            "--store moves the primary and changes nothing else", hint="change the rest by a command of its own"
        )
    store = store_get(options.store)
    return promotion_followed(
        call, tenant_get(options.slug), store, lost=options.lost, ending=options.end_old, deep=options.deep
    )


def _remove(call: Call) -> Answer:
    from core.text import counted
    from tenants import outputs
    from tenants.selectors import tenant_get
    from tenants.services.tenants import tenant_archive, tenant_backup_count

    row = tenant_get(call.options.slug)
    count = tenant_backup_count(row)
    if count and row.archived_at is None:
        call.confirm(
            row.slug, what=f"remove tenant {row.slug}, which has {counted(count, 'backup')}; nothing of that goes"
        )
    row = tenant_archive(row, actor=call.actor)
    return Answer(
        {**outputs.tenant(row), "backups": count},
        [f"Tenant {row.slug} is removed; its {counted(count, 'backup', 'stay')}. Back: tenant reinstate {row.slug}"],
    )


def _reinstate(call: Call) -> Mapping[str, Any]:
    from tenants import outputs
    from tenants.selectors import tenant_get
    from tenants.services.tenants import tenant_reinstate

    return outputs.tenant(tenant_reinstate(tenant_get(call.options.slug), actor=call.actor))


def _hold(call: Call) -> Answer:
    return _held(call, held=True)


def _release(call: Call) -> Answer:
    return _held(call, held=False)


def _held(call: Call, *, held: bool) -> Answer:
    from tenants import outputs
    from tenants.selectors import tenant_get
    from tenants.services.holds import release_action
    from tenants.services.tenants import tenant_hold

    row, reason = tenant_get(call.options.slug), call.options.reason
    actor, approval = agreed(call, release_action(row, reason)) if row.held and not held else (call.actor, None)
    row = tenant_hold(row, held=held, reason=reason, actor=actor, approval=approval)
    text = "is under legal hold: no backup of it is ended, no key destroyed" if held else "is under no legal hold"
    return Answer(outputs.tenant(row), [f"Tenant {row.slug} {text}."])


def _show(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    row = selectors.tenant_get(call.options.slug)
    return {**outputs.tenant(row), "sources": [outputs.source(each) for each in selectors.source_list(row)]}


class Command(NounCommand):
    help = "Add, change and list tenants."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "add a tenant, with keys and a repository of its own",
            (
                argument("slug", metavar="SLUG"),
                argument("--name", required=True, help="name as people read it"),
                argument("--class", dest="criticality", choices=_CLASSES, default="normal", help="how much it matters"),
                argument("--store", default="", metavar="NAME", help="the store of its repository"),
            ),
        ),
        Verb(
            "list",
            _list,
            "list tenants by slug",
            (
                argument("--after", default="", metavar="SLUG", help="go on after this one"),
                argument("--limit", type=count(200), default=200, help="at most 200"),
            ),
        ),
        Verb(
            "set",
            _set,
            "change its name, its class, the platform version it runs, or the store of its primary",
            (
                argument("slug", metavar="SLUG"),
                argument("--name", help="name as people read it"),
                argument("--class", dest="criticality", choices=_CLASSES, help="how much it matters"),
                argument("--platform-version", metavar="V", help="what its application runs; kept in each backup"),
                argument("--store", metavar="NAME", help="move its primary there: copied, verified, then switched"),
                *PROMOTION,
            ),
            long=True,
            confirm=True,
        ),
        Verb(
            "remove",
            _remove,
            "take no more backups of it; those it has stay, in the store too",
            (argument("slug", metavar="SLUG"),),
            confirm=True,
        ),
        Verb("reinstate", _reinstate, "bring a removed one back", (argument("slug", metavar="SLUG"),)),
        Verb(
            "hold",
            _hold,
            "put it under legal hold: no backup of it is ended, no key destroyed",
            (argument("slug", metavar="SLUG"), argument("--reason", required=True, help="why; kept in the audit log")),
        ),
        Verb(
            "release",
            _release,
            "take the legal hold off",
            (
                argument("slug", metavar="SLUG"),
                argument("--reason", default="", help="why; kept in the audit log"),
                *MASTER_ARGUMENTS,
            ),
        ),
        Verb("show", _show, "show a tenant and its sources", (argument("slug", metavar="SLUG"),)),
    )
