"""What is taken, what is refused, and what asking twice does."""

import datetime
import json
from typing import Any

import pytest

from access.models import Token
from api.models import Repeat
from core import clock
from operations.history import history_forget
from operations.models import Operation
from operations.services import operation_run
from tests.api.conftest import Asker, Desk


@pytest.fixture
def asker(desk: Desk) -> Asker:
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    return desk.asker("admin")


BAD_BODIES: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"[]", 422),
    (b"null", 422),
    (b"{", 400),
    (b'{"tenant": "aurora", "tenant": "borealis"}', 400),
    (b'{"tenant": NaN}', 400),
    (b'{"tenant": "\\ud800"}', 400),
    (b"\xff\xfe{}", 400),
    (b'{"a":' * 50_000, 400),
    (b'{"tenant": "aurora", "since": "yesterday"}', 422),
    (b'{"tenant": "aurora", "since": "99999-01-01T00:00:00Z"}', 422),
    (b'{"tenant": "aurora", "sources": {"a": 1}}', 422),
    (b'{"tenant": "aurora", "sources": "' + b"a" * 300 + b'"}', 422),
    (b'{"tenant": "aurora", "type": "' + b"9" * 5_000 + b'"}', 422),
    (b'{"tenant": "aurora", "type": ' + b"9" * 5_000 + b"}", 400),
    (b'{"tenant": "aur\\u0000ora"}', 422),
    (b'{"tenant": "aurora", "password": "x"}', 422),
    (b'{"tenant": "aurora"}' + b" " * 1_100_000, 413),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_bad_body_is_a_problem_and_does_nothing(asker: Asker, body: bytes, status: int) -> None:
    """Goal: every bad body is told, as what it is; nothing is queued."""
    answer = asker("POST", "/api/v1/backups", body)
    told = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert told["status"] == status
    assert told["detail"]
    assert not Operation.objects.exists()
    if status == 422:
        assert all(each["pointer"] == "" or each["pointer"].startswith("/") for each in told["errors"])


def test_other_refusals_are_problems_too(asker: Asker) -> None:
    """Goal: never a page of HTML under /api; ask for what is not there, in ways that are not taken."""
    cases = {
        ("GET", "/api/v1/backups/bkp_nope"): 404,
        ("GET", "/api/v1/nothing"): 404,
        ("GET", "/api/"): 404,
        ("PATCH", "/api/v1/backups"): 405,
        ("GET", "/api/v1/backups?limit=0"): 422,
        ("GET", "/api/v1/backups?limit=1e3"): 422,
        ("GET", "/api/v1/backups?cursor=%00"): 422,
        ("GET", "/api/v1/backups?from=2026-11-22"): 422,
        ("GET", "/api/v1/backups?state=lovely"): 422,
        ("GET", "/api/v1/backups?tenant=nobody"): 404,
        ("GET", "/api/v1/tenants?q=" + "a" * 101): 422,
        ("GET", "/api/v1/tenants/%2e%2e%2fetc"): 404,
    }
    for (method, address), status in cases.items():
        answer = asker(method, address)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), address
    assert asker("POST", "/api/v1/backups", b"a=b", content_type="application/x-www-form-urlencoded").status_code == 415


def test_the_same_key_does_one_thing(asker: Asker) -> None:
    """Goal: a repeat gets the first answer, another body under the key is refused, other keys and tokens are others."""
    first = asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    again = asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    assert (first.status_code, again.status_code) == (202, 202)
    assert (first.json(), first.headers["Location"]) == (again.json(), again.headers["Location"])
    assert again.headers["Idempotent-Replayed"] == "true"
    other = asker.post("/api/v1/backups", {"tenant": "aurora", "type": "full"}, Idempotency_Key="one")
    assert (other.status_code, other.json()["code"]) == (422, "request.key_reused")
    assert Operation.objects.count() == 1
    asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="two")
    assert Operation.objects.count() == 2


def test_a_key_whose_first_request_has_no_answer_yet_waits(asker: Asker) -> None:
    """Goal: nothing is begun twice when a server dies; leave a key without an answer, and a refused one with none."""
    refused = asker.post("/api/v1/backups", {"tenant": "nobody"}, Idempotency_Key="one")
    assert refused.status_code == 404
    assert not Repeat.objects.exists()
    asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    Repeat.objects.update(status=None)
    waiting = asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "request.still_running")


def test_keys_are_forgotten_after_a_day(asker: Asker) -> None:
    """Goal: their table is bounded; let a day go by."""
    with clock.held(clock.now()) as advance:
        asker.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
        advance(datetime.timedelta(hours=25))
        Token.objects.update(expires_at=None)
        history_forget(actor="test")
        assert not Repeat.objects.exists()


def test_restores_want_a_key(asker: Asker) -> None:
    """Goal: no restore is begun twice by a repeat; leave the key out."""
    answer = asker.post("/api/v1/restores", {"backup": "bkp_x"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/Idempotency-Key"


def test_pages_are_stable_and_go_both_ways(desk: Desk, asker: Asker) -> None:
    """Goal: every row once, in order, whatever is inserted meanwhile; walk forward by threes, insert, walk back."""
    for number in range(10):
        asker.post("/api/v1/backups", {"tenant": "aurora", "reason": str(number)})
    found, cursor, pages = [], "", []
    while cursor is not None:
        page = asker.get(f"/api/v1/operations?limit=3&cursor={cursor}").json()
        pages.append([each["id"] for each in page["data"]])
        found += pages[-1]
        cursor, back = page["page"]["next"], page["page"]["prev"]
        asker.post("/api/v1/backups", {"tenant": "aurora", "reason": "meanwhile"})
    assert found == sorted(found, reverse=True)
    assert len(found) == len(set(found)) == 10
    walked = []
    while back is not None and len(walked) < 3:
        page = asker.get(f"/api/v1/operations?limit=3&cursor={back}").json()
        walked.append([each["id"] for each in page["data"]])
        back = page["page"]["prev"]
    assert walked == pages[-2::-1][:3]


def test_a_list_costs_the_same_queries_whatever_its_length(desk: Desk, django_assert_max_num_queries: Any) -> None:
    """Goal: no query per row; list 2 and 12 of each with the same limit."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    ask = desk.asker("read")
    for _ in range(2):
        for _ in range(5):
            desk.house.backup(tenant, "incremental")
        for name in ("backups", "operations", "tenants", "restores", "restore-plans", "drills", "stores"):
            with django_assert_max_num_queries(9):
                assert ask.get(f"/api/v1/{name}").status_code == 200


def test_long_work_is_followed_to_its_end(desk: Desk, asker: Asker) -> None:
    """Goal: 202, Location, the operation, its subject; run what a worker would."""
    answer = asker.post("/api/v1/backups", {"tenant": "aurora", "type": "full", "tags": ["api"]})
    told = answer.json()
    assert answer.headers["Location"] == told["links"]["self"]
    operation_run(told["id"])
    assert asker.get(told["links"]["self"]).json()["state"] == "succeeded"
    backup = asker.get(told["links"]["subject"]).json()
    assert (backup["state"], backup["tags"], backup["trigger"]) == ("succeeded", ["api"], "api")


def test_a_restore_goes_from_plan_to_undo(desk: Desk, asker: Asker) -> None:
    """Goal: loss, preview, restore, undo over HTTP alone; the file comes back, and goes again."""
    tenant = desk.house.tenant("borealis")
    source = desk.house.files(tenant, a="one", b="two")
    backup = desk.house.backup(tenant)
    lost = desk.house.folder(source) / "a"
    lost.unlink()

    def done(answer: Any) -> Any:
        assert answer.status_code == 202, answer.content
        told = answer.json()
        operation_run(told["id"])
        return asker.get(told["links"]["subject"]).json()

    plan = done(asker.post("/api/v1/restore-plans", {"backup": backup.pk}))
    assert (plan["state"], plan["files"]["create"] if "create" in plan["files"] else sum(plan["files"].values())) != (
        "failed",
        0,
    )
    restore = done(asker.post("/api/v1/restores", {"plan": plan["plan"]}, Idempotency_Key="r"))
    assert (restore["state"], lost.read_text()) == ("succeeded", "one")
    undo = done(asker.post(f"/api/v1/restores/{restore['id']}/undo", {}, Idempotency_Key="u"))
    assert (undo["state"], lost.exists()) == ("succeeded", False)


def test_the_old_addresses_begin_the_same_work(desk: Desk, asker: Asker) -> None:
    """Goal: existing automation goes on; trigger one and all, restore without a body, delete the last good one."""
    one = asker.post("/api/admin/backups/trigger/", {"tenant": "aurora", "type": "full"}).json()
    assert one["success"] is True
    assert one["backup_id"] == one["backupId"]
    operation_run(one["operation"]["id"])
    every = asker("POST", "/api/admin/backups/trigger", b"").json()
    assert operation_run(every["operation"]["id"]).result["queued"] == 1
    restored = asker("POST", f"/api/admin/backups/{one['backup_id']}/restore", b"")
    assert restored.status_code == 202
    assert asker.post(f"/api/admin/backups/{one['backup_id']}/restore").status_code == 409
    assert asker("DELETE", f"/api/admin/backups/{one['backup_id']}").status_code == 409
    assert json.loads(restored.content)["success"] is True
