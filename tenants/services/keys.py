"""Keyrings in their places: put there, looked at, put right; and what there is of keys, for lists."""

import datetime
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet

from audit.services import record
from core import clock
from core.models import Fact
from core.rootkey import FORMER_FACT, ROOT_KEY_FACT, root_key
from engine.errors import DamageError, ForeignKeyring, LastroError, ObjectMissing, StoreError, WrongKey
from engine.keys import Keyring, RootKey, keyring_root_id
from engine.ports import Store
from engine.repository import keyring_key
from tenants import wiring
from tenants.keyring_places import (
    KEYRING_BYTES_MAX,
    keyring_purge,
    may_keep,
    place_failed,
    place_put,
    places_write,
    stores_keeping,
)
from tenants.models import KeyEpoch, KeyringPlace, KeyringState, RootRotation, StoreConfig, Tenant
from tenants.tenant_sealing import keyring_of

log = logging.getLogger(__name__)

LIST_MAX = 200
FINDINGS_MAX = 1_000
SILENT_MINUTES = 15
"""A place that could not be reached is left alone for so long by those who only come past it."""


def keys_settle(tenant: Tenant) -> list[str]:
    """Put the tenant's keyring where it is still missing; names of the stores that have still to get it.

    Costs one query when all is well. What cannot be reached stays pending and is no error.
    """
    waiting = []
    for row in _unsettled(tenant):
        try:
            with wiring.store_open(row) as store:
                if may_keep(row, store):
                    place_put(tenant, row, store)
        except LastroError as error:
            log.warning("the keyring of %s is still to be put into store %s: %s", tenant.slug, row.name, error)
            place_failed(tenant, row, error)
            waiting.append(row.name)
    return waiting


def _unsettled(tenant: Tenant) -> QuerySet[StoreConfig]:
    lately = clock.now() - datetime.timedelta(minutes=SILENT_MINUTES)
    settled = KeyringPlace.objects.filter(tenant=tenant).filter(
        Q(state=KeyringState.WRITTEN) | Q(error_code__startswith="store.", checked_at__gt=lately)
    )
    return StoreConfig.objects.filter(keeps_keys=True).exclude(pk__in=settled.values("store")).order_by("name")


@dataclass(frozen=True)
class KeyFinding:
    """One place of one tenant's keyring that is not as it should be; `serious` when it is not merely missing."""

    tenant: str
    place: str
    state: str
    """missing, outdated, newer, foreign, damaged, wrong_root_key, locked or unreachable."""
    message: str
    serious: bool


@dataclass(frozen=True)
class KeysVerdict:
    """What `key verify` found: how many keyrings were opened in how many places."""

    tenants: int
    places: int
    findings: tuple[KeyFinding, ...]


_SERIOUS = {"foreign", "damaged", "wrong_root_key", "newer"}


def keys_verify(tenant: Tenant | None = None) -> KeysVerdict:
    """Open the keyring of each tenant in the catalogue and in every store that keeps keys, and compare them.

    Changes nothing but the places' rows. Bounded memory, whatever the number of tenants.
    """
    tenants, places, findings = 0, 0, list[KeyFinding]()
    with ExitStack() as stack:
        stores = [(row, _opened(stack, row)) for row in stores_keeping()]
        for each in _tenants(tenant):
            tenants += 1
            for place, state, message in _looked_at(each, stores):
                places += 1
                if state != "right" and len(findings) < FINDINGS_MAX:
                    findings.append(KeyFinding(each.slug, place, state, message, state in _SERIOUS))
    return KeysVerdict(tenants, places, tuple(findings))


def _opened(stack: ExitStack, row: StoreConfig) -> Store | LastroError:
    try:
        return stack.enter_context(wiring.store_open(row))
    except LastroError as error:
        return error


def _tenants(tenant: Tenant | None) -> Iterator[Tenant]:
    rows = Tenant.objects.filter(shredded_at=None)
    yield from (rows.filter(pk=tenant.pk) if tenant else rows).order_by("pk").iterator(chunk_size=LIST_MAX)


def _looked_at(tenant: Tenant, stores: list[tuple[StoreConfig, Store | LastroError]]) -> Iterator[tuple[str, str, str]]:
    """Place, state and what is wrong there, the catalogue first."""
    known: Keyring | None = None
    try:
        known = keyring_of(tenant)
        yield "catalogue", "right", ""
    except WrongKey as error:
        yield "catalogue", _wrong(error), error.message
    except DamageError as error:
        yield "catalogue", "damaged", error.message
    for row, store in stores:
        name = f"store {row.name}"
        if isinstance(store, LastroError):
            yield name, "unreachable", store.message
        elif not may_keep(row, store):
            yield name, "locked", "it locks what is put into it: no keyring may lie in it"
        else:
            state, message = _place_state(tenant, known, store)
            _place_noted(tenant, row, state, message)
            yield name, state, message


def _wrong(error: WrongKey) -> str:
    return "foreign" if isinstance(error, ForeignKeyring) else "wrong_root_key"


def _place_state(tenant: Tenant, known: Keyring | None, store: Store) -> tuple[str, str]:
    try:
        blob = store.get(keyring_key(tenant.repository_id), 0, KEYRING_BYTES_MAX)
        found = Keyring.of(blob, root_key(), tenant_id=tenant.pk, repository_id=tenant.repository_id)
    except ObjectMissing:
        return "missing", "there is no keyring"
    except WrongKey as error:
        return _wrong(error), error.message
    except DamageError as error:
        return "damaged", error.message
    except StoreError as error:
        return "unreachable", error.message
    if known is None or found == known:
        if blob != bytes(tenant.keyring) and keyring_root_id(blob) != keyring_root_id(bytes(tenant.keyring)):
            return "outdated", "it is wrapped by the root key before"
        return "right", ""
    if known.includes(found):
        return "outdated", f"it has the epochs up to {found.epoch}, the catalogue has {known.epoch}"
    if found.includes(known):
        return "newer", f"it has epoch {found.epoch}, the catalogue has {known.epoch}: the catalogue was rolled back"
    return "foreign", "it has other keys than the catalogue"


def _place_noted(tenant: Tenant, row: StoreConfig, state: str, message: str) -> None:
    kept = {"right": KeyringState.WRITTEN, "missing": KeyringState.PENDING, "outdated": KeyringState.PENDING}
    changes: dict[str, Any] = {"checked_at": clock.now(), "error_code": "", "error": ""}
    if state != "right":
        changes |= {"error_code": f"keys.{state}", "error": message}
    if state != "unreachable":
        changes["state"] = kept.get(state, KeyringState.DAMAGED)
    KeyringPlace.objects.update_or_create(tenant=tenant, store=row, defaults=changes)


@dataclass(frozen=True)
class KeysRepaired:
    """What `key repair` did."""

    written: int
    taken: tuple[str, ...]
    """Tenants whose keyring the catalogue took back from a store."""
    removed: int
    """Keyrings destroyed in stores that are no longer to keep any."""
    failed: tuple[str, ...]
    """Places that are still not right, in words."""


def keys_repair(tenant: Tenant | None = None, *, actor: str) -> KeysRepaired:
    """Put every keyring right: the catalogue's from a store when it is damaged or was rolled back, then the stores'.

    A keyring in a store counts only when it opens under the root key as this very repository's, and a key that any
    place has is never dropped. Repeating it is safe.
    """
    failed: list[str] = []
    verdict = keys_verify(tenant)
    suspects = {each.tenant for each in verdict.findings if each.serious}
    taken = [slug for slug in sorted(suspects) if keyring_take_back(Tenant.objects.get(slug=slug), failed)]
    written = removed = 0
    rows = Tenant.objects.filter(shredded_at=None, **({"pk": tenant.pk} if tenant else {}))
    for row in StoreConfig.objects.order_by("name"):
        try:
            with wiring.store_open(row) as store:
                if may_keep(row, store):
                    written += _store_repaired(row, store, rows, failed)
                else:
                    removed += _store_cleared(row, store, tenant)
        except LastroError as error:
            failed.append(f"store {row.name}: {error.message}")
    done = KeysRepaired(written, tuple(taken), removed, tuple(failed[:FINDINGS_MAX]))
    record(
        "key.places_repaired",
        message=f"keyrings put right in {written} places, {len(taken)} taken from a store, {removed} removed",
        actor=actor,
        tenant=tenant.slug if tenant else "",
        level="warning" if taken or failed else "info",
        data={"written": written, "taken": taken[:LIST_MAX], "removed": removed, "failed": failed[:20]},
    )
    return done


def _store_repaired(row: StoreConfig, store: Store, tenants: QuerySet[Tenant], failed: list[str]) -> int:
    right = KeyringPlace.objects.filter(store=row, state=KeyringState.WRITTEN)
    written = 0
    for done in places_write(row, store, tenants.exclude(pk__in=right.values("tenant")), check=lambda: None):
        written += done.written
        if done.error is not None:
            failed.append(f"store {row.name}: {done.error.message}")
    return written


def _store_cleared(row: StoreConfig, store: Store, tenant: Tenant | None) -> int:
    """Destroy the keyrings in a store that is no longer to keep any."""
    places = KeyringPlace.objects.filter(store=row, **({"tenant": tenant} if tenant else {})).select_related("tenant")
    count = 0
    for place in places.iterator(chunk_size=LIST_MAX):
        count += keyring_purge(place.tenant.repository_id, store)[0]
        place.delete()
    return count


def keyring_take_back(tenant: Tenant, failed: list[str]) -> bool:
    """Give the catalogue the keyring with the most keys that lies in a store; True when it was changed.

    One counts only when it opens as this very repository's and has every key that the catalogue has. While the root key is
    being replaced, one that the former key wraps counts only when the catalogue has none: a thief of that could have
    added keys of his own.
    """
    root = root_key()
    try:
        best: Keyring | None = keyring_of(tenant)
    except (WrongKey, DamageError):
        best = None
    before = best
    for row in stores_keeping():
        try:
            with wiring.store_open(row) as store:
                blob = store.get(keyring_key(tenant.repository_id), 0, KEYRING_BYTES_MAX)
            opens = root if before is None else RootKey(root.secret_bytes())
            found = Keyring.of(blob, opens, tenant_id=tenant.pk, repository_id=tenant.repository_id)
        except LastroError:
            continue
        if best is None or found.includes(best):
            best = found
    if best is None:
        failed.append(f"{tenant.slug}: neither the catalogue nor any store has a keyring that opens")
        return False
    if before is not None and before.includes(best):
        return False
    blob = best.to_bytes(root)
    Tenant.objects.filter(pk=tenant.pk, shredded_at=None).update(keyring=blob)
    KeyringPlace.objects.filter(tenant=tenant).update(state=KeyringState.PENDING)
    return True


# ------------------------------------------------------------ lists


def key_list(tenant: Tenant | None = None, *, after: str = "", limit: int = LIST_MAX) -> dict[str, Any]:
    """What there is of keys: ids, epochs with their ages, places. Opens nothing, so that no key is needed."""
    rows = Tenant.objects.filter(pk=tenant.pk) if tenant else Tenant.objects.filter(slug__gt=after).order_by("slug")
    listed = list(rows[: min(limit, LIST_MAX)])
    epochs: dict[str, list[KeyEpoch]] = {}
    for epoch in KeyEpoch.objects.filter(tenant__in=listed).order_by("epoch"):
        epochs.setdefault(epoch.tenant_id, []).append(epoch)
    places: dict[str, list[KeyringPlace]] = {}
    for place in KeyringPlace.objects.filter(tenant__in=listed).select_related("store").order_by("store__name"):
        places.setdefault(place.tenant_id, []).append(place)
    return {
        "root_key": root_key_facts(),
        "data": [_listed(row, epochs.get(row.pk, []), places.get(row.pk, [])) for row in listed],
    }


def root_key_facts() -> dict[str, Any]:
    """Id of the root key, and of the one before while something still needs it."""
    facts = dict(Fact.objects.filter(pk__in=(ROOT_KEY_FACT, FORMER_FACT)).values_list("name", "value"))
    running = RootRotation.objects.filter(running=True).first()
    return {
        "id": facts.get(ROOT_KEY_FACT),
        "still_needed": facts.get(FORMER_FACT),
        "waiting": running.waiting if running else [],
    }


def _listed(tenant: Tenant, epochs: list[KeyEpoch], places: list[KeyringPlace]) -> Mapping[str, Any]:
    known = {each.epoch: each for each in epochs}
    now = clock.now()
    numbers = _epochs_of(bytes(tenant.keyring))
    return {
        "tenant": tenant.slug,
        "repository_id": tenant.repository_id,
        "shredded_at": tenant.shredded_at,
        "root_key_id": keyring_root_id(bytes(tenant.keyring)) or None,
        "epoch": max(numbers, default=None),
        "epochs": [
            {
                "epoch": number,
                "began_at": (began := known[number].began_at if number in known else tenant.created_at),
                "age_days": (now - began).days,
                "compromised_before": number in known and known[number].compromised,
                "adopted": number in known and known[number].adopted,
                "signing_key": (known[number].signing_key or None) if number in known else None,
                "signs_from": known[number].signs_from if number in known else None,
            }
            for number in numbers
        ],
        "places": [
            {
                "store": place.store.name,
                "state": place.state,
                "root_key_id": place.root_key_id or None,
                "written_at": place.written_at,
                "error": place.error or None,
            }
            for place in places
        ],
    }


def _epochs_of(blob: bytes) -> list[int]:
    try:
        return sorted(int(number) for number in json.loads(blob)["epochs"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
