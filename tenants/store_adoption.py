"""The verbs `store adopt` and `store reconcile`: what they take and how people read their answers."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Call, Verb, argument
from core.errors import Exit

_NAMED_MAX = 10


def _adopt(call: Call) -> Answer:
    from tenants.commanding import settings_of
    from tenants.management.commands.kit import kit_read, passphrase_asked
    from tenants.services.adopting import store_adopt
    from tenants.services.kits import kit_knows, kit_take

    options, known = call.options, None
    if options.accept_rollback:
        call.confirm(options.name, what=_ROLLBACK)
    if options.kit:
        kit, passphrase = kit_read(options.kit), passphrase_asked(call, again=False)
        known = kit_knows(kit, passphrase)
        kit_take(kit, passphrase, actor=call.actor, replace_unused=True)
    actor, approval = _adoption_agreed(call)
    done = store_adopt(
        options.name,
        kind=options.kind,
        values=settings_of(options.set),
        backup=getattr(options, "from"),
        repository_id=options.catalogue,
        known=known,
        accept_rollback=options.accept_rollback,
        approval=approval,
        actor=actor,
        note=call.terminal.note,
    )
    worse = done.failed or done.without_keys or done.audit or done.unrestored or done.contradictions
    lost = done.keys_put_back or any(each["missing"] or each["replaced"] for each in done.tenants)
    exit = Exit.INTEGRITY if lost else Exit.WARNED if worse else Exit.OK
    return Answer(asdict(done), _adopted(asdict(done)), exit=exit)


_ROLLBACK = (
    "take a catalogue although the stores know of more: accounts, holds, retention and settings come back as that backup has "
    "them, and with former keys somebody may have written it"
)


def _adoption_agreed(call: Call) -> tuple[str, Any]:
    """On an installation that is at work a second master has to agree; a clean one has no masters yet."""
    from tenants.services.adopting import adopt_action, adopts_at_work

    if not adopts_at_work():
        return call.actor, None
    return agreed(call, adopt_action(call.options.name))


def _adopted(data: Mapping[str, Any]) -> list[str]:
    sources = {"manifests": "what its manifests tell", "": "as it was"}
    source = sources.get(data["source"], f"that of {data['source']} {data['taken_at']}".strip())
    lines = [f"Store {data['store']} is adopted: the catalogue is {source}, owner {data['generation']}."]
    lines += [_reconciled_line(each) for each in data["tenants"]]
    for slugs, said in (
        (data["rebuilt"], "rebuilt from manifests; give their sources' settings with source set, then source enable"),
        (data["promoted"], "their backups go on in this store; the one they lay in is not there"),
        (data["without_keys"], "NO KEYS were found: adopt or reconcile a store that keeps them"),
        (
            data["keys_put_back"],
            "FORMER KEYS lie in every store: somebody put them there; believe no new backup of these",
        ),
    ):
        if slugs:
            lines.append(f"{_some(slugs)}: {said}")
    lines += [f"not reconciled: {each['tenant']}: {each['detail']}" for each in data["failed"]]
    lines += [f"accepted although contradicted: {each}" for each in data["contradictions"]]
    lines += [f"audit log: {each}" for each in data["audit"]]
    lines += [f"not restored: {each}" for each in data["unrestored"]]
    return [*lines, "Next: doctor, then kit check; restores as always."]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


def _reconcile(call: Call) -> Answer:
    from tenants.selectors import tenant_get
    from tenants.services.ownership import store_reconcile, take_over_action
    from tenants.services.stores import store_get

    options = call.options
    row = store_get(options.name)
    if options.take_over:
        call.confirm(row.name, what=f"take store {row.name} over from the installation that owns it")
    tenant = tenant_get(options.tenant) if options.tenant else None
    actor, approval = agreed(call, take_over_action(row)) if options.take_over else (call.actor, None)
    done = store_reconcile(
        row, tenant=tenant, take_over=options.take_over, actor=actor, approval=approval, note=call.terminal.note
    )
    data = asdict(done)
    missing = any(each["missing"] or each["replaced"] for each in data["tenants"])
    exit = Exit.FAILED if data["failed"] else Exit.INTEGRITY if missing else Exit.OK
    return Answer(data, _reconciled(data), exit=exit)


def _reconciled(data: Mapping[str, Any]) -> list[str]:
    lines = [f"Store {data['store']}, owner {data['generation']}: {len(data['tenants'])} tenants are reconciled."]
    lines += [_reconciled_line(each) for each in data["tenants"] if _has_news(each)]
    lines += [f"rebuilt from manifests: {each}" for each in data["rebuilt"]]
    return lines + [f"not reconciled: {each['tenant']}: {each['detail']}" for each in data["failed"]]


def _has_news(each: Mapping[str, Any]) -> bool:
    return bool(each["adopted"] or each["ended"] or each["left"] or each["missing"] or each["replaced"])


def _reconciled_line(each: Mapping[str, Any]) -> str:
    counts = f"{len(each['adopted'])} backups taken over, {len(each['ended'])} ended"
    lost = f", MISSING in the store: {_some(each['missing'])}" if each["missing"] else ""
    lost += f", LOST, others lie under their numbers: {_some(each['replaced'])}" if each["replaced"] else ""
    left = f", in other copies alone: {_some(each['left'])}" if each["left"] else ""
    return f"{each['tenant']}: {counts}{left}{lost}"


def _lost(call: Call) -> Answer:
    from tenants.services.given_up import given_up_list

    rows = given_up_list()
    return Answer({"data": rows}, [_lost_line(each) for each in rows] or ["No store was ever given up."])


def _lost_line(row: Mapping[str, Any]) -> str:
    ends = (
        f"declared destroyed on {row['destroyed_at']:%Y-%m-%d}" if row["destroyed_at"] else "not known to be destroyed"
    )
    shredded = f", among them shredded: {_some(row['shredded'])}" if row["shredded"] else ""
    return (
        f"{row['id']}  {row['name']} ({row['kind']}) given up on {row['given_up_at']:%Y-%m-%d}: {ends}; "
        f"may hold {row['keyrings']} keyrings of {row['tenants']} tenants{shredded}"
    )


def _destroyed(call: Call) -> Answer:
    from tenants.services.given_up import destroyed_action, given_up_destroyed, given_up_get

    options = call.options
    store = given_up_get(options.store)
    call.confirm(store.name, what=f"declare that nothing of {store.words} exists any more; certificates will quote it")
    actor, approval = agreed(call, destroyed_action(store, options.reason))
    slugs = given_up_destroyed(store, confirmed=store.name, reason=options.reason, approval=approval, actor=actor)
    lines = [f"{store.words} is declared destroyed."]
    lines += [f"Next, for its certificate: key shred {slug} --confirm {slug} --reason …" for slug in slugs[:_NAMED_MAX]]
    return Answer({"id": store.pk, "name": store.name, "destroyed_at": store.destroyed_at, "shredded": slugs}, lines)


VERBS: tuple[Verb, ...] = (
    Verb("lost", _lost, "stores that were given up, and what may still lie in them"),
    Verb(
        "destroyed",
        _destroyed,
        "declare that nothing of a given-up store exists any more",
        (
            argument("store", metavar="ID|NAME", help="as store lost shows it"),
            argument("--reason", required=True, metavar="TEXT", help="how it is known; certificates quote it"),
            *MASTER_ARGUMENTS,
        ),
        confirm=True,
    ),
    Verb(
        "adopt",
        _adopt,
        "rebuild the catalogue of a lost installation from this store, and own it from now on",
        (
            argument("name", metavar="NAME", help="its name in the lost catalogue, or a new one for a copy"),
            argument("--kind", default="", help="local, …; store kinds lists them"),
            argument(
                "--set", action="append", metavar="KEY=VALUE", help="a setting; a secret may be @FILE or env:NAME"
            ),
            argument(
                "--kit", default="", metavar="FILE", help="the recovery kit; without it the root key must be in place"
            ),
            argument("--passphrase", metavar="@FILE|env:NAME", help="where the kit's passphrase is read"),
            argument("--from", default="", metavar="BACKUP", help="this backup of the catalogue, not the newest"),
            argument("--catalogue", default="", metavar="ID", help="which, when several installations share the store"),
            argument(
                "--accept-rollback",
                action="store_true",
                help="although the stores know of more than its newest backup of the catalogue; docs/recovery.md says what that risks",
            ),
            *MASTER_ARGUMENTS,
        ),
        confirm=True,
    ),
    Verb(
        "reconcile",
        _reconcile,
        "take over what the store knows, after the catalogue was restored; until then nothing is deleted",
        (
            argument("name", metavar="NAME"),
            argument("--tenant", default="", metavar="TENANT", help="only this one"),
            argument("--take-over", action="store_true", help="become the owner again after another installation did"),
            *MASTER_ARGUMENTS,
        ),
        confirm=True,
    ),
)
