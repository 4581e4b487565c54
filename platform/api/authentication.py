"""Who asks: a live token in the Authorization header, and nothing else."""

import re
from typing import Any

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from access.models import Account, Token
from access.services import token_check
from audit.refusals import token_refused

HEADER_BYTES_MAX = 512
PREFIX_CHARS_MAX = 24
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
REALM = 'Bearer realm="lastro"'


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer <prefix>_<secret>`; sessions of browsers do not count, so that no other site can use them."""

    def authenticate(self, request: Request) -> tuple[Account, Token] | None:
        """The account that the token acts for and the token; None without a header. Raises AuthenticationFailed."""
        header: bytes = get_authorization_header(request)
        if not header:
            return None
        scheme, _, text = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > HEADER_BYTES_MAX:
            raise AuthenticationFailed("the header must be: Authorization: Bearer <token>")
        said = text.strip().decode("latin-1")
        # No catalogue is asked for what no token looks like: some fail at a NUL.
        token = token_check(said) if _TOKEN.fullmatch(said) else None
        if token is None:
            _record(request, said)
            raise AuthenticationFailed("this token is unknown, expired or revoked")
        return token.account, token

    def authenticate_header(self, request: Request) -> str:
        return REALM


def _record(request: Request, said: str) -> None:
    """Put on record that a token was used that ended, or whose secret is another; what nobody ever gave out is noise."""
    prefix = said.partition("_")[0][:PREFIX_CHARS_MAX]
    if _TOKEN.fullmatch(said) and Token.objects.filter(prefix=prefix).exists():
        match = request.resolver_match
        token_refused(prefix, str(request.method), f"/{match.route}" if match else "", "access.token_dead")


def token_of(request: Request) -> Token:
    """The token of an authenticated request."""
    token: Any = request.auth
    assert isinstance(token, Token), "the permission let nobody in without a token"
    return token


def actor_of(request: Request) -> str:
    """Who did it, for rows and the audit log."""
    return f"token:{token_of(request).prefix}"
