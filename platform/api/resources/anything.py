"""Addresses that are not there, and the documents about those that are."""

import functools
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from api.views import View


class UnknownView(View):
    @extend_schema(exclude=True)
    def get(self, request: Request, **_: Any) -> Response:
        raise NotFound(f"there is nothing at {request.path[:200]}")

    post = put = patch = delete = get


class SchemaView(View):
    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        """The OpenAPI 3.1 document."""
        return Response(schema())


@functools.cache
def schema() -> Any:
    """The OpenAPI document of this version; made once, nobody may change it."""
    return SchemaGenerator().get_schema(request=None, public=True)
