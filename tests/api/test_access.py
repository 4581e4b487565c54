"""Who gets what: every address, every scope, every tenant."""

import random
from typing import Any

import pytest
from django.urls import URLPattern, get_resolver

from access.models import Scope, Token
from access.services import token_revoke
from audit.models import Entry
from core import clock
from tests.api.conftest import Asker, Desk
from tests.conftest import Rounds

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
FILLED = {"slug": "aurora", "backup_id": "{backup}", "other_id": "{backup}", "restore_id": "{restore}", "plan_id": "{plan}",
          "drill_id": "drl_none", "name": "default", "operation_id": "{operation}"}  # fmt: skip
SCOPES = [scope.value for scope in Scope]


def routes() -> list[tuple[str, Any]]:
    """Every address of the API with its view, parameters filled in."""
    (api,) = [each for each in get_resolver().url_patterns if str(each.pattern) == "api/"]
    found = []
    for pattern in api.url_patterns:
        assert isinstance(pattern, URLPattern)
        address = str(pattern.pattern)
        if address.startswith("^"):
            continue
        for name, value in FILLED.items():
            address = address.replace(f"<str:{name}>", value)
        assert "<" not in address, "FILLED lacks a parameter"
        found.append((f"/api/{address}", pattern.callback.cls))
    return found


@pytest.fixture
def things(desk: Desk) -> dict[str, str]:
    """One of each thing of tenant aurora, by the names in FILLED."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    plan = desk.house.plan(backup)
    restore = desk.house.restore(backup)
    return {"backup": backup.pk, "plan": plan.pk, "restore": restore.pk, "operation": backup.operation_id}


def test_every_address_asks_for_its_scope(desk: Desk, things: dict[str, str]) -> None:
    """Goal: 0 wrong answers; ask every address with every method as everybody, and compare with what its view declares."""
    askers = {scope: desk.asker(scope) for scope in SCOPES}
    revoked = desk.asker("admin")
    token_revoke(Token.objects.order_by("-id").values_list("prefix", flat=True)[0], actor="test")
    wrong = []
    for address, view in routes():
        address = address.format(**things)
        # The spelling with a slash leads to the same view.
        for method in ("GET", "POST") if address.endswith("/") else METHODS:
            strangers = (Asker(), Asker("lst0000000000_x"), revoked)
            wrong += [
                (method, address, "stranger") for each in strangers if each(method, address, b"").status_code != 401
            ]
            if method == "DELETE":
                continue  # What is allowed would be done; see below.
            needed = {"GET": "read", "HEAD": "read", "OPTIONS": "read", **view.scopes}.get(method, "admin")
            for scope, asker in askers.items():
                allowed = scope in (needed, "admin") or needed == "read"
                refused = asker(method, address, b"[]").status_code == 403
                if refused == allowed:
                    wrong.append((method, address, scope))
    assert wrong == []
    assert askers["read"]("DELETE", f"/api/v1/backups/{things['backup']}").status_code == 403
    assert Entry.objects.filter(type="api.refused").exists()


@pytest.mark.seeded
def test_a_limited_token_sees_its_tenants_only(
    desk: Desk, things: dict[str, str], rng: random.Random, rounds: Rounds
) -> None:
    """Goal: 0 reads across tenants; ask 1,000 times at random for things of another tenant, by address, filter and body."""
    desk.house.tenant("borealis")
    ask = desk.asker("admin", tenants=("borealis",))
    known = [address.format(**things) for address, _ in routes()]
    bodies: list[Any] = [
        {"tenant": "aurora"}, {"backup": things["backup"]}, {"plan": things["plan"]}, {"restore": things["restore"]},
        {"backup": things["backup"], "targets": ["path=/tmp/x"]}, {"tenant": "borealis", "backup": things["backup"]},
    ]  # fmt: skip
    for number in rounds(1000):
        address, method = rng.choice(known), rng.choice(["GET", "GET", "POST"])
        query = rng.choice(["", "?tenant=aurora", "?q=aurora", "?limit=200", "?tenant=aurora&limit=1"])
        answer = ask(method, address + query, rng.choice(bodies) if method == "POST" else None,
                     Idempotency_Key=f"k{number}")  # fmt: skip
        assert answer.status_code < 500
        if answer.status_code in (200, 206):
            assert b"aurora" not in answer.getvalue().replace(b"?tenant=aurora", b"")
            assert things["backup"].encode() not in answer.getvalue()
        elif answer.status_code == 202:
            assert b"aurora" not in answer.getvalue()


def test_a_token_that_ended_gets_nothing_from_then_on(desk: Desk) -> None:
    """Goal: revocation is at once, and an account that is no master any more acts through no token."""
    ask = desk.asker("read")
    assert ask.get("/api/v1/tenants").status_code == 200
    token = Token.objects.get()
    token.expires_at = clock.now()
    token.save()
    assert ask.get("/api/v1/tenants").status_code == 401
    Token.objects.update(expires_at=None)
    token.account.is_master = False
    token.account.save()
    answer = ask.get("/api/v1/tenants")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="lastro"')


def test_targets_are_for_those_who_own_the_host(desk: Desk, things: dict[str, str]) -> None:
    """Goal: a stolen `restore:write` writes nowhere but into the tenant; name another place with it."""
    ask = desk.asker("restore:write")
    body = {"backup": things["backup"], "targets": ["path=/tmp/elsewhere"]}
    answer = ask.post("/api/v1/restores", body, Idempotency_Key="a")
    assert (answer.status_code, answer.json()["code"]) == (403, "access.scope_missing")
    assert ask.post("/api/v1/restore-plans", body).status_code == 403


def test_a_hold_is_taken_off_by_admin_alone(desk: Desk, things: dict[str, str]) -> None:
    """Goal: a stolen `backup:write` frees nothing that the law keeps; put a hold on with it, try to take it off."""
    address = f"/api/v1/backups/{things['backup']}/protect"
    writer, admin = desk.asker("backup:write"), desk.asker("admin")
    assert writer.post(address, {"held": True, "reason": "case 12"}).json()["held"] is True
    answer = writer.post(address, {"held": False})
    assert (answer.status_code, answer.json()["code"]) == (403, "access.scope_missing")
    assert admin.post(address, {"held": False, "reason": "closed"}).json()["held"] is False
