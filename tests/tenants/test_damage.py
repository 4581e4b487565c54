"""A damaged backup: what is whole can be had, what is not is named, and nothing is touched before that is known."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenants import wiring
from tenants.models import Backup
from tenants.services.backups import backup_verify_start
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def _lose(house: House, backup: Backup, source: str, sort: str, name: str, *, flip: bool = False) -> None:
    """Remove, or damage, the packs that hold the content of one table or one top folder alone."""
    from engine.table_view import walk_table
    from engine.tree_view import TreeView

    with wiring.repository_open(backup.tenant) as repository:
        manifest = wiring.manifest_of(repository, backup)
        domain = repository.domain(encrypted=True)
        wanted, others = set[str](), set[str]()
        for node in manifest.document["sources"]:
            for table in node["tables"]:
                mine = (node["name"], table["name"]) == (source, name)
                walk_table(
                    domain.reader(),
                    table,
                    lambda chunk, is_meta, mine=mine: (
                        (  # type: ignore[misc]
                            (wanted if mine else others).add(domain.reader().locate(chunk).pack)
                            if not is_meta
                            else None
                        )
                        or True
                    ),
                )
            for tree in node["trees"]:
                view = TreeView(domain.reader(), tree)
                for entry in view.entries():
                    mine = node["name"] == source and entry.path.decode().startswith(f"{name}/")
                    for chunk in view.chunk_ids(entry):
                        (wanted if mine else others).add(domain.reader().locate(chunk).pack)
    packs = [path for path in (house.data / "store").rglob("data/*/*") if path.name in wanted - others]
    assert packs, "the part shares its packs with others"
    for path in packs:
        if flip:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.unlink()


class Shop:
    """Two tables and two folders, backed up one after the other so that each lies in packs of its own."""

    def __init__(self, house: House) -> None:
        self.house = house
        tenant = house.tenant()
        rng = random.Random(7)
        self.folder = house.folder(house.files(tenant))
        self.database = Path(house.database(tenant, rows=10).config["path"])
        house.backup(tenant)
        (self.folder / "logo").mkdir()
        (self.folder / "logo" / "big").write_bytes(rng.randbytes(400_000))
        house.backup(tenant, "incremental")
        (self.folder / "photos").mkdir()
        (self.folder / "photos" / "big").write_bytes(rng.randbytes(400_000))
        house.backup(tenant, "incremental")
        with sqlite3.connect(self.database) as connection:
            connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
            connection.executemany(
                "INSERT INTO notes VALUES (?, ?)", [(n, rng.randbytes(2_000).hex()) for n in range(100)]
            )
        self.backup = house.backup(tenant, "incremental")
        with sqlite3.connect(self.database) as connection:
            connection.execute("DELETE FROM users WHERE id < 5")
            connection.execute("DELETE FROM notes WHERE id < 50")
        (self.folder / "photos" / "big").write_text("changed")
        (self.folder / "logo" / "big").write_text("changed")

    def users(self) -> int:
        with sqlite3.connect(self.database) as connection:
            return int(connection.execute("SELECT count(*) FROM users").fetchone()[0])


@pytest.fixture
def shop(house: House) -> Shop:
    return Shop(house)


@pytest.mark.parametrize("flip", [False, True])
def test_a_lost_table_is_named_and_the_others_can_be_had(shop: Shop, flip: bool) -> None:
    """Goal: damage costs what it hit and no more; lose the packs of one table, plan, run, then restore the other."""
    _lose(shop.house, shop.backup, "db", "tables", "notes", flip=flip)
    plan = shop.house.plan(shop.backup, ok=False)
    assert plan.state == "failed"
    assert plan.error_code.startswith("damage.")
    assert "cannot be restored: db.notes (notes)" in plan.error
    assert "db.users" in plan.error
    assert f"restore run {shop.backup.pk} --mode selective --module" in plan.error_hint
    assert "--module db.users" in plan.error_hint
    assert "--module db.notes" not in plan.error_hint
    refused = shop.house.restore(shop.backup, ok=False)
    assert refused.state == "failed"
    assert "cannot be restored: db.notes" in refused.error
    assert shop.users() == 5
    rest = shop.house.restore(shop.backup, mode="selective", modules=("users", "logo"))
    assert rest.state == "succeeded"
    assert shop.users() == 10
    assert (shop.folder / "logo" / "big").stat().st_size == 400_000
    assert (shop.folder / "photos" / "big").read_text() == "changed"


@pytest.mark.parametrize("verified", [False, True])
def test_a_lost_file_is_named(shop: Shop, verified: bool) -> None:
    """Goal: files are named by path, before and after a verification took the pack out of use; lose one folder's packs."""
    _lose(shop.house, shop.backup, "assets", "trees", "photos")
    if verified:
        shop.house.run(backup_verify_start(shop.backup, deep=False, actor=ACTOR, here=True))
    refused = shop.house.restore(Backup.objects.get(pk=shop.backup.pk), ok=False)
    assert "cannot be restored: assets.photos (photos/big)" in refused.error
    rest: Any = shop.house.restore(shop.backup, mode="selective", modules=("logo", "users", "notes"))
    assert rest.state == "succeeded"
    assert (shop.folder / "logo" / "big").stat().st_size == 400_000


@pytest.mark.parametrize("sort", ["meta", "data"])
def test_a_lost_pack_of_the_parent_does_not_stop_the_next_backup(house: House, content: Content, sort: str) -> None:
    """Goal: what is there now is kept although the backup before is damaged; lose each of its packs, back up, restore."""
    tenant = house.tenant()
    files, database = house.files(tenant, a="one", b="two" * 5_000), house.database(tenant, rows=3_000)
    house.backup(tenant)
    (house.folder(files) / "c").write_text("three")
    with sqlite3.connect(house.folder(database)) as connection:
        connection.execute("UPDATE users SET name = 'new' WHERE id = 5")
    for pack in (house.data / "store").rglob(f"{sort}/*/*"):
        pack.unlink()
    again = house.backup(tenant, "incremental")
    if sort == "meta":
        assert again.state == "warned"
        assert [each["code"] for each in again.warnings] == ["backup.parent_damaged"]
        ended = house.run(backup_verify_start(again, deep=True, actor=ACTOR, here=True))
        assert ended.result["status"] == "passed"
    want, rows = (
        content(house.folder(files)),
        sqlite3.connect(house.folder(database)).execute("SELECT * FROM users").fetchall(),
    )
    if sort == "data":  # Found by a verification, as unchanged content is never read again.
        house.run(backup_verify_start(again, deep=False, actor=ACTOR, here=True), ok=False)
        again = house.backup(tenant, "full")
        assert house.run(backup_verify_start(again, deep=True, actor=ACTOR, here=True)).result["status"] == "passed"
    for path in house.folder(files).iterdir():
        path.unlink()
    with sqlite3.connect(house.folder(database)) as connection:
        connection.execute("DELETE FROM users")
    house.restore(again)
    assert content(house.folder(files)) == want
    assert sqlite3.connect(house.folder(database)).execute("SELECT * FROM users").fetchall() == rows
