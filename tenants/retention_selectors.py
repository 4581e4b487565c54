"""Reading what retention decides upon: policies in force, backups as points, and the verdicts on them."""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings

from core import clock
from tenants.models import (
    Backup,
    BackupCopy,
    BackupPresence,
    BackupSource,
    Copy,
    Restore,
    RestoreSource,
    RetentionPolicy,
    Source,
    StoreConfig,
    Tenant,
)
from tenants.models.backup import GOOD_STATES
from tenants.retention.calendar import Cadence, Calendar, zone_of
from tenants.retention.decide import NEVER, SAFETY, Forecast, Point, Rules, Verdict, decide
from tenants.retention.policy import DEFAULT, Policy, policy_of
from tenants.retention.words import words

CADENCE = Cadence()
"""Daily at midnight, full on Sundays: until backups have schedules of their own."""
NAMELESS = "name:"
_BATCH = 2_000


def calendar() -> Calendar:
    """Days as LASTRO_RETENTION_ZONE has them."""
    return Calendar(zone_of(settings.LASTRO_RETENTION_ZONE))


def forecast_now() -> Forecast:
    """What the coming backups will do to the periods of today; one serves all tenants."""
    return Forecast(CADENCE, calendar(), clock.now())


def place_of(tenant_id: str | None, source_id: str | None, store_id: str | None) -> str:
    """The key of a policy's row."""
    return "/".join(each or "-" for each in (tenant_id, source_id, store_id))


@dataclass
class PolicyBook:
    """Every policy that was set, by place; read once for a run over many tenants."""

    rows: dict[str, RetentionPolicy] = field(default_factory=dict)
    _policies: dict[str, Policy] = field(default_factory=dict)

    @classmethod
    def load(cls, tenant: Tenant | None = None) -> "PolicyBook":
        """All policies; with a tenant only those that may concern it."""
        rows = RetentionPolicy.objects.all()
        if tenant is not None:
            rows = rows.filter(tenant__isnull=True) | rows.filter(tenant=tenant)
        return cls({row.place: row for row in rows.iterator(chunk_size=_BATCH)})

    def place(self, tenant_id: str, source_id: str | None, store_id: str, *, primary: bool) -> str:
        """The place whose policy is in force; empty for the built-in one.

        What a tenant sets rules its primary store. A copy follows the policy of its store where there is one,
        unless the tenant has set another one for just this store.
        """
        t, s, st = tenant_id, source_id, store_id
        own = [(t, s, st), (t, s, None), (t, None, st), (t, None, None), (None, None, st)]
        if not primary:
            own = [(t, s, st), (t, None, st), (None, None, st), (t, s, None), (t, None, None)]
        for key in (place_of(*each) for each in [*own, (None, None, None)]):
            if key in self.rows:
                return key
        return ""

    def policy(self, place: str) -> Policy:
        """The policy that was set there."""
        if not place:
            return DEFAULT
        if place not in self._policies:
            self._policies[place] = policy_of(self.rows[place].values)
        return self._policies[place]


@dataclass(frozen=True, slots=True)
class Sources:
    """A tenant's sources, removed ones too, as retention sees them."""

    names: Mapping[str, str]
    ended: frozenset[str]


def sources_of(tenant: Tenant) -> Sources:
    """Names by id, and which of them are backed up no more."""
    rows = list(Source.every.filter(tenant=tenant).values_list("pk", "name", "enabled", "archived_at"))
    gone = tenant.archived_at is not None
    return Sources(
        {pk: name for pk, name, *_ in rows},
        frozenset(pk for pk, _, enabled, archived in rows if gone or not enabled or archived is not None),
    )


def rules_of(tenant: Tenant, store: StoreConfig | None = None, *, book: PolicyBook, sources: Sources) -> Rules:
    """The rules for the tenant's backups in a store; in its primary one when none is named."""
    primary = store is None or store.pk == tenant.store_id
    store_id = tenant.store_id if store is None else store.pk
    own = None if primary or store is None else _copy_rules(tenant, store)
    base = own or book.policy(book.place(tenant.pk, None, store_id, primary=primary))
    by_source = {} if own else {
        pk: book.policy(book.place(tenant.pk, pk, store_id, primary=primary)) for pk in sources.names
    }  # fmt: skip
    return Rules(
        base,
        {pk: policy for pk, policy in by_source.items() if policy != base},
        tenant_held=tenant.held,
        ended_sources=sources.ended,
    )


def _copy_rules(tenant: Tenant, store: StoreConfig) -> Policy | None:
    values = Copy.objects.filter(tenant=tenant, store=store).values_list("rules", flat=True).first()
    return None if values is None else policy_of(values)


# ---------------------------------------------------------------- points

_POINT_FIELDS = (
    "pk", "number", "taken_at", "created_at", "type", "trigger", "tags", "held", "damaged", "state", "expires_at",
    "left_at", "trashed_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """A backup as one query gives it: the point, and what the catalogue holds about its end."""

    point: Point
    state: str
    expires_at: datetime.datetime | None
    left_at: datetime.datetime | None
    trashed_at: datetime.datetime | None


def backups_known(tenant: Tenant, *, trashed: bool = False) -> list[Known]:
    """The tenant's good backups, oldest first; with `trashed` those in the trash instead."""
    chosen = Backup.objects.filter(tenant=tenant)
    chosen = chosen.filter(trashed_at__isnull=False) if trashed else chosen.filter(state__in=GOOD_STATES)
    held = _sources_held(tenant, trashed=trashed)
    rows = chosen.order_by("number").values_list(*_POINT_FIELDS).iterator(chunk_size=_BATCH)
    found = [_known(dict(zip(_POINT_FIELDS, row, strict=True)), held) for row in rows]
    if any(known.point.trigger == SAFETY for known in found):
        terms = _undo_terms(tenant)
        found = [_with_term(known, terms) for known in found]
    return found


def _known(row: Mapping[str, Any], held: Mapping[str, tuple[str, ...]]) -> Known:
    point = Point(
        id=row["pk"],
        number=row["number"] or 0,
        at=row["taken_at"] or row["created_at"],
        full=row["type"] == "full",
        sources=held.get(row["pk"], ()),
        trigger=row["trigger"],
        tags=tuple(row["tags"]),
        held=row["held"],
        damaged=row["damaged"],
    )
    return Known(point, row["state"], row["expires_at"], row["left_at"], row["trashed_at"])


def _sources_held(tenant: Tenant, *, trashed: bool) -> dict[str, tuple[str, ...]]:
    """By backup the ids of the sources that it kept; equal sets share one tuple."""
    rows = BackupSource.objects.filter(backup__tenant=tenant, state=BackupSource.State.KEPT)
    rows = rows.filter(backup__trashed_at__isnull=False) if trashed else rows.filter(backup__state__in=GOOD_STATES)
    found: dict[str, tuple[str, ...]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    ordered = rows.order_by("backup_id", "name").values_list("backup_id", "source_id", "name")
    for backup_id, source_id, name in ordered.iterator(chunk_size=_BATCH):
        key = (*found.get(backup_id, ()), source_id or f"{NAMELESS}{name}")
        found[backup_id] = shared.setdefault(key, key)
    return found


def _undo_terms(tenant: Tenant) -> dict[str, datetime.datetime]:
    """By safety backup the end of the term in which its restore can be undone."""
    term = datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)
    whole = Restore.objects.filter(tenant=tenant, safety_backup__isnull=False).values_list(
        "safety_backup_id", "finished_at"
    )
    parts = RestoreSource.objects.filter(restore__tenant=tenant, saved__isnull=False).values_list(
        "saved_id", "restore__finished_at"
    )
    terms: dict[str, datetime.datetime] = {}
    for backup_id, finished in [*whole, *parts]:
        until = NEVER if finished is None else finished + term
        terms[backup_id] = max(until, terms.get(backup_id, until))
    return terms


def _with_term(known: Known, terms: Mapping[str, datetime.datetime]) -> Known:
    if known.point.id not in terms:
        return known
    return replace(known, point=replace(known.point, undo_until=terms[known.point.id]))


# ---------------------------------------------------------------- verdicts


@dataclass(frozen=True, slots=True)
class Keeping:
    """What becomes of one backup over all stores of the tenant."""

    known: Known
    verdict: Verdict
    words: str
    leaves: bool = False
    """The primary store lets it go while a copy keeps it."""


def keepings(
    tenant: Tenant,
    *,
    book: PolicyBook | None = None,
    forecast: Forecast | None = None,
    known: list[Known] | None = None,
) -> list[Keeping]:
    """The verdict on each of the tenant's good backups, oldest first.

    The primary store's rules decide. What they let go stays all the same while the rules of a copy keep it: in the
    primary store until the copy is made, and then in the copy alone.
    """
    book, forecast = book or PolicyBook.load(tenant), forecast or forecast_now()
    sources = sources_of(tenant)
    known = backups_known(tenant) if known is None else known
    rules = rules_of(tenant, book=book, sources=sources)
    here = [each.point for each in known if each.left_at is None]
    primary = {verdict.point.id: verdict for verdict in decide(here, rules, forecast)}
    copies = list(_copies_beyond(tenant, rules, book, sources, forecast, known))
    return [_keeping(each, primary.get(each.point.id), copies, rules, sources, forecast) for each in known]


@dataclass(frozen=True, slots=True)
class _Beyond:
    """A copy with rules of its own: its verdicts, and what it holds."""

    store: StoreConfig
    rules: Rules
    verdicts: Mapping[str, Verdict]
    present: frozenset[str]


def _copies_beyond(
    tenant: Tenant, rules: Rules, book: PolicyBook, sources: Sources, forecast: Forecast, known: Iterable[Known]
) -> Iterator[_Beyond]:
    for copy in Copy.objects.filter(tenant=tenant, enabled=True, position__gt=0).select_related("store"):
        if copy.store_id == tenant.store_id:
            continue
        own = rules_of(tenant, copy.store, book=book, sources=sources)
        if own == rules:
            continue  # It keeps what the primary keeps.
        present = BackupCopy.objects.filter(copy=copy, presence=BackupPresence.PRESENT)
        yield _Beyond(
            copy.store,
            own,
            {verdict.point.id: verdict for verdict in decide((each.point for each in known), own, forecast)},
            frozenset(present.values_list("backup_id", flat=True)),
        )


def _keeping(
    known: Known, primary: Verdict | None, copies: list[_Beyond], rules: Rules, sources: Sources, forecast: Forecast
) -> Keeping:
    beyond = [(each, each.verdicts[known.point.id]) for each in copies if each.verdicts[known.point.id].kept]
    if primary is not None and (primary.kept or not beyond):
        return Keeping(known, _latest(primary, beyond), words(primary, rules, names=sources.names))
    if not beyond:
        gone = primary or Verdict(known.point, "", forecast.now)
        return Keeping(known, gone, words(gone, rules, names=sources.names))
    waits = [each.store.name for each, _ in beyond if known.point.id not in each.present]
    if waits and primary is not None:
        return Keeping(
            known, Verdict(known.point, "waits", None), f"its copy in store {', '.join(waits)} is still to be made"
        )
    copy, verdict = max(beyond, key=lambda each: each[1].goes_at or NEVER)
    said = f"in store {copy.store.name}: {words(verdict, copy.rules, names=sources.names)}"
    return Keeping(known, _latest(verdict, beyond), said, leaves=primary is not None)


def _latest(verdict: Verdict, beyond: list[tuple[_Beyond, Verdict]]) -> Verdict:
    """The verdict with the date on which the last store lets the backup go."""
    if not verdict.kept:
        return verdict
    ends = [verdict.goes_at or NEVER, *(each.goes_at or NEVER for _, each in beyond)]
    return replace(verdict, goes_at=None if max(ends) == NEVER else max(ends))


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup that belongs in a store, and why."""

    number: int
    backup_id: str
    rule: str
    words: str
    until: datetime.datetime | None
    """None: as far as anybody can tell for ever."""
    trashed: bool = False
    """In the trash: not to be copied any more, and not to be dropped yet."""


def kept_numbers(tenant: Tenant, store: StoreConfig) -> list[Kept]:
    """Which backups belong in this store of the tenant, primary or copy, and why; by number.

    Those in the trash are among them. A backup that the primary store has let go, or will, belongs to a copy as long
    as the copy's own rules keep it. While deletion is frozen a caller may send what is missing, and drops nothing.
    """
    sources, forecast = sources_of(tenant), forecast_now()
    rules = rules_of(tenant, store, book=PolicyBook.load(tenant), sources=sources)
    known = backups_known(tenant)
    primary = store.pk == tenant.store_id
    points = [each.point for each in known if not (primary and each.left_at)]
    kept = [
        Kept(each.point.number, each.point.id, each.rule, words(each, rules, names=sources.names), each.goes_at)
        for each in decide(points, rules, forecast)
        if each.kept
    ]
    trash = [
        Kept(each.point.number, each.point.id, "trash", "it is in the trash", trash_ends(each.trashed_at), trashed=True)
        for each in backups_known(tenant, trashed=True)
    ]
    return sorted([*kept, *trash], key=lambda each: each.number)


def trash_ends(trashed_at: datetime.datetime | None) -> datetime.datetime | None:
    """When a backup leaves the trash for good."""
    return None if trashed_at is None else trashed_at + datetime.timedelta(days=settings.LASTRO_TRASH_DAYS)


def expiry_of_new(tenant: Tenant, point: Point) -> datetime.datetime | None:
    """When a backup that is taken now would go, as far as can be told; None for never. Reads no other backup."""
    rules = rules_of(tenant, book=PolicyBook.load(tenant), sources=sources_of(tenant))
    return decide([point], rules, forecast_now())[0].goes_at
