"""The page: for masters only, true, and the same few queries whatever there is."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from access.models import Account
from core import clock
from tenants.models import Source, Tenant
from tenants.reports import restore_report_html
from tenants.selectors import AGE_MAX, tenant_list_worst
from tests.tenants.conftest import House

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def master() -> Client:
    client = Client()
    client.force_login(Account.objects.create(username="boss", is_master=True))
    return client


PAGES = ("/", "/tenants/aurora/")


@pytest.mark.parametrize("page", PAGES)
def test_only_masters_get_in(house: House, page: str) -> None:
    """Goal: strangers see nothing; ask as nobody, and as an account without the role."""
    house.tenant()
    anonymous = Client().get(page)
    assert (anonymous.status_code, anonymous.headers["Location"].split("?")[0]) == (302, "/login/")
    stranger = Client()
    stranger.force_login(Account.objects.create(username="stranger"))
    assert stranger.get(page).status_code == 403


@pytest.mark.parametrize("page", PAGES)
def test_pages_only_read(house: House, master: Client, page: str) -> None:
    """Goal: the page changes nothing; try to post."""
    house.tenant()
    assert master.post(page).status_code == 405


def test_an_empty_page_says_what_to_do(house: House, master: Client) -> None:
    """Goal: nobody is stuck; look at it without tenants, without sources, without backups."""
    assert "tenant add" in master.get("/").content.decode()
    tenant = house.tenant()
    assert "source add aurora" in master.get("/tenants/aurora/").content.decode()
    house.files(tenant)
    assert "backup create aurora" in master.get("/tenants/aurora/").content.decode()
    assert "backup create aurora" in master.get("/").content.decode()


def test_the_page_shows_what_the_catalogue_has(house: House, master: Client) -> None:
    """Goal: state, checksums and size are on the page; take a good and a failed backup, and look."""
    tenant = house.tenant()
    source = house.files(tenant)
    good = house.backup(tenant, tags=("nightly",))
    folder = house.folder(source)
    folder.rename(folder.with_name("away"))
    failed = house.backup(tenant, ok=False)
    page = master.get("/tenants/aurora/").content.decode()
    for text in (good.pk, failed.pk, good.checksums["assets"], good.manifest_sha256, "nightly", failed.error):
        assert text in page
    assert "succeeded" in page
    assert "failed" in page
    assert good.manifest_sha256 not in master.get("/").content.decode()
    assert master.get("/tenants/nobody/").status_code == 404


def test_refusals_are_pages_of_ours(house: House, master: Client) -> None:
    """Goal: nobody lands on a bare page; ask for what is not there, without the role, with a stale form."""
    missing = master.get("/tenants/nobody/")
    assert (missing.status_code, b"All tenants" in missing.content, b"lastro.css" in missing.content) == (
        404,
        True,
        True,
    )
    stranger = Client()
    stranger.force_login(Account.objects.create(username="stranger"))
    assert b"master role" in stranger.get("/").content
    stale = Client(enforce_csrf_checks=True).post("/login/", {"username": "boss", "password": "x"})
    assert (stale.status_code, b"Load it again" in stale.content) == (403, True)


def test_a_wrong_password_says_so(house: House) -> None:
    """Goal: a person knows what to try next; log in as nobody."""
    page = Client().post("/login/", {"username": "nobody", "password": "wrong"}).content.decode()
    assert "Not let in" in page
    assert 'role="alert"' in page


def test_names_are_text_and_never_markup(house: House, master: Client) -> None:
    """Goal: a hostile name does nothing; put markup into one."""
    tenant = house.tenant()
    Tenant.objects.filter(pk=tenant.pk).update(name="<script>alert(1)</script>")
    for page in PAGES:
        assert b"<script>" not in master.get(page).content


def test_queries_do_not_grow_with_tenants(
    house: House, master: Client, django_assert_num_queries: Callable[..., Any]
) -> None:
    """Goal: 10,000 tenants cost no more than one; count queries with one, then with sixty."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    master.get("/")
    with django_assert_num_queries(7):
        master.get("/")
    Tenant.objects.bulk_create(
        Tenant(slug=f"t{n:03d}", name="x", store=tenant.store, repository_id=f"rep_{n}", keyring=b"") for n in range(60)
    )
    with django_assert_num_queries(7):
        first = master.get("/").content.decode()
    assert "?after=3%3At048" in first
    rest = master.get("/?after=3%3At048").content.decode()
    assert "t049" in rest and "t048" not in rest


def test_the_worst_comes_first(house: House, master: Client) -> None:
    """Goal: what needs somebody is on the first page; one of each kind, in an order that slugs would reverse."""
    made = {slug: house.tenant(slug) for slug in ("a-empty", "b-fine", "c-failed", "d-never", "e-late")}
    sources = {slug: house.files(row) for slug, row in made.items() if slug != "a-empty"}
    for slug in ("b-fine", "c-failed", "e-late"):
        house.backup(made[slug])
    folder = house.folder(sources["c-failed"])
    folder.rename(folder.with_name("away"))
    house.backup(made["c-failed"], ok=False)
    Source.objects.filter(pk=sources["e-late"].pk).update(last_good_at=clock.now() - 2 * AGE_MAX)
    wanted = ["d-never", "e-late", "c-failed", "b-fine", "a-empty"]
    page = master.get("/").content.decode()
    assert sorted(wanted, key=lambda slug: page.index(f"<code>{slug}</code>")) == wanted
    seen: list[str] = []
    while line := tenant_list_worst(now=clock.now(), after=seen[-1] if seen else "", limit=1):
        seen.append(line[0].key)
    assert [key.partition(":")[2] for key in seen] == wanted


def test_everybody_can_use_the_pages(house: House, master: Client) -> None:
    """Goal: keyboard and screen reader reach all of it; landmarks, headings, names of regions and columns, no colour alone."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    (house.folder(source) / "a").write_text("changed")
    pages = [master.get(page).content.decode() for page in PAGES]
    pages += [Client().get("/login/").content.decode(), restore_report_html(house.restore(backup))]
    for page in pages:
        assert page.count("<main") == page.count("<h1") == 1
        assert '<html lang="en"' in page and "<title>" in page
        assert all('scope="' in cell for cell in re.findall(r"<th[ >][^>]*", page))
        regions = re.findall(r'<div class="wide"[^>]*>', page)
        assert all('tabindex="0"' in region and "aria-label=" in region for region in regions)
        assert all('aria-hidden="true"' in icon for icon in re.findall(r"<svg[^>]*>", page))
        fields = re.findall(r'<input(?![^>]*type="hidden")[^>]*id="([^"]+)"', page)
        assert all(f'for="{field}"' in page for field in fields)
