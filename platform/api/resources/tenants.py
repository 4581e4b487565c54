"""`/tenants` and what lies below each."""

from django.db.models import Q
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.authentication import actor_of
from api.bodies import Body
from api.cursors import page_answer
from api.permissions import permitted, refused, tenant_permitted, tenants_permitted
from api.schema import LISTED, SEARCHED, answers
from api.views import View
from core.errors import NotAllowed, NotFound
from tenants import copy_outputs, outputs
from tenants.copy_selectors import protections
from tenants.models import Criticality, Tenant
from tenants.selectors import source_list, tenant_get
from tenants.services.tenants import tenant_add, tenant_update

QUERY_CHARS_MAX = 100


class TenantBody(Body):
    name = shapes.Text(max_length=200)
    class_ = shapes.Choice(choices=Criticality.values, default=Criticality.NORMAL)
    store = shapes.Text(max_length=63, required=False)


class TenantNewBody(TenantBody):
    slug = shapes.Text(max_length=63)


def tenant_of(request: Request, slug: str) -> Tenant:
    """The tenant, if the token may touch it. Raises NotFound."""
    what = f"there is no tenant {slug[:60]!r}"
    # Judged by the name alone, so that it is the same whether there is such a tenant.
    tenant_permitted(request, slug, what=what)
    return permitted(request, lambda: tenant_get(slug), lambda row: row.slug, what=what)


class TenantsView(View):
    scopes = {"POST": Scope.ADMIN}

    @extend_schema(parameters=[*LISTED, SEARCHED], responses=answers(shapes.page_of(shapes.TenantShape)))
    def get(self, request: Request) -> Response:
        """Tenants by slug."""
        rows = Tenant.objects.select_related("store").filter(archived_at=None)
        limited = tenants_permitted(request)
        if limited is not None:
            rows = rows.filter(slug__in=limited)
        if text := request.query_params.get("q", ""):
            if len(text) > QUERY_CHARS_MAX or "\0" in text:
                raise ValidationError({"q": [f"{QUERY_CHARS_MAX} characters at the most"]})
            rows = rows.filter(Q(slug__icontains=text) | Q(name__icontains=text))
        return page_answer(request, rows, outputs.tenant, key="slug", newest_first=False)

    @extend_schema(request=TenantNewBody, responses=answers(shapes.TenantShape, status=201, words="Added"))
    def post(self, request: Request) -> Response:
        """Add a tenant, with keys and a repository of its own."""
        given = self.body(TenantNewBody)
        _unlimited(request)
        return _added(request, given["slug"], given)


class TenantView(View):
    scopes = {"PUT": Scope.ADMIN}

    @extend_schema(responses=answers(shapes.TenantShape))
    def get(self, request: Request, slug: str) -> Response:
        """One tenant."""
        return Response(outputs.tenant(tenant_of(request, slug)))

    @extend_schema(request=TenantBody, responses={**answers(shapes.TenantShape), 201: shapes.TenantShape})
    def put(self, request: Request, slug: str) -> Response:
        """Have the tenant be so: added when it is not there, changed when it differs; the same again does nothing."""
        given = self.body(TenantBody)
        tenant_permitted(request, slug, what=f"there is no tenant {slug[:60]!r}")
        try:
            tenant = tenant_get(slug)
        except NotFound:
            _unlimited(request)
            return _added(request, slug, given)
        if given.get("store") not in (None, tenant.store.name):
            raise ValidationError(
                {"store": [f"it is {tenant.store.name}; moving is a work of its own: tenant set --store"]}
            )
        if (given["name"], given["class"]) != (tenant.name, tenant.criticality):
            tenant = tenant_update(tenant, name=given["name"], criticality=given["class"], actor=actor_of(request))
        return Response(outputs.tenant(tenant))


class SourcesView(View):
    @extend_schema(responses=answers(shapes.page_of(shapes.SourceShape)))
    def get(self, request: Request, slug: str) -> Response:
        """Sources of the tenant by name; all of them on one page."""
        rows = source_list(tenant_of(request, slug))
        return Response({"data": [outputs.source(row) for row in rows], "page": {"next": None, "prev": None}})


class ProtectionView(View):
    @extend_schema(responses=answers(shapes.ProtectionShape))
    def get(self, request: Request, slug: str) -> Response:
        """Whether the tenant has three copies, on two media, one of them off site."""
        (row,) = protections([tenant_of(request, slug)])
        return Response(copy_outputs.protection(row))


def _unlimited(request: Request) -> None:
    if tenants_permitted(request) is not None:
        raise refused(request, NotAllowed("a token that is limited to some tenants adds none"))


def _added(request: Request, slug: str, given: dict[str, str]) -> Response:
    tenant = tenant_add(
        slug,
        name=given["name"],
        criticality=given["class"],
        store_name=given.get("store", ""),
        actor=actor_of(request),
    )
    response = Response(outputs.tenant(tenant), status=201)
    response["Location"] = f"/api/v1/tenants/{tenant.slug}"
    return response
