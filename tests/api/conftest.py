"""The API, asked over Django's client or a real server."""

import json
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from access.services import master_add, token_add
from audit import refusals
from tests.tenants.conftest import House, house

__all__ = ["house"]


class Asker:
    """One token's way to ask."""

    def __init__(self, secret: str = "") -> None:
        self.client = Client(raise_request_exception=False)
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def __call__(self, method: str, address: str, body: Any = None, **headers: str) -> Any:
        """The answer; `json()` reads it. A body that is bytes goes as it is."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        kind = headers.pop("content_type", "application/json")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.generic(method, address, data=data, content_type=kind, headers={**self.headers, **named})

    def get(self, address: str, **headers: str) -> Any:
        return self("GET", address, **headers)

    def post(self, address: str, body: Any = None, **headers: str) -> Any:
        return self("POST", address, {} if body is None else body, **headers)


class Desk:
    """A house with a master, and tokens on request."""

    def __init__(self, house: House) -> None:
        self.house = house
        master_add("boss", actor="test:operator")

    def asker(self, *scopes: str, tenants: tuple[str, ...] = ()) -> Asker:
        """An asker whose token has these scopes, and is limited to these tenants."""
        _, secret = token_add("robot", scopes=scopes or ("admin",), tenants=tenants, actor="test:operator")
        return Asker(secret)


@pytest.fixture
def desk(house: House, monkeypatch: pytest.MonkeyPatch) -> Desk:
    cache.clear()
    monkeypatch.setattr(refusals, "_allowance", refusals._Allowance())
    return Desk(house)
