"""What a token may do: its scopes by method, and the tenants that it is limited to."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from access.models import Scope, Token
from api.authentication import token_of
from audit.refusals import token_refused
from core.errors import NotAllowed, NotFound
from engine.errors import LastroError

READING = {"GET": Scope.READ, "HEAD": Scope.READ, "OPTIONS": Scope.READ}


Row = TypeVar("Row")


class ScopeMissing(NotAllowed):
    code = "access.scope_missing"


class Scoped(BasePermission):
    """Lets in who holds the scope that the view names for the method (`scopes`); `admin` holds all of them."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Raises ScopeMissing, after an entry in the audit log; False for strangers."""
        if not isinstance(request.auth, Token):
            return False
        wanted: Mapping[str, str] = {**READING, **getattr(view, "scopes", {})}
        scope = wanted.get(str(request.method), Scope.ADMIN)
        held = set(request.auth.scopes)
        if scope in held or Scope.ADMIN in held or (scope == Scope.READ and held):
            return True
        hint = "token add --scope … makes a token that has it"
        raise refused(request, ScopeMissing(f"this needs the scope {scope}", hint=hint), scope=str(scope))


def refused(request: Request, error: LastroError, *, tenant: str = "", **data: Any) -> LastroError:
    """Give the error back to be raised, with an entry in the audit log. The route is told, never the path."""
    match = request.resolver_match
    token = token_of(request)
    held = {"token": token.pk, "held": sorted(token.scopes), "tenants": len(token.tenants)}
    route = f"/{match.route}" if match is not None else ""
    token_refused(token.prefix, str(request.method), route, error.code, tenant=tenant, **held, **data)
    return error


class WholeInstallation:
    """For what is about all tenants: views that a token limited to some tenants may not use."""

    whole_installation: ClassVar[bool] = True

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        if token_of(request).tenants:
            error = NotAllowed("this token is limited to some tenants", hint="use one for the whole installation")
            raise refused(request, error)


def tenants_permitted(request: Request) -> list[str] | None:
    """Slugs that the token is limited to; None for all."""
    return list(token_of(request).tenants) or None


def tenant_permitted(request: Request, slug: str, *, what: str) -> None:
    """Raise NotFound, as if it were not there, for what belongs to a tenant that the token may not touch."""
    limited = tenants_permitted(request)
    if limited is not None and slug not in limited:
        raise refused(request, NotFound(what), tenant=slug)


def permitted(request: Request, find: Callable[[], Row], slug: Callable[[Row], str], *, what: str) -> Row:
    """What is found, if the token may touch its tenant. Raises NotFound.

    To a limited token what is not there and what it may not touch read the same, to the letter.
    """
    try:
        row = find()
    except NotFound:
        if tenants_permitted(request) is None:
            raise
        raise NotFound(what) from None
    tenant_permitted(request, slug(row), what=what)
    return row
