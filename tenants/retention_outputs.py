"""What the noun `retention` prints: policies, verdicts and dates as plain JSON."""

from collections.abc import Sequence
from typing import Any

from tenants.models import RetentionPolicy, Source, Tenant
from tenants.outputs import moment
from tenants.retention.policy import DEFAULT, policy_of, policy_words
from tenants.retention_selectors import Keeping, backups_known, keepings, trash_ends
from tenants.services.retention import Place, policy_at, upcoming

DECIDED_AT_ONCE = 200
"""More tenants than this are not looked at while somebody waits."""


def policies_shown() -> dict[str, Any]:
    """Every policy that was set, and the built-in one."""
    rows = RetentionPolicy.objects.select_related("tenant", "source", "store").order_by("place")
    found = [
        {
            "place": Place(row.tenant, row.source, row.store).said,
            "tenant": row.tenant.slug if row.tenant else None,
            "source": row.source.name if row.source else None,
            "store": row.store.name if row.store else None,
            "policy": row.values,
            "words": policy_words(policy_of(row.values)),
            "set_by": row.set_by,
            "set_at": moment(row.set_at),
        }
        for row in rows
    ]
    built_in = {
        "place": "built in",
        "tenant": None,
        "source": None,
        "store": None,
        "policy": DEFAULT.to_json(),
        "words": policy_words(DEFAULT),
        "set_by": "",
        "set_at": None,
    }
    return {"data": [*found, built_in]}


def tenant_shown(place: Place) -> dict[str, Any]:
    """The policies in force for a tenant and its sources, and what becomes of each of its backups, newest first."""
    tenant = place.tenant
    assert tenant is not None
    places = [place]
    if place.source is None:
        own = Source.objects.filter(tenant=tenant, retention_policies__isnull=False).distinct().order_by("name")
        places += [Place(tenant, source, place.store) for source in own]
    found = [backup_shown(each) for each in keepings(tenant)]
    found += [
        {
            "id": each.point.id,
            "timestamp": moment(each.point.at),
            "type": "full" if each.point.full else "incremental",
            "kept": False,
            "rule": "trash",
            "words": f"in the trash; forgotten from {moment(trash_ends(each.trashed_at))} on",
            "goes_at": moment(trash_ends(each.trashed_at)),
        }
        for each in backups_known(tenant, trashed=True)
    ]
    return {
        "tenant": tenant.slug,
        "held": tenant.held,
        "policies": [_in_force(each) for each in places],
        "data": sorted(found, key=lambda row: (row["timestamp"], row["id"]), reverse=True),
    }


def _in_force(place: Place) -> dict[str, Any]:
    policy, key = policy_at(place)
    row = RetentionPolicy.objects.select_related("tenant", "source", "store").filter(place=key).first() if key else None
    return {
        "place": place.said,
        "policy": policy.to_json(),
        "words": policy_words(policy),
        "from": f"set for {Place(row.tenant, row.source, row.store).said}" if row else "built in",
    }


def backup_shown(each: Keeping) -> dict[str, Any]:
    """One backup with the rule that keeps it and the date on which it goes."""
    point = each.known.point
    return {
        "id": point.id,
        "timestamp": moment(point.at),
        "type": "full" if point.full else "incremental",
        "kept": each.verdict.kept,
        "rule": each.verdict.rule,
        "words": each.words,
        "goes_at": moment(each.verdict.goes_at),
    }


def upcoming_shown(tenant: Tenant | None, *, days: int) -> dict[str, Any]:
    """What goes within so many days: of few tenants as it is decided now, of many as the last daily look wrote it down."""
    if tenant is not None:
        return _upcoming_of([tenant], days)
    few = list(Tenant.objects.filter(archived_at=None).select_related("store").order_by("slug")[: DECIDED_AT_ONCE + 1])
    if len(few) <= DECIDED_AT_ONCE:
        return _upcoming_of(few, days)
    rows = upcoming(days=days)
    return {
        "days": days,
        "data": [
            {
                "id": row.pk,
                "tenant": row.tenant.slug,
                "timestamp": moment(row.taken_at or row.created_at),
                "type": row.type,
                "goes_at": moment(row.expires_at),
                "words": "",
            }
            for row in rows
        ],
    }


def _upcoming_of(tenants: Sequence[Tenant], days: int) -> dict[str, Any]:
    import datetime

    from core import clock

    until = clock.now() + datetime.timedelta(days=days)
    found = [
        {**backup_shown(each), "tenant": tenant.slug}
        for tenant in tenants
        for each in keepings(tenant)
        if each.verdict.goes_at is not None and each.verdict.goes_at <= until
    ]
    return {"days": days, "data": sorted(found, key=lambda row: (row["goes_at"], row["id"]))}
