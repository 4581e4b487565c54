"""Whether two DSNs lead to the same database, as far as that can be told without connecting."""

import os
import socket
from typing import Any

from connectors._postgresql.connection import parse_dsn
from engine.adapters import resolve_secret

_LOCAL = {"127.0.0.1", "::1"}


def same_database(one: str, other: str) -> bool:
    """Same name, same port, and hosts that share an address; all ways to this host's own server count as one."""
    mine, its = (parse_dsn(resolve_secret(dsn)) for dsn in (one, other))
    if _name(mine) != _name(its) or _port(mine) != _port(its):
        return False
    return bool(_hosts(mine) & _hosts(its))


def _name(parts: dict[str, Any]) -> str:
    user = parts.get("user") or os.environ.get("PGUSER") or ""
    return str(parts.get("dbname") or os.environ.get("PGDATABASE") or user)


def _port(parts: dict[str, Any]) -> str:
    return str(parts.get("port") or os.environ.get("PGPORT") or "5432")


def _hosts(parts: dict[str, Any]) -> set[str]:
    """Addresses of every host that is named; what cannot be resolved stands for itself."""
    named = str(parts.get("hostaddr") or parts.get("host") or os.environ.get("PGHOST") or "")
    found: set[str] = set()
    for host in named.split(","):
        if not host or host.startswith(("/", "@")):
            found.add("local")
            continue
        try:
            addresses = {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except OSError:
            addresses = {host.lower()}
        found |= {"local" if each in _LOCAL else each for each in addresses}
    return found
