"""Lists and single things, as programs read them."""

from tests.api.conftest import Desk


def test_backups_are_listed_and_read(desk: Desk) -> None:
    """Goal: what the command line shows, the API shows; ask for a page and for each thing on it."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    ask = desk.asker("read")
    page = ask.get("/api/v1/backups").json()
    assert [each["id"] for each in page["data"]] == [backup.pk]
    assert page["page"] == {"next": None, "prev": None}
    assert ask.get(f"/api/v1/backups/{backup.pk}").json()["checksums"] == backup.checksums
    old = ask.get("/api/admin/backups").json()["backups"][0]
    assert (old["status"], old["location"]) == ("succeeded", ["local"])
    status = ask.get("/api/admin/backups/status").json()
    assert status["tenants"][0]["backup"]["id"] == backup.pk
