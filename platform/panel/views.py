"""The first screens: tenants with their newest backup, and one tenant's backups. Read-only."""

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from access.guards import master_required
from core import clock
from core.errors import NotFound
from tenants import selectors

PAGE_ROWS = 50


@require_safe
@master_required
def tenants(request: HttpRequest) -> HttpResponse:
    """List tenants, those first that need somebody, each with the age of its data and its newest backup."""
    now = clock.now()
    rows = selectors.tenant_list_worst(now=now, after=request.GET.get("after", "")[:64], limit=PAGE_ROWS + 1)
    page, more = rows[:PAGE_ROWS], len(rows) > PAGE_ROWS
    context = {
        "rows": page,
        "counts": selectors.protection_counts(now=now),
        "next": page[-1].key if more else "",
        "now": now,
        "late": now - selectors.AGE_MAX,
    }
    return render(request, "panel/tenants.html", context)


@require_safe
@master_required
def tenant(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one tenant: its sources, and its backups newest first, a page at a time."""
    try:
        row = selectors.tenant_get(slug)
    except NotFound as error:
        raise Http404(error.message) from error
    backups = selectors.backup_list(row, before=request.GET.get("before", "")[:64], limit=PAGE_ROWS + 1)
    page, more = backups[:PAGE_ROWS], len(backups) > PAGE_ROWS
    context = {
        "tenant": row,
        "sources": selectors.source_list(row),
        "backups": page,
        "next": page[-1].pk if more else "",
        "now": clock.now(),
        "late": clock.now() - selectors.AGE_MAX,
    }
    return render(request, "panel/tenant.html", context)
