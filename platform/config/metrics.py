"""`/metrics` for Prometheus: by a token or from a network that is named; nobody else learns how many tenants there are."""

import hmac
import ipaddress

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")
"""What a proxy adds: then the peer's address is the proxy's own, and says nothing of who asks."""


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The figures; 401 without the right token, 403 where nobody may read them."""
    if not (_token_right(request) or _address_allowed(request)):
        if settings.LASTRO_METRICS_TOKEN:
            return HttpResponse("a bearer token is needed\n", status=401, headers={"WWW-Authenticate": "Bearer"})
        said = "metrics are read by those whom LASTRO_METRICS_TOKEN or LASTRO_METRICS_ALLOW names\n"
        return HttpResponse(said, status=403, content_type="text/plain")
    from operations.exposition import CONTENT_TYPE_LATEST, exposition

    return HttpResponse(exposition.text(), content_type=CONTENT_TYPE_LATEST)


def _token_right(request: HttpRequest) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    wanted = settings.LASTRO_METRICS_TOKEN
    return bool(wanted) and scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted.encode())


def _address_allowed(request: HttpRequest) -> bool:
    """The peer's own address: what a proxy says of others is not believed here, so behind one the token is the way."""
    try:
        address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    if any(name in request.headers for name in _FORWARDED):
        return False
    return any(address in network for network in settings.LASTRO_METRICS_ALLOW if network.version == address.version)
