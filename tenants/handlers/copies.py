"""The operations `copy`, `copy_verify`, `copy_repair` and `copies`: what is done to the stores of a tenant, and of all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from core import clock
from engine.copy import CopyReport, copy_run
from engine.copy_prune import CopyPruneReport, copy_prune
from engine.copy_small import config_copy
from engine.errors import DamageError, LastroError, ObjectExists, StoreDenied, StoreError, WrongKey
from engine.fallback import FallbackNote
from engine.ports import Store
from engine.repository import Repository
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import wiring
from tenants.copy_opening import copy_on, repository_reading
from tenants.copy_selectors import copy_of
from tenants.keyring_places import may_keep, place_failed, place_put
from tenants.models import Copy, Tenant
from tenants.services.copy_locks import copy_locks_follow, copy_selection_seen
from tenants.services.copy_recording import copy_dropped, copy_failed, copy_ran, copy_result, reads_noted
from tenants.services.copy_wishes import Wishes, copy_wish, wishes_of


def copy_resource(operation: Operation) -> str:
    """One run at a time into a copy; it holds up neither the tenant's backups nor other copies."""
    return f"copy:{operation.tenant}:{operation.params['store']}"


@register("copy", resource=copy_resource, phases=("look", "copy", "finish", "mark", "drop"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Bring the copy what it lacks of the backups that its retention keeps, then drop what that has let go."""
    copy = copy_of(context.operation.subject_id)
    if copy.is_primary:
        raise WrongKey(f"store {copy.store.name} is the primary by now", hint=f"copy list {copy.tenant.slug}")
    try:
        return _ran(context, copy)
    except LastroError as error:
        copy_failed(copy, error, away=isinstance(error, StoreError) and error.retryable)
        raise


def _ran(context: OperationContext, copy: Copy) -> Mapping[str, Any]:
    wishes = wishes_of(copy)
    with wiring.store_open(copy.store) as store:
        report, target = copy_filled(context, copy, store, wishes, recheck=False)
        dropped = _dropped(context, copy, target, wishes) if context.params.get("drop", True) else None
    return {
        "tenant": copy.tenant.slug,
        "store": copy.store.name,
        "health": copy.health,
        **copy_result(report),
        "dropped": 0 if dropped is None else len(dropped.ended),
        "dropped_bytes": 0 if dropped is None else dropped.bytes_before - dropped.bytes_after,
        "locked": 0 if dropped is None else dropped.packs_locked,
        "locked_until": None
        if dropped is None or dropped.locked_until is None
        else dropped.locked_until.isoformat(timespec="seconds"),
        "not_dropped_because": wishes.why_not,
        "findings": [
            {"store": where, "code": each.code, "key": each.key, "message": each.message}
            for where, findings in ((copy.store.name, report.target_findings), ("source", report.source_findings))
            for each in findings[:100]
        ],
    }


def copy_filled(
    context: OperationContext, copy: Copy, store: Store, wishes: Wishes, *, recheck: bool, **instead: Any
) -> tuple[CopyReport, Repository]:
    """Run the copy on its open store and record what it holds now; used by repairs and promotions, too.

    `instead`: fields of the engine's order (CopyWish) that shall be others.
    """
    tenant, params = copy.tenant, context.params
    noted: list[FallbackNote] = []

    def note(_: Tenant, notes: Any) -> None:
        noted.extend(notes)

    with repository_reading(tenant, but=copy, primary_first=True, on_notes=note) as source:
        target = _begun(copy, store, source)
        wish = copy_wish(
            copy,
            wishes,
            look=bool(params.get("look", True)) or recheck,
            read_back=bool(params.get("read_back")),
            recheck=recheck,
        )
        report = copy_run(source, target, dataclasses.replace(wish, **instead), context)
    reads_noted(tenant, noted)
    copy_ran(context, copy, report, wanted=wishes.wanted)
    copy_locks_follow(context, copy, target, wishes.until)
    return report, target


def _begun(copy: Copy, store: Store, source: Repository) -> Repository:
    """The copy's repository, made when it is not there, and its keyring where this store may keep it."""
    tenant = copy.tenant
    if not wiring.repository_present(store, tenant.repository_id):
        try:
            config_copy(source, store)
        except ObjectExists as error:
            raise WrongKey(
                f"store {copy.store.name} holds another repository of this name",
                hint="choose another store, or clear it",
            ) from error
    keyring_placed(copy, store)
    return copy_on(copy, store)


def keyring_placed(copy: Copy, store: Store) -> None:
    """Put the tenant's keyring where this store may keep it; a store that refuses is looked at again later."""
    if may_keep(copy.store, store):
        try:
            place_put(copy.tenant, copy.store, store)
        except StoreError as error:
            place_failed(copy.tenant, copy.store, error)


def _dropped(context: OperationContext, copy: Copy, target: Repository, wishes: Wishes) -> CopyPruneReport | None:
    """Drop what may go of what is there; None when nothing is."""
    going = wishes.drop & set(target.numbers())
    if not going:
        return None
    context.check()
    try:
        report = copy_prune(target, drop=going, copy=copy.pk, selection=copy.selection, dry_run=False, progress=context)
    except DamageError as error:
        said = f"nothing was dropped from {copy.store.name}: {error.message}; copy verify, then copy repair"
        context.warn("copy.not_pruned", said)
        return None
    except StoreDenied as error:
        said = f"store {copy.store.name} lets nothing be deleted: what retention let go stays there ({error.message})"
        context.warn("copy.not_pruned", said)
        copy_selection_seen(copy, target)
        return None
    copy_dropped(context, copy, report)
    if report.packs_locked:
        until = "" if report.locked_until is None else f" until {report.locked_until:%Y-%m-%d}"
        context.warn(
            "copy.locked", f"{report.packs_locked} objects of {copy.store.name} are locked{until}; they go then"
        )
    return report


# ---------------------------------------------------------------- all tenants


@register("copies", resource=lambda operation: f"copies:{operation.params['what']}", phases=("copies",))
def run_all(context: OperationContext) -> Mapping[str, Any]:
    """Run, or verify, the copies of all tenants: each an operation of its own, some at a time, in this process."""
    from tenants.handlers.copies_all import all_run

    began = clock.now()
    counts = all_run(context, what=str(context.params["what"]), at_once=int(context.params["at_once"]))
    return {"what": context.params["what"], "began_at": began.isoformat(timespec="seconds"), **counts}
