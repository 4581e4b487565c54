"""Accounts, tokens, logging in; an owner, a colleague without the role, a stranger."""

import datetime

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.views import View

from access.guards import MasterRequired, master_required
from access.models import Account, Token
from access.services import master_add, token_add, token_check, token_revoke
from audit.models import Entry
from core import clock
from core.errors import Conflict, NotFound, UsageError

pytestmark = pytest.mark.django_db

DAY = datetime.timedelta(days=1)


def test_a_token_is_found_by_its_text_alone() -> None:
    """Goal: only the whole right text opens; change prefix, secret, case, length."""
    account, _ = master_add("ana", actor="cli:root")
    token, text = token_add("ci", scopes=["read"], actor="cli:root")
    found = token_check(text)
    assert found is not None
    assert (found.pk, found.account) == (token.pk, account)
    prefix, _, secret = text.partition("_")
    for wrong in (
        "",
        "_",
        prefix,
        f"{prefix}_",
        f"{prefix}_{secret[:-1]}",
        f"{prefix}_{secret}x",
        f"x{text}",
        f"{prefix}_{secret.swapcase()}",
        secret,
    ):
        assert token_check(wrong) is None, wrong
    assert secret not in str(Token.objects.values().get())


def test_a_token_ends() -> None:
    """Goal: expired, revoked and orphaned tokens open nothing; end one in each way."""
    account, _ = master_add("ana", actor="cli:root")
    _, short = token_add("short", scopes=["read"], expires_at=clock.now() + DAY, actor="cli:root")
    long, text = token_add("long", scopes=["read"], actor="cli:root")
    with clock.held(clock.now() + DAY):
        assert token_check(short) is None
        assert token_check(text) is not None
    Account.objects.filter(pk=account.pk).update(is_master=False)
    assert token_check(text) is None
    Account.objects.filter(pk=account.pk).update(is_master=True, is_active=False)
    assert token_check(text) is None
    Account.objects.filter(pk=account.pk).update(is_active=True)
    assert token_check(text) is not None
    token_revoke(long.prefix, actor="cli:root")
    token_revoke(long.prefix, actor="cli:root")
    assert token_check(text) is None
    assert Entry.objects.filter(type="token.revoked").count() == 1


def test_use_is_noted_without_a_write_each_time() -> None:
    """Goal: last use is known, reading stays cheap; use a token within a minute and after it."""
    master_add("ana", actor="cli:root")
    token, text = token_add("ci", scopes=["read"], actor="cli:root")
    with clock.held(clock.now()) as advance:
        first = clock.now()
        for _ in range(3):
            token_check(text)
            advance(datetime.timedelta(seconds=10))
        token.refresh_from_db()
        assert token.last_used_at == first
        advance(datetime.timedelta(minutes=1))
        token_check(text)
        token.refresh_from_db()
        assert token.last_used_at == clock.now()


def test_a_token_needs_a_known_scope_and_a_clear_master() -> None:
    """Goal: no token by mistake; leave out or misspell each part."""
    with pytest.raises(NotFound):
        token_add("ci", scopes=["read"], actor="cli:root")
    master_add("ana", actor="cli:root")
    for scopes in ([], ["reed"], ["read", "root"]):
        with pytest.raises(UsageError):
            token_add("ci", scopes=scopes, actor="cli:root")
    master_add("ben", actor="cli:root")
    with pytest.raises(UsageError, match="several masters"):
        token_add("ci", scopes=["read"], actor="cli:root")
    with pytest.raises(NotFound):
        token_add("ci", scopes=["read"], master="carl", actor="cli:root")
    assert token_add("ci", scopes=["read"], master="ben", actor="cli:root")[0].account.username == "ben"


@pytest.mark.parametrize("name", ["", " ana", "ana ", "a\nb", "x" * 151])
def test_a_name_is_a_name(name: str) -> None:
    """Goal: no invisible or endless names; try some."""
    with pytest.raises(UsageError):
        master_add(name, actor="cli:root")


def test_a_name_is_given_once() -> None:
    """Goal: two people are two accounts; add one twice, and see that the failure left nothing."""
    master_add("ana", actor="cli:root")
    with pytest.raises(Conflict):
        master_add("ana", actor="cli:root")
    assert Entry.objects.filter(type="master.added").count() == 1


def _post(client: Client, name: str, password: str, **more: str) -> HttpResponse:
    return client.post("/login/", {"username": name, "password": password, **more})


def test_logging_in_and_out() -> None:
    """Goal: the right password opens a session and is on record; log in, out, and in with a wrong one."""
    account, password = master_add("ana", actor="cli:root")
    client = Client()
    assert _post(client, "ana", "wrong").status_code == 200
    assert "_auth_user_id" not in client.session
    assert _post(client, "ana", password, next="/backups/").headers["Location"] == "/backups/"
    assert client.session["_auth_user_id"] == account.pk
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").status_code == 302
    assert "_auth_user_id" not in client.session
    types = list(Entry.objects.order_by("sequence").values_list("type", flat=True))
    assert types == ["master.added", "access.login_failed", "access.login"]


def test_the_way_back_stays_in_the_house() -> None:
    """Goal: a link cannot send people elsewhere after logging in; give a foreign `next`."""
    _, password = master_add("ana", actor="cli:root")
    assert _post(Client(), "ana", password, next="https://evil.example/").headers["Location"] == "/"


def test_a_password_in_the_wrong_field_is_not_kept() -> None:
    """Goal: the audit log holds no secret; type one as the name."""
    _post(Client(), "my-secret-password", "x")
    assert "my-secret-password" not in str(list(Entry.objects.values()))


def test_forms_need_their_token() -> None:
    """Goal: no foreign page logs anybody in; post without the CSRF token."""
    assert Client(enforce_csrf_checks=True).post("/login/", {"username": "a", "password": "b"}).status_code == 403


@master_required
def _page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("secret")


class _Page(MasterRequired, View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("secret")


@pytest.mark.parametrize("view", [_page, _Page.as_view()], ids=["function", "class"])
def test_only_masters_get_in(view: object) -> None:
    """Goal: an owner sees the page, a colleague 403, a stranger the log-in; ask as each."""
    request = RequestFactory().get("/backups/?x=1")
    request.user = Account(username="ana", is_master=True)
    assert view(request).content == b"secret"  # type: ignore[operator]
    request.user = Account(username="ben")
    with pytest.raises(PermissionDenied):
        view(request)  # type: ignore[operator]
    request.user = AnonymousUser()
    answer = view(request)  # type: ignore[operator]
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login/?next=/backups/%3Fx%3D1")
