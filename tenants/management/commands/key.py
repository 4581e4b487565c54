"""`key`: the root key, the keys of tenants, where they lie, and their destruction."""

import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, master_of
from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.errors import Exit, NotFound
from engine.errors import TargetDenied, TargetOccupied, UsageError
from tenants.commanding import followed, result_of


def _list(call: Call) -> Answer:
    from tenants.services.keys import key_list

    options = call.options
    data = key_list(_tenant(options.tenant), after=options.after, limit=options.limit)
    return Answer(data, _list_text(data))


def _list_text(data: Mapping[str, Any]) -> list[str]:
    root = data["root_key"]
    lines = [f"root key {root['id'] or 'none yet'}"]
    if root["still_needed"]:
        lines.append(f"  the one before, {root['still_needed']}, is still needed: go on with key rotate-root")
        lines += [f"  waiting: {each}" for each in root["waiting"]]
    for row in data["data"]:
        if row["shredded_at"]:
            lines.append(f"{row['tenant']}: destroyed on {row['shredded_at']:%Y-%m-%d %H:%M} UTC")
            continue
        newest = row["epochs"][-1] if row["epochs"] else {"age_days": "?"}
        lines.append(f"{row['tenant']}: epoch {row['epoch']}, {newest['age_days']} days old")
        for place in row["places"]:
            error = f" ({place['error']})" if place["error"] else ""
            lines.append(f"  store {place['store']}: {place['state']}{error}")
        if not row["places"]:
            lines.append("  in no store but by the next backup: key repair")
    return lines


def _verify(call: Call) -> Answer:
    from dataclasses import asdict

    from tenants.services.keys import keys_verify

    verdict = keys_verify(_tenant(call.options.tenant))
    serious = [each for each in verdict.findings if each.serious]
    status = "damaged" if serious else "incomplete" if verdict.findings else "ok"
    text = [f"{verdict.tenants} keyrings in {verdict.places} places: {status}"]
    text += [f"  {each.tenant}, {each.place}: {each.state} - {each.message}" for each in verdict.findings]
    text += ["Next: key repair"] if verdict.findings else []
    exits = {"ok": Exit.OK, "incomplete": Exit.WARNED, "damaged": Exit.INTEGRITY}
    answer = {
        "status": status,
        "tenants": verdict.tenants,
        "places": verdict.places,
        "findings": [asdict(each) for each in verdict.findings],
    }
    return Answer(answer, text, exit=exits[status])


def _repair(call: Call) -> Answer:
    from dataclasses import asdict

    from tenants.services.keys import keys_repair

    done = keys_repair(_tenant(call.options.tenant), actor=call.actor)
    text = [f"{done.written} keyrings were put into stores, {done.removed} removed from stores that keep none."]
    text += [f"The catalogue took back the keyring of {slug} from a store." for slug in done.taken]
    text += [f"still wrong: {each}" for each in done.failed]
    return Answer(asdict(done), text, exit=Exit.WARNED if done.failed else Exit.OK)


def _generate(call: Call) -> Answer:
    from engine.keys import RootKey

    key, path = RootKey.generate(), os.path.abspath(call.options.output)
    _write_new(path, f"{key.to_text()}\n".encode())
    return Answer({"key_id": key.key_id, "path": path}, [f"A new root key {key.key_id} is in {path}; nothing uses it."])


def _rotate(call: Call) -> Answer:
    from access.approvals import approval_ask
    from tenants.services.key_rotation import compromise_action, tenant_rotate_start

    options = call.options
    tenant = _tenant(options.tenant)
    assert tenant is not None
    actor, approval = call.actor, None
    if options.compromised:
        call.confirm(tenant.slug, what=f"have the next backups of {tenant.slug} store everything anew")
        actor = master_of(call) or call.actor
        approval = approval_ask(compromise_action(tenant, options.reason), requested_by=_asker(call, actor))
    operation = tenant_rotate_start(
        tenant,
        compromised=options.compromised,
        reason=options.reason,
        approval=approval,
        actor=actor,
        here=options.here,
    )
    return followed(call, operation, data=result_of, text=_rotate_text)


def _asker(call: Call, actor: str) -> str:
    """The master who asks; nobody, when none has shown a password: an account of this host is not one of two masters."""
    return actor if call.options.master else ""


def _rotate_text(data: Mapping[str, Any]) -> list[str]:
    lines = [f"Tenant {data['tenant']} writes with epoch {data['epoch']} from now on; older backups stay readable."]
    if data["compromised"]:
        lines.append("Its next backup stores everything anew. What was stored before opens with the keys that got out:")
        lines.append("end the old backups as soon as you can (backup delete, then backup prune).")
    return lines


def _rotate_root(call: Call) -> Answer:
    from access.approvals import approval_ask
    from tenants.services.key_rotation import root_action, root_rotate_start, root_rotation_running

    options = call.options
    actor, approval, given = master_of(call) or call.actor, None, _given(options.to)
    if not root_rotation_running():  # Going on with one that was agreed to needs no second agreement.
        approval = approval_ask(root_action(options.reason, given), requested_by=_asker(call, actor))
    _, operation = root_rotate_start(
        given=given, reason=options.reason, approval=approval, actor=actor, here=options.here
    )
    return followed(call, operation, data=result_of, text=_rotate_root_text)


def _given(text: str | None) -> Any:
    from engine.adapters import resolve_secret
    from engine.keys import RootKey

    if text is None:
        return None
    if not text.startswith(("@", "env:")):
        raise UsageError("a root key does not belong on a command line", hint="--to @FILE or env:NAME")
    return RootKey.from_text(resolve_secret(text))


def _rotate_root_text(data: Mapping[str, Any]) -> list[str]:
    wrapped = ", ".join(f"{count} {label}" for label, count in data["rewrapped"].items() if count) or "nothing"
    lines = [f"Root key {data['new_key_id']} is in the place of {data['old_key_id']}; wrapped anew: {wrapped}."]
    if data["finished"]:
        return [
            *lines,
            "The old key opens nothing any more. Next: kit export, the kits made before are outdated;",
            "and catalogue backup --here, as the backups before are under the former keys (a worker does it by itself).",
        ]
    lines += [f"waiting: {each}" for each in data["waiting"]]
    return [*lines, f"The old key {data['old_key_id']} is still needed. Next: key rotate-root, when that is mended."]


def _shred(call: Call) -> Answer:
    from access.approvals import approval_ask
    from tenants.services.shredding import hold_checked, shred_action, shred_start

    options = call.options
    tenant = _tenant(options.tenant)
    assert tenant is not None
    hold_checked(tenant)
    call.confirm(tenant.slug, what=f"destroy the keys of {tenant.slug}: none of its backups can ever be read again")
    actor = master_of(call) or call.actor
    approval = None
    if tenant.shredded_at is None:
        approval = approval_ask(shred_action(tenant, options.reason), requested_by=_asker(call, actor))
    operation = shred_start(
        tenant, confirmed=tenant.slug, reason=options.reason, approval=approval, actor=actor, here=options.here
    )
    return followed(call, operation, data=result_of, text=_shred_text)


def _shred_text(data: Mapping[str, Any]) -> list[str]:
    lines = [f"The keys of {data['tenant']} are destroyed. Certificate {data['certificate']}: {data['state']}."]
    for each in data["pending"]:
        until = f" until {each['until'][:10]}" if each["until"] else ""
        lines.append(f"  pending{until}: {each['place']}, {each['what']}: {each['why']}")
    again = f"Next: key shred {data['tenant']} again, when that is mended; it issues the next certificate."
    return [*lines, again if data["pending"] else f"Next: key certificate show {data['tenant']} --output FILE"]


def _certificate(call: Call) -> Answer:
    return _certificate_show(call) if call.options.what == "show" else _certificate_verify(call)


def _certificate_show(call: Call) -> Answer:
    from tenants.services.shredding import certificate_get

    tenant = _tenant(call.options.subject)
    assert tenant is not None
    document = certificate_get(tenant).document
    if call.options.output:
        path = os.path.abspath(call.options.output)
        _write_new(path, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
        return Answer({**document, "path": path}, [f"Certificate {document['id']} is in {path}."])
    return Answer(document, _certificate_text(document))


def _certificate_text(document: Mapping[str, Any]) -> list[str]:
    superseding = f", takes the place of {document['supersedes'][:16]}…" if document["supersedes"] else ""
    lines = [
        f"Certificate {document['id']} (number {document['number']}{superseding})",
        f"tenant {document['tenant']['slug']} ({document['tenant']['id']}), repository {document['repository_id']}",
        f"keys destroyed at {document['keys_destroyed_at']}; issued at {document['issued_at']}",
        f"reason: {document['reason']}",
        f"asked for by {document['requested_by']}" + _agreed(document["approved_by"]),
        "destroyed:",
    ]
    for each in document["destroyed"]:
        digest = f", sha256 {each['sha256']}" if each["sha256"] else ""
        lines.append(f"  {each['place']}: {each['what']} ({each['versions']} versions{digest})")
    lines.append(f"state: {document['state']}")
    for each in document["pending"]:
        until = f" until {each['until'][:10]}" if each["until"] else ""
        lines.append(f"  pending{until}: {each['place']}, {each['what']}: {each['why']}")
    lines += [f"note: {each}" for each in document["notes"]]
    return [*lines, f"public key {document['public_key']}"]


def _agreed(master: str | None) -> str:
    return f", agreed to by {master}" if master else ""


def _certificate_verify(call: Call) -> Answer:
    from engine.bounded import read_bounded
    from engine.certificate import CERTIFICATE_BYTES_MAX
    from tenants.services.shredding import certificate_verify

    path = call.options.subject
    try:
        blob = read_bounded(path, bytes_max=CERTIFICATE_BYTES_MAX)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", hint="name the certificate's file") from error
    document = certificate_verify(blob, public_key=call.options.public_key or "")
    by = "the given key" if call.options.public_key else "this installation's key"
    text = [f"Certificate {document['id']} for {document['tenant']['slug']} is genuine, by {by}: {document['state']}."]
    return Answer({"genuine": True, **document}, text)


def _write_new(path: str, content: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TargetOccupied(f"{path} exists", hint="give a new file") from None
    except OSError as error:
        raise TargetDenied(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _tenant(slug: str | None) -> Any:
    from tenants.selectors import tenant_get

    return tenant_get(slug) if slug else None


_TENANT = argument("tenant", metavar="TENANT")
_MAYBE = argument("tenant", metavar="TENANT", nargs="?", help="only this one")
_REASON = argument("--reason", default="", metavar="TEXT", help="for the audit log")


class Command(NounCommand):
    help = "Look after keys: list, verify, rotate, destroy."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "list",
            _list,
            "ids, epochs with their ages, and where keyrings lie; needs no key",
            (
                _MAYBE,
                argument("--after", default="", metavar="SLUG", help="go on after this one"),
                argument("--limit", type=count(200), default=200, help="at most 200"),
            ),
        ),
        Verb("verify", _verify, "open the keyring in every place and compare (exit 7 when one is wrong)", (_MAYBE,)),
        Verb("repair", _repair, "put keyrings where they are missing or wrong", (_MAYBE,)),
        Verb(
            "generate",
            _generate,
            "write a new root key into a file; nothing uses it yet",
            (argument("--output", required=True, metavar="FILE", help="a file that does not exist yet"),),
        ),
        Verb(
            "rotate",
            _rotate,
            "a new epoch for a tenant; its older backups stay readable",
            (
                _TENANT,
                argument("--compromised", action="store_true", help="its keys got out: nothing old is built on"),
                _REASON,
                *MASTER_ARGUMENTS,
            ),
            long=True,
            confirm=True,
        ),
        Verb(
            "rotate-root",
            _rotate_root,
            "a new root key for everything; run it again to go on",
            (
                argument("--to", metavar="@FILE|env:NAME", help="this key instead of one made now"),
                _REASON,
                *MASTER_ARGUMENTS,
            ),
            long=True,
        ),
        Verb(
            "shred",
            _shred,
            "destroy a tenant's keys for ever; run it again to go on with what is pending",
            (
                _TENANT,
                argument("--reason", required=True, metavar="TEXT", help="stands in the certificate"),
                *MASTER_ARGUMENTS,
            ),
            long=True,
            confirm=True,
        ),
        Verb(
            "certificate",
            _certificate,
            "show TENANT: what was destroyed; verify FILE: whether a certificate is genuine",
            (
                argument("what", choices=("show", "verify"), metavar="show|verify"),
                argument("subject", metavar="TENANT|FILE"),
                argument("--output", metavar="FILE", help="show: write it into a new file"),
                argument("--public-key", metavar="HEX", help="verify: by this key, without the catalogue"),
            ),
        ),
    )
