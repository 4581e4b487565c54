"""How often one token may ask."""

from typing import Any

from rest_framework.throttling import SimpleRateThrottle

from access.models import Token


class TokenRate(SimpleRateThrottle):
    """So many requests a minute per token and server process; strangers are refused before they count."""

    scope = "token"
    rate = "1200/min"

    def get_cache_key(self, request: Any, view: Any) -> str | None:
        return f"api-rate-{request.auth.pk}" if isinstance(request.auth, Token) else None
