"""What `doctor` says of copies: do they suffice, are they whole, are they read often enough."""

import datetime
from collections.abc import Iterator
from typing import Any

from django.db.models import Q

from core import clock
from tenants.copy_selectors import Protection, protections, tenants_page
from tenants.models import Copy, CopyFinding, CopyHealth, StoreConfig

NAMED_MAX = 5
PAGE = 1_000
SAMPLE_SILENCE_MAX = datetime.timedelta(days=2)
Told = tuple[str, str, str, str, dict[str, Any]]
"""Name, status, message, hint, figures of a sign."""


def copy_signs() -> Iterator[Told]:
    """The 3-2-1 rule over all tenants, and the state of their copies; nothing while there is a single store."""
    if StoreConfig.objects.count() < 2:
        return  # `store copies` says so.
    yield _rule()
    if Copy.objects.exists():
        yield _health()
        yield _samples()


def _rule() -> Told:
    short: list[Protection] = []
    count = tenants = 0
    after = ""
    while page := tenants_page(after=after, limit=PAGE):
        after = page[-1].slug
        tenants += len(page)
        for row in protections(page):
            if not row.holds:
                count += 1
                short += [row] if len(short) < NAMED_MAX else []
    figures = {"tenants": tenants, "short": count}
    if not count:
        return "copies", "ok", f"3-2-1 holds for {tenants} tenants", "", figures
    named = "; ".join(f"{row.tenant}: {', '.join(row.lacks)}" for row in short)
    more = f"; and {count - len(short)} more" if count > len(short) else ""
    hint = f"{short[0].next_step}; copy status --short names them all"
    return "copies", "warning", f"too few copies of {count} tenants: {named}{more}", hint, figures


def _health() -> Told:
    rows = Copy.objects.filter(tenant__archived_at=None, enabled=True).select_related("tenant", "store")
    bad = rows.filter(health__in=(CopyHealth.DAMAGED, CopyHealth.AWAY))
    figures = {
        "copies": rows.count(),
        "bad": bad.count(),
        "findings": CopyFinding.objects.filter(mended_at=None).count(),
    }
    if not figures["bad"]:
        return "copy health", "ok", f"{figures['copies']} repositories in stores, none known to be damaged", "", figures
    some = list(bad.order_by("tenant__slug", "position")[:NAMED_MAX])
    named = ", ".join(f"{row.tenant.slug} in {row.store.name} ({row.health})" for row in some)
    first = next((row for row in some if row.health == CopyHealth.DAMAGED), None)
    hint = (
        f"copy repair {first.tenant.slug} --store {first.store.name}" if first else f"store test {some[0].store.name}"
    )
    return "copy health", "critical", f"{figures['bad']} of {figures['copies']}: {named}", hint, figures


def _samples() -> Told:
    before = clock.now() - SAMPLE_SILENCE_MAX
    never = Q(sampled_at=None, created_at__lt=before)
    rows = Copy.objects.filter(Q(sampled_at__lt=before) | never, tenant__archived_at=None, enabled=True)
    late = rows.count()
    if not late:
        return "samples", "ok", "stored bytes are read in turn", "", {"late": 0}
    hint = "is a worker running? By hand: copy verify --all --sample"
    return "samples", "warning", f"of {late} repositories no bytes were read for two days", hint, {"late": late}
