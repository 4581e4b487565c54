"""`source`: what is protected."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument

_CATEGORIES = ("database", "assets", "configurations")
_CLASSES = ("critical", "important", "normal")
_SET = argument("--set", action="append", metavar="KEY=VALUE", help="a setting; a secret may be @FILE or env:NAME")
_NO_TEST = argument("--no-test", action="store_true", help="save it untested")
_CLASS = argument(
    "--class", dest="criticality", choices=_CLASSES, default="", help="how much it matters; at first as the tenant does"
)
_WHICH = (argument("tenant", metavar="TENANT"), argument("name", metavar="NAME"))


def _add(call: Call) -> Answer:
    from tenants.commanding import settings_of
    from tenants.selectors import tenant_get
    from tenants.services.sources import source_add

    options = call.options
    row, probe = source_add(
        tenant_get(options.tenant),
        options.name,
        kind=options.kind,
        category=options.category,
        values=settings_of(options.set),
        criticality=options.criticality,
        actor=call.actor,
        test=not options.no_test,
    )
    return _told(call, row, probe, f"Next: backup create {options.tenant} --type full --here")


def _set(call: Call) -> Answer:
    from tenants.commanding import settings_of
    from tenants.services.sources import source_update

    row, probe = source_update(
        _source(call),
        values=settings_of(call.options.set),
        criticality=call.options.criticality,
        actor=call.actor,
        test=not call.options.no_test,
    )
    return _told(call, row, probe, "")


def _test(call: Call) -> Answer:
    from tenants.services.sources import source_test

    row = _source(call)
    return _told(call, row, source_test(row, actor=call.actor), "")


def _told(call: Call, row: Any, probe: Any, following: str) -> Answer:
    from tenants import outputs

    data = outputs.source(row)
    lines = [f"Source {row.name} of {row.tenant.slug}: {probe.summary if probe else 'saved untested'}"]
    if probe is not None:
        data["probe"] = {
            "summary": probe.summary,
            "details": dict(probe.details),
            "warnings": list(probe.warnings),
        }
        for warning in probe.warnings:
            call.terminal.note(f"warning: {warning}")
    return Answer(data, [*lines, *([following] if following else [])])


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    rows = [outputs.source(row) for row in selectors.source_list(selectors.tenant_get(call.options.tenant))]
    return {"data": rows} if call.options.json else {"data": [_short(row) for row in rows]}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("name", "kind", "category", "class", "enabled", "last_good_at", "last_good_backup")
    return {field: row[field] for field in fields}


def _show(call: Call) -> Mapping[str, Any]:
    from tenants import outputs

    return outputs.source(_source(call))


def _enable(call: Call) -> Mapping[str, Any]:
    return _switch(call, enabled=True)


def _disable(call: Call) -> Mapping[str, Any]:
    return _switch(call, enabled=False)


def _switch(call: Call, *, enabled: bool) -> Mapping[str, Any]:
    from tenants import outputs
    from tenants.services.sources import source_enable

    return outputs.source(source_enable(_source(call), enabled=enabled, actor=call.actor))


def _remove(call: Call) -> Answer:
    from core.text import counted
    from tenants import outputs
    from tenants.services.sources import source_archive, source_backup_count

    row = _source(call)
    count = source_backup_count(row)
    if count:
        what = f"remove source {row.name} of {row.tenant.slug}, of which there {'is' if count == 1 else 'are'} {counted(count, 'backup')}; nothing of that goes"
        call.confirm(row.tenant.slug, what=what)
    row = source_archive(row, actor=call.actor)
    return Answer(
        {**outputs.source(row), "backups": count},
        [
            f"Source {row.name} is removed; its {counted(count, 'backup', 'stay')}. Back: source reinstate {row.tenant.slug} {row.name}"
        ],
    )


def _reinstate(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors
    from tenants.services.sources import source_reinstate

    tenant = selectors.tenant_get(call.options.tenant)
    return outputs.source(source_reinstate(tenant, call.options.name, actor=call.actor))


def _kinds(call: Call) -> Answer:
    import connectors
    from tenants.commanding import kinds_answer
    from tenants.outputs import kind

    return kinds_answer([kind(adapter) for adapter in connectors.load_all()])


def _source(call: Call) -> Any:
    from tenants import selectors

    return selectors.source_get(selectors.tenant_get(call.options.tenant), call.options.name)


class Command(NounCommand):
    help = "Add, change, test and list sources."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "add a source after testing it",
            (
                *_WHICH,
                argument(
                    "--kind", required=True, help="files, sqlite, postgresql, eventlog, …; source kinds lists them"
                ),
                argument("--category", required=True, choices=_CATEGORIES, help="what it holds"),
                _CLASS,
                _SET,
                _NO_TEST,
            ),
        ),
        Verb("set", _set, "change settings, tested; the others stay", (*_WHICH, _SET, _CLASS, _NO_TEST)),
        Verb("test", _test, "connect and check rights", _WHICH),
        Verb("list", _list, "list a tenant's sources", (argument("tenant", metavar="TENANT"),)),
        Verb("show", _show, "show a source; secrets are only said to be set", _WHICH),
        Verb("enable", _enable, "take it into backups of the whole tenant", _WHICH),
        Verb("disable", _disable, "leave it out of backups of the whole tenant", _WHICH),
        Verb("remove", _remove, "remove it; its backups stay", _WHICH, confirm=True),
        Verb("reinstate", _reinstate, "bring a removed one back", _WHICH),
        Verb("kinds", _kinds, "list the kinds of sources and their settings"),
    )
