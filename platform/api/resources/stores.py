"""`/stores`: where backups lie."""

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.cursors import page_answer
from api.permissions import WholeInstallation
from api.schema import LISTED, OBJECT, answers
from api.views import View
from tenants import outputs
from tenants.models import StoreConfig
from tenants.services.stores import probe_output, store_get, store_test


class StoresView(WholeInstallation, View):
    @extend_schema(parameters=LISTED, responses=answers(shapes.page_of(shapes.StoreShape)))
    def get(self, request: Request) -> Response:
        """Stores by name; secret settings are only said to be set."""
        return page_answer(request, StoreConfig.objects.all(), outputs.store, key="name", newest_first=False)


class StoreView(WholeInstallation, View):
    @extend_schema(responses=answers(shapes.StoreShape))
    def get(self, request: Request, name: str) -> Response:
        """One store."""
        return Response(outputs.store(store_get(name)))


class StoreTestView(WholeInstallation, View):
    scopes = {"POST": Scope.ADMIN}

    @extend_schema(request=None, responses=answers(OBJECT))
    def post(self, request: Request, name: str) -> Response:
        """Write, read, list, lock and delete a probe, and say in words what is missing."""
        return Response(probe_output(store_test(store_get(name))))
