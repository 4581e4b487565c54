"""Whether a store's settings send credentials and names over a line that anybody on the way can read."""

import dataclasses
import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

_URL = re.compile(r"(?:^|[=;])\s*(http://[^\s;,\"']+)", re.IGNORECASE)
_PROTOCOL = re.compile(r"(^|;)\s*DefaultEndpointsProtocol\s*=\s*http\s*(;|$)", re.IGNORECASE)
"""What a connection string of Azure says when it names an account and no endpoint."""


def plain_http(config: Any) -> str:
    """The host that the settings reach by http, empty when there is none or it is this very one.

    Looks into every setting, the secret ones too, and gives nothing of them away but a host's name.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, str):
            continue
        hosts = [urlsplit(found).hostname or "" for found in _URL.findall(value)]
        if not hosts and _PROTOCOL.search(value):
            return "blob storage of the account"
        for host in hosts:
            if not _is_here(host):
                return host[:200]
    return ""


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
