"""What a token may do: its scopes by method, and the tenants that it is limited to."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

import audit.services
from access.models import Scope, Token
from api.authentication import token_of
from core.errors import NotAllowed, NotFound

READING = {"GET": Scope.READ, "HEAD": Scope.READ, "OPTIONS": Scope.READ}


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
        audit.services.record(
            "api.refused",
            message=f"{request.method} {request.path[:200]} needs the scope {scope}",
            actor=f"token:{request.auth.prefix}",
            level="warning",
            data={"token": request.auth.pk, "scope": str(scope), "held": sorted(held)},
        )
        raise ScopeMissing(f"this needs the scope {scope}", hint="token add --scope … makes a token that has it")


class WholeInstallation:
    """For what is about all tenants: views that a token limited to some tenants may not use."""

    whole_installation: ClassVar[bool] = True

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        if token_of(request).tenants:
            raise NotAllowed("this token is limited to some tenants", hint="use one for the whole installation")


def tenants_permitted(request: Request) -> list[str] | None:
    """Slugs that the token is limited to; None for all."""
    return list(token_of(request).tenants) or None


def tenant_permitted(request: Request, slug: str, *, what: str) -> None:
    """Raise NotFound, as if it were not there, for what belongs to a tenant that the token may not touch."""
    limited = tenants_permitted(request)
    if limited is not None and slug not in limited:
        raise NotFound(what)
