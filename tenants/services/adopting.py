"""Taking over a store on a clean installation: the catalogue comes back from its backup, and what it lacks from the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from access.approvals import Action, approval_use, approvals_void
from access.models import Approval, Token
from audit.adopting import audit_sealed_again
from audit.models import Head
from audit.services import HEAD_ID, record
from core import clock, sealing
from core.errors import Conflict, NotFound
from core.models import Fact
from core.rootkey import ROOT_KEY_FACT, root_key
from engine.adapters import parse_config
from engine.errors import DamageError, ForeignKeyring, LastroError, WrongKey
from engine.faults import kill_point
from engine.ports import Store
from engine.progress import NullProgress
from engine.repository import Repository
from tenants import wiring
from tenants.catalogue.evidence import Judge, KitKnown
from tenants.catalogue.filling import Filled, catalogue_fill
from tenants.catalogue.places import Kept, kept_get, kept_list, newer_unread, repositories_found, repository_found
from tenants.models import CatalogueStore, Installation, RepositoryMirror, StoreConfig, Tenant
from tenants.owning import installation_get
from tenants.rules import name_checked
from tenants.services.adopting_places import (
    default_put,
    keyrings_put_back,
    keyrings_spread,
    keyrings_take,
    primaries_put,
    settings_unreadable,
    stores_reachable,
    tenants_behind,
)
from tenants.services.ownership import Brought, ownership_take, place_taken_over, tenants_reconcile
from tenants.services.rebuilding import Note, tenants_rebuild

MANIFESTS = "manifests"
FROM_CHARS_MAX = 64
NAMED_MAX = 5


@dataclass
class Adopted:
    """What came back, and what could not."""

    store: str
    installation: str = ""
    source: str = ""
    """Id of the backup of the catalogue that was taken, or `manifests` when there was none."""
    taken_at: str = ""
    generation: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    tenants: list[dict[str, Any]] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    """Tenants of which only their manifests told."""
    promoted: list[str] = field(default_factory=list)
    """Tenants whose backups go on in this store, because the one they lay in is not there."""
    without_keys: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    unrestored: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    """What is wrong with the audit log that came back; empty when its tree verifies."""
    keys_put_back: list[str] = field(default_factory=list)
    """Tenants of whose keys the catalogue knows more than any store holds: former keyrings were put back."""
    contradictions: list[str] = field(default_factory=list)
    """What said that the backup of the catalogue is not the newest; accepted by whoever adopted."""


def adopts_at_work() -> bool:
    """Whether this installation has tenants, so that an adoption moves their primaries."""
    return Tenant.objects.exists()


def adopt_action(name: str) -> Action:
    """What a second master has to agree to on an installation that is at work."""
    return Action("stores", "store.adopt", details={"store": name})


def store_adopt(
    name: str,
    *,
    kind: str,
    values: Mapping[str, str],
    actor: str,
    backup: str = "",
    repository_id: str = "",
    known: KitKnown | None = None,
    accept_rollback: bool = False,
    approval: Approval | None = None,
    note: Note = lambda text: None,
) -> Adopted:
    """Rebuild the catalogue from what this store keeps, and become the owner.

    On the installation that the store belongs to no row is touched: tenants whose store is gone go on in this one.
    Refuses on an installation that has other tenants (Conflict). Killed at any point it can be run again with the
    same arguments: the rows come back in one transaction, and what follows is taken up where it stands. Raises NotFound,
    WrongKey for another root key, DamageError when no backup of the catalogue is whole, StoreError, Contradicted when what
    the stores or the kit (`known`) know is newer than the backup, unless `accept_rollback`.
    """
    row = _row(name, kind, values)
    done, taken_before = Adopted(name), False
    judge = Judge(known, accept_rollback, done.contradictions)
    with wiring.store_open(row) as store:
        catalogue = _catalogue_in(store, repository_id)
        if _is_ours(row, catalogue):
            taken_before = True
            if adopts_at_work():
                with transaction.atomic():
                    approval_use(approval, adopt_action(name), actor=actor)
            note("this catalogue stays as it is; tenants whose store is gone go on in this one")
        elif catalogue is not None:
            _refuse_occupied()
            row = _take_rows(catalogue, row, backup, done, judge, actor=actor, note=note)
        else:
            row = _take_none(store, row, judge, actor=actor, note=note)
        installation = Installation.objects.get()
        done.installation, done.source = installation.pk, installation.adopted_from
        kill_point("adopt.rows_taken")
        done.without_keys = keyrings_take(row, store, note)
        done.keys_put_back = keyrings_put_back(note)
        done.promoted = primaries_put(row, store)
        default_put(row)
    reachable = stores_reachable(row, note)
    if not taken_before or tenants_behind():
        ownership_take(reachable, reason="adopted", actor=actor, note=note)
        for each in reachable:
            place_taken_over(each)
    done.generation = installation_get().generation
    kill_point("adopt.owned")
    done.rebuilt = tenants_rebuild(row, actor=actor, note=note)
    brought = Brought(row.name)
    promoted = set(done.promoted)
    tenants_reconcile(tenants_behind(), brought, close=True, promoted=promoted, keys_taken=True, actor=actor, note=note)
    keyrings_spread(reachable, note)
    done.tenants, done.failed = brought.tenants, brought.failed
    done.unrestored += settings_unreadable()
    return done


# ---------------------------------------------------------------- what is here, what is there


def _row(name: str, kind: str, values: Mapping[str, str]) -> StoreConfig:
    """The store as it was named; one that is configured already needs no settings."""
    name_checked("store", name)
    present = StoreConfig.objects.filter(name=name).first()
    if present is not None and (not kind or Tenant.objects.exists()):
        return present  # What an earlier run, or `store set`, has made of it.
    if not kind:
        raise NotFound(
            f"there is no store {name!r} yet", hint="say where it is: --kind … --set …; store kinds lists them"
        )
    adapter: Any = wiring.store_kind(kind)
    row = StoreConfig(name=name, kind=kind)
    config = parse_config(adapter.Config, sealing.resolved(adapter.Config, values))
    kept = sealing.seal(adapter.Config, sealing.given(adapter.Config, config, values), owner=f"store:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed
    return row


def _catalogue_in(store: Store, wanted: str) -> Repository | None:
    """The repository with the backups of the catalogue; None when the store keeps none."""
    opened, refused = [], list[WrongKey]()
    for repository_id in repositories_found(store):
        if wanted and repository_id != wanted:
            continue
        try:
            opened.append(repository_found(store, repository_id))
        except WrongKey as error:
            refused.append(error)
        except NotFound:
            continue
    foreign = next((error for error in refused if isinstance(error, ForeignKeyring)), None)
    if not opened and foreign is not None:
        raise ForeignKeyring(
            f"{foreign.message}; nothing was taken from it",
            hint="somebody put it there: look who may write to the store; --catalogue ID says which one is yours",
        )
    if not opened and refused:
        raise WrongKey(
            f"the root key {root_key().key_id} does not open what this store keeps: {refused[0].message}",
            hint="give the recovery kit of the installation that wrote it: --kit FILE",
        )
    if len(opened) > 1:
        names = ", ".join(each.repository_id for each in opened)
        raise Conflict(f"the store keeps the catalogues of {len(opened)} installations: {names}", hint="--catalogue ID")
    return opened[0] if opened else None


def _is_ours(row: StoreConfig, catalogue: Repository | None) -> bool:
    """Whether the store belongs to this very installation: adopted before, or one of its own from the start."""
    installation = Installation.objects.first()
    if installation is None or not StoreConfig.objects.filter(pk=row.pk).exists():
        return False
    if catalogue is not None:
        return installation.repository_id == catalogue.repository_id and Tenant.objects.exists()
    return Tenant.objects.filter(copies__store=row).exists()


def _refuse_occupied() -> None:
    """An adoption puts rows in the place of all that is here, so nothing may be here."""
    count = Tenant.objects.count()
    if count:
        raise Conflict(
            f"this installation has {count} tenants of its own; nothing was changed",
            hint="adopt on a clean installation: set LASTRO_DATA to an empty folder, migrate, and adopt there; a restored "
            "catalogue is brought up to date by store reconcile",
        )


# ---------------------------------------------------------------- rows


def _take_rows(
    catalogue: Repository, row: StoreConfig, wanted: str, done: Adopted, judge: Judge, *, actor: str, note: Note
) -> StoreConfig:
    """Fill the catalogue from the newest backup of it that is whole, or from the one that is wanted."""
    kept = kept_list(catalogue)
    if unread := newer_unread(catalogue, kept):
        named = ", ".join(map(str, unread[:NAMED_MAX]))
        note(
            f"newer ones cannot be read, and may have been altered: {len(unread)} of the catalogue's backups ({named})"
        )
    if not kept:
        return _take_none(catalogue.store, row, judge, actor=actor, note=note, catalogue=catalogue)
    failure: LastroError | None = None
    for each in [kept_get(kept, wanted)] if wanted else kept:
        try:
            judge.backup(
                kept[0] if wanted else each, note
            )  # An older one that is asked for by name is known to be older.
            return _filled(each, row, done, actor=actor, note=note)
        except DamageError as error:
            failure = error
            note(f"{each.id} of {each.taken_at} is damaged, an older one is tried: {error}")
    assert failure is not None
    raise failure


def _filled(each: Kept, row: StoreConfig, done: Adopted, *, actor: str, note: Note) -> StoreConfig:
    stored = each.opened()
    values = sealing.unseal(row.sealed, owner=f"store:{row.pk}")
    before = Head.objects.filter(pk=HEAD_ID).values("size", "root_hash").first() or {"size": 0, "root_hash": ""}
    key_id = root_key().key_id
    with transaction.atomic():
        filled = catalogue_fill(stored, NullProgress())
        Fact.objects.update_or_create(pk=ROOT_KEY_FACT, defaults={"value": key_id})
        row = _store_put(row, values)
        _identity_put(each.repository, int(stored.header["generation"]), each.id)
        Token.objects.filter(revoked_at=None).update(revoked_at=clock.now())
        _mirrors_put()
        done.audit = _audit_taken(stored.header)
        approvals_void(actor=actor, why="the catalogue was rebuilt from a backup")
        record(
            "catalogue.adopted",
            message=f"the catalogue was rebuilt from {each.id} of {each.taken_at} in store {row.name}",
            actor=actor,
            level="warning",
            data={
                "backup": each.id,
                "store": row.name,
                "log_before": before,
                "log_taken_over": dict(stored.header["audit"]),
                "findings": done.audit[:10],
                "contradictions_accepted": done.contradictions[:10],
            },
        )
        kill_point("adopt.before_commit")
    done.rows, done.taken_at = filled.rows, each.taken_at
    done.unrestored += _not_kept(filled)
    note(f"{sum(filled.rows.values())} rows came back from {each.id} of {each.taken_at}")
    return row


def _audit_taken(header: Mapping[str, Any]) -> list[str]:
    """Seal the log again by today's root key; it must be as long, and of the same root, as the backup says."""
    verdict = audit_sealed_again()
    findings = list(verdict.findings)
    said = header["audit"]
    if (verdict.size, verdict.root_hash) != (said["size"], said["root_hash"]) and said["size"]:
        findings.append(f"the log has {verdict.size} entries, the backup says {said['size']} with another root")
    return findings


def _not_kept(filled: Filled) -> list[str]:
    lost = (
        ["tokens of programs: they are revoked, make new ones with token add"]
        if filled.rows.get("access.Token")
        else []
    )
    return lost + [f"{each}: not known to this version" for each in filled.dropped]


def _store_put(row: StoreConfig, secrets: Mapping[str, str]) -> StoreConfig:
    """The store as it was named now takes the place of what the backup says of it; its other settings stay."""
    adapter: Any = wiring.store_kind(row.kind)
    target = StoreConfig.objects.filter(name=row.name).first() or StoreConfig(name=row.name)
    kept = sealing.seal(adapter.Config, {**row.config, **secrets}, owner=f"store:{target.pk}")
    target.kind, target.config, target.sealed = row.kind, kept.plain, kept.sealed
    target.save()
    return target


def _identity_put(catalogue: Repository, generation: int, source: str) -> None:
    now = clock.now()
    # Whoever had these keys before signs nothing more: the installation that was left for dead.
    keyring = catalogue.keyring.rotated().succeeded(since=0, at=now.isoformat(), reason="adopted")
    Installation.objects.all().delete()
    Installation.objects.create(
        id=catalogue.tenant_id,
        repository_id=catalogue.repository_id,
        keyring=keyring.to_bytes(root_key()),
        generation=max(1, generation),
        adopted_from=source[:FROM_CHARS_MAX],
        adopted_at=now,
    )
    CatalogueStore.objects.all().delete()


def _mirrors_put() -> None:
    """Nothing of any tenant is deleted before it is reconciled."""
    RepositoryMirror.objects.all().delete()
    now = clock.now()
    tenants = Tenant.objects.filter(shredded_at=None).values_list("pk", flat=True)
    RepositoryMirror.objects.bulk_create(
        (
            RepositoryMirror(tenant_id=pk, behind_since=now, behind_reason="adopted", succession_due=True)
            for pk in tenants.iterator()
        ),
        batch_size=500,
    )


def _take_none(
    store: Store, row: StoreConfig, judge: Judge, *, actor: str, note: Note, catalogue: Repository | None = None
) -> StoreConfig:
    """No backup of the catalogue: what manifests tell is all there is."""
    _refuse_foreign_tenants(row)
    judge.none(catalogue, note)
    note("the store keeps no backup of the catalogue: tenants are rebuilt from their manifests")
    values = sealing.unseal(row.sealed, owner=f"store:{row.pk}")
    with transaction.atomic():
        row = _store_put(row, values)
        if catalogue is not None:
            _identity_put(catalogue, 1, MANIFESTS)
        record(
            "catalogue.adopted",
            message=f"store {row.name} was taken over; it keeps no backup of the catalogue",
            actor=actor,
            level="warning",
            data={"store": row.name, "backup": "", "contradictions_accepted": judge.accepted[:10]},
        )
    Installation.objects.filter(pk=installation_get().pk, adopted_from="").update(
        adopted_from=MANIFESTS, adopted_at=clock.now()
    )
    return row


def _refuse_foreign_tenants(row: StoreConfig) -> None:
    if not Installation.objects.filter(adopted_from=MANIFESTS).exists():
        _refuse_occupied()
