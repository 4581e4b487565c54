"""What a stolen token tries: more than its scopes, another tenant's things, and keeping the server busy."""

import itertools
import json
import time
from typing import Any

import pytest
from rest_framework.test import APIRequestFactory

from access.services import token_add, token_revoke
from api import idempotency
from api.models import Repeat
from api.throttles import TokenRate
from audit.models import Entry
from operations.models import Operation
from operations.services import operation_enqueue, operation_run
from tenants.models import Backup, Restore
from tenants.services.plans import plan_start
from tenants.services.restores import RestoreWish
from tests.api.conftest import Asker, Desk


@pytest.fixture
def backup(desk: Desk) -> Backup:
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    return desk.house.backup(tenant)


# ---------------------------------------------------------------- scopes


def test_rows_are_not_read_with_read(desk: Desk, backup: Backup) -> None:
    """Goal: comparisons show rows and paths, as previews do; ask for one with each scope."""
    address = f"/api/v1/backups/{backup.pk}/diff/{backup.pk}"
    for scope, status in (("read", 403), ("backup:write", 403), ("restore:write", 200)):
        assert desk.asker(scope).get(address).status_code == status


def test_a_backup_in_clear_is_for_those_who_own_the_keys(desk: Desk, backup: Backup) -> None:
    """Goal: a stolen token that may take backups lays nothing readable into a store; ask for one without encryption."""
    body = {"tenant": "aurora", "encrypt": False}
    refused = desk.asker("backup:write").post("/api/v1/backups", body)
    assert (refused.status_code, refused.json()["code"]) == (403, "access.scope_missing")
    assert desk.asker("admin").post("/api/v1/backups", body).status_code == 202


def test_nobody_goes_on_with_what_he_could_not_have_begun(desk: Desk, backup: Backup) -> None:
    """Goal: no escalation by plans and retries; take up an owner's plan, restore and export to other places."""
    target = ("path=/tmp/elsewhere-of-an-owner",)
    wish = RestoreWish(mode="full", targets=target)
    plan, operation = plan_start(backup, wish, target, actor="test:owner")
    operation_run(operation.pk)
    ask = desk.asker("restore:write", "backup:write")
    taken = ask.post("/api/v1/restores", {"plan": plan.pk}, Idempotency_Key="a")
    assert (taken.status_code, taken.json()["code"]) == (403, "access.scope_missing")

    restore = desk.house.restore(backup)
    Restore.objects.filter(pk=restore.pk).update(in_place=False)
    export = operation_enqueue(
        kind="export", tenant="aurora", params={"folder": "/tmp/x"}, subject_id=backup.pk, actor="test:owner"
    )
    for each in (Operation.objects.get(pk=restore.operation_id), export, operation):
        Operation.objects.filter(pk=each.pk).update(state="failed")
        assert ask.post(f"/api/v1/operations/{each.pk}/retry").status_code == 403, each.kind
        Operation.objects.filter(pk=each.pk).update(state="queued")
        assert ask.post(f"/api/v1/operations/{each.pk}/cancel").status_code == 403, each.kind
    told = Entry.objects.filter(type="api.refused").order_by("-id").values_list("message", "tenant")
    assert ("POST /api/v1/operations/<str:operation_id>/cancel: access.scope_missing") in told[0][0]


# ---------------------------------------------------------------- tenants


def test_what_is_another_tenants_reads_like_what_is_not_there(desk: Desk, backup: Backup) -> None:
    """Goal: no answer tells a limited token which ids there are, in whatever state; compare to the letter."""
    desk.house.tenant("borealis")
    restore = desk.house.restore(backup)
    plan = desk.house.plan(backup)
    ask = desk.asker("admin", tenants=("borealis",))

    def said(method: str, address: str, body: Any = None) -> Any:
        answer = ask(method, address, body)
        known = {key: value for key, value in answer.json().items() if key != "request_id"}
        return answer.status_code, json.dumps(known)

    cases = [
        ("GET", "/api/v1/backups/{}", backup.pk), ("POST", "/api/v1/backups/{}/verify", backup.pk),
        ("GET", "/api/v1/backups/{}/manifest", backup.pk), ("GET", "/api/v1/restores/{}", restore.pk),
        ("GET", "/api/v1/restore-plans/{}", plan.pk), ("GET", "/api/v1/operations/{}", backup.operation_id),
        ("GET", "/api/v1/tenants/{}", "aurora"), ("GET", "/api/v1/backups?tenant={}", "aurora"),
    ]  # fmt: skip
    for state in ("succeeded", "failed", "deleted"):
        Backup.objects.filter(pk=backup.pk).update(state=state)
        for method, address, known in cases:
            made_up = known[:-1] + ("0" if known[-1] != "0" else "1")
            its = said(method, address.format(known), {} if method == "POST" else None)
            other = said(method, address.format(made_up), {} if method == "POST" else None)
            assert its[0] == 404
            assert its[1].replace(known, "X") == other[1].replace(made_up, "X"), (state, address)
    entry = Entry.objects.filter(type="api.refused", tenant="aurora").order_by("id").first()
    assert entry is not None
    assert entry.message == "GET /api/v1/backups/<str:backup_id>: catalogue.not_found"


def test_a_limited_token_follows_what_it_began_for_all_its_tenants(desk: Desk, backup: Backup) -> None:
    """Goal: the answer 202 leads somewhere, for its own token alone; trigger all, look with two tokens."""
    ask, other = (desk.asker("backup:write", tenants=("aurora",)) for _ in range(2))
    begun = ask.post("/api/admin/backups/trigger").json()["operation"]
    assert ask.get(begun["links"]["self"]).json()["kind"] == "backups"
    assert other.get(begun["links"]["self"]).status_code == 404


# ---------------------------------------------------------------- what is on record


def test_reading_a_tenants_data_is_on_record(desk: Desk, backup: Backup) -> None:
    """Goal: whoever looked is named afterwards; read a restore, a drill, a manifest, a plan and a comparison."""
    restore, plan = desk.house.restore(backup), desk.house.plan(backup)
    ask = desk.asker("restore:write")
    begun = ask.post("/api/v1/drills", {"tenant": "aurora"}).json()
    operation_run(begun["id"])
    for address, type_ in (
        (f"restores/{restore.pk}", "restore.read"), (f"drills/{begun['subject_id']}", "drill.read"),
        (f"backups/{backup.pk}/manifest", "manifest.read"), (f"restore-plans/{plan.pk}", "plan.read"),
        (f"backups/{backup.pk}/diff/{backup.pk}", "backup.compared"),
    ):  # fmt: skip
        before = Entry.objects.filter(type=type_).count()
        assert ask.get(f"/api/v1/{address}").status_code == 200
        assert Entry.objects.filter(type=type_, tenant="aurora").count() == before + 1, type_


def test_refusals_count_and_do_not_fill_the_log(desk: Desk, backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a weak token cannot flood the audit log; let it be refused more often than it may ask."""
    monkeypatch.setattr(TokenRate, "rate", "70/min")
    ask = desk.asker("read")
    codes = [ask.get(f"/api/v1/backups/{backup.pk}/download").status_code for _ in range(80)]
    assert codes == [403] * 70 + [429] * 10
    assert 60 <= Entry.objects.filter(type="api.refused").count() < 70


def test_what_a_drill_saw_stays_sealed(desk: Desk, backup: Backup) -> None:
    """Goal: its operation, which any token may read, has no evidence; rehearse, and look for names of checks."""
    begun = desk.asker("restore:write").post("/api/v1/drills", {"tenant": "aurora"}).json()
    operation = operation_run(begun["id"])
    assert (operation.state, (operation.result or {})["status"]) == ("succeeded", "passed")
    evidence = desk.asker("restore:write").get(begun["links"]["subject"]).json()["checks"]
    told = json.dumps(desk.asker("read").get(begun["links"]["self"]).json())
    assert evidence
    assert [each["name"] for each in evidence if each["name"] in told] == []


# ---------------------------------------------------------------- repeats


def test_a_key_that_is_given_back_meanwhile_is_no_error(
    desk: Desk, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: of two at once the second never gets a 500; have the first refused between the second's two queries."""
    ask = desk.asker("admin")
    ask.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    before = idempotency._before

    def later(row: Any, digest: str) -> Any:
        Repeat.objects.all().delete()
        return before(Repeat.objects.first(), digest)

    monkeypatch.setattr(idempotency, "_before", later)
    answer = ask.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    assert (answer.status_code, answer.json()["code"]) == (409, "request.still_running")


def test_what_ended_nobody_knows_how_is_not_done_again(
    desk: Desk, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: at most once; break down after the work was queued, then repeat the request."""
    import api.resources.backups as view

    ask = desk.asker("admin")
    monkeypatch.setattr(view, "accepted", lambda operation: 1 / 0)
    assert ask.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one").status_code == 500
    count = Operation.objects.count()
    again = ask.post("/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    assert (again.status_code, again.json()["code"]) == (409, "request.still_running")
    assert Operation.objects.count() == count


def test_every_kept_answer_names_its_tenant(desk: Desk, backup: Backup) -> None:
    """Goal: a shredding finds them; ask at a new and at an old address."""
    ask = desk.asker("admin")
    for number, address in enumerate(("/api/v1/backups", "/api/admin/backups/trigger")):
        ask.post(address, {"tenant": "aurora"}, Idempotency_Key=str(number))
    assert list(Repeat.objects.values_list("tenant", flat=True)) == ["aurora", "aurora"]


# ---------------------------------------------------------------- keeping it busy


def test_large_bodies_are_read_in_a_moment(desk: Desk, backup: Backup) -> None:
    """Goal: time and answer of a bad body grow with it and not with its square; a mebibyte of names, of wrong members."""
    ask = desk.asker("admin")
    names = b"{" + b",".join(b'"%05x":0' % n for n in range(95_000)) + b',"00000":0}'
    members = b'{"tenant":"aurora","sources":[' + b",".join(itertools.repeat(b"{}", 340_000)) + b"]}"
    unknown = b"{" + b",".join(b'"%05x":0' % n for n in range(95_000)) + b"}"
    for body, status in ((names, 400), (members, 422), (unknown, 422)):
        assert len(body) < 1 << 20
        began = time.process_time()
        answer = ask("POST", "/api/v1/backups", body)
        assert answer.status_code == status
        assert len(answer.content) < 64 << 10
        assert time.process_time() - began < 10, "minutes, were it the square"


def test_nobody_waits_for_a_comparison_of_hours(desk: Desk, backup: Backup) -> None:
    """Goal: one request does not keep a thread for hours; ask for backups that are too large."""
    address = f"/api/v1/backups/{backup.pk}/diff/{backup.pk}"
    Backup.objects.filter(pk=backup.pk).update(size_bytes=3 << 30)
    answer = desk.asker("restore:write").get(address)
    assert (answer.status_code, answer.json()["code"]) == (409, "backup.too_large_to_compare")
    assert f"backup diff {backup.pk}" in answer.json()["hint"]


@pytest.mark.parametrize(
    "address",
    ["backups/bkp_%00", "backups?tenant=%00", "backups?%00=a", "tenants/%00", "operations/%00", "%00",
     "backups?from=1970-01-01T00:00:00%2B23:59", "backups?to=9998-12-31T23:59:59-23:59"],
)  # fmt: skip
def test_no_address_ends_in_an_error_of_ours(desk: Desk, address: str) -> None:
    """Goal: never a 500 for bad input, on PostgreSQL neither; NUL in names and values, times at the ends of time."""
    answer = desk.asker("admin").get(f"/api/v1/{address}")
    assert answer.status_code in (200, 404, 422), answer.content


def test_a_token_with_a_nul_asks_no_catalogue(desk: Desk, django_assert_num_queries: Any) -> None:
    """Goal: 401 and no query; a NUL, a blank, a byte above ASCII in the token."""
    from api.authentication import BearerAuthentication

    for text in ("lst\0_x", "lst x", "lst\xff_x"):
        request = APIRequestFactory().get("/api/v1/backups", HTTP_AUTHORIZATION=f"Bearer {text}")
        with django_assert_num_queries(0), pytest.raises(Exception, match="unknown, expired or revoked"):
            BearerAuthentication().authenticate(request)
    assert Asker("lst\t_x").get("/api/v1/backups").status_code == 401


def test_the_use_of_a_dead_token_is_on_record(desk: Desk) -> None:
    """Goal: a stolen token that was revoked is seen, also by what only reads; guesses leave nothing."""
    _, secret = token_add("robot", scopes=["admin"], actor="test:operator")
    prefix = secret.partition("_")[0]
    token_revoke(prefix, actor="test:operator")
    for text in (secret, f"{prefix}_guessed", "lst0000000000_guessed", "nonsense"):
        assert Asker(text).get("/api/v1/tenants").status_code == 401
    told = Entry.objects.filter(type="api.refused")
    assert [(each.user_id, each.message) for each in told] == [
        (f"token:{prefix}", "GET /api/v1/tenants: access.token_dead")
    ] * 2
    assert secret.partition("_")[2] not in str(list(told.values()))
