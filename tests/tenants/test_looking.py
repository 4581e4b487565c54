"""`backup diff` and `backup browse`: what two backups differ in, and what lies in one."""

import csv
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from audit.models import Entry
from core.errors import NotFound
from engine.errors import DamageError, TargetError, TargetOccupied, UsageError
from tenants.models import Backup
from tenants.services.browsing import backup_browse
from tenants.services.comparing import backups_compare
from tenants.services.erasures import erasure_add
from tests.tenants.conftest import ACTOR, House


def _diff(old: Backup, new: Backup, **more: Any) -> dict[str, dict[str, Any]]:
    return {each["source"]: each for each in backups_compare(old, new, actor=ACTOR, **more)["sources"]}


def test_a_diff_counts_rows_files_and_schema(house: House) -> None:
    """Goal: what changed between two nights, exactly; change rows, files and a column in between."""
    tenant = house.tenant()
    files, database = house.files(tenant, a="one", b="two", c="three"), house.database(tenant)
    old = house.backup(tenant)
    folder = house.folder(files)
    (folder / "a").write_text("ONE!")
    (folder / "b").unlink()
    (folder / "d").write_text("four")
    with sqlite3.connect(house.folder(database)) as connection:
        connection.execute("UPDATE users SET name = 'new' WHERE id = 5")
        connection.execute("DELETE FROM users WHERE id IN (6, 7)")
        connection.execute("INSERT INTO users VALUES (200, 'x')")
        connection.execute("CREATE TABLE rooms (id INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO rooms VALUES (1), (2)")
    new = house.backup(tenant)
    found = _diff(old, new)
    assert {key: found["assets"]["files"][key] for key in ("added", "removed", "changed")} == {
        "added": 1, "removed": 1, "changed": 1,
    }  # fmt: skip
    assert {each["path"]: each["change"] for each in found["assets"]["files"]["samples"]} == {
        "a": "changed", "b": "removed", "d": "added",
    }  # fmt: skip
    tables = {each["name"]: each for each in found["db"]["tables"]}
    users = tables["users"]
    assert [users[key] for key in ("insert", "update", "delete", "unchanged")] == [1, 1, 2, 97]
    assert {"change": "update", "before": {"id": "5", "name": "u5"}, "after": {"id": "5", "name": "new"},
            "fields": ["name"]} in users["samples"]  # fmt: skip
    assert (tables["rooms"]["change"], tables["rooms"]["insert"]) == ("added", 2)
    (schema,) = found["db"]["schema"]
    assert any("CREATE TABLE rooms" in line for line in schema["lines"])
    assert all(not each["samples"] for each in _diff(new, new)["db"]["tables"])
    assert Entry.objects.filter(type="backup.compared").count() == 2


def test_a_diff_knows_added_and_removed_columns(house: House) -> None:
    """Goal: a migration does not make every row look changed; add a column."""
    tenant = house.tenant()
    database = house.database(tenant)
    old = house.backup(tenant)
    with sqlite3.connect(house.folder(database)) as connection:
        connection.execute("ALTER TABLE users ADD COLUMN email TEXT")
        connection.execute("UPDATE users SET name = 'new', email = 'e' WHERE id = 1")
    (users,) = _diff(old, house.backup(tenant))["db"]["tables"]
    assert [(each["name"], each["before"]) for each in users["columns"]] == [("email", None)]
    assert [users[key] for key in ("insert", "update", "delete")] == [0, 1, 0]


def test_a_diff_refuses_what_cannot_be_compared(house: House) -> None:
    """Goal: tenants are never mixed; two tenants' backups, an unknown source."""
    one, two = house.tenant(), house.tenant("boreal")
    house.files(one)
    house.files(two)
    with pytest.raises(UsageError, match="two tenants"):
        backups_compare(house.backup(one), house.backup(two), actor=ACTOR)
    backup = house.backup(one)
    with pytest.raises(NotFound, match="neither backup holds"):
        backups_compare(backup, backup, actor=ACTOR, source="nothing")


def test_browsing_lists_and_fetches_files(house: House, tmp_path: Path) -> None:
    """Goal: one file without the rest, byte for byte; list, page, fetch, in odd names too."""
    tenant = house.tenant()
    source = house.files(tenant, a="one")
    folder = house.folder(source)
    (folder / "sub").mkdir()
    for n in range(25):
        (folder / "sub" / f"f{n:02}").write_bytes(os.urandom(100))
    odd = os.path.join(os.fsencode(folder), b"sub", b"\xff\\odd\n")
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    backup = house.backup(tenant)
    assert [each["name"] for each in backup_browse(backup, actor=ACTOR, source="assets")["entries"]] == ["a", "sub"]
    names, after = [], None
    while True:
        page = backup_browse(backup, "sub", actor=ACTOR, after=after, limit=10)
        names += [each["name"] for each in page["entries"]]
        after = page["next"]
        if after is None:
            break
    assert names == [f"f{n:02}" for n in range(25)] + [r"\xff\\odd" + "\n"]
    target = tmp_path / "fetched"
    found = backup_browse(backup, "/sub/f07", actor=ACTOR, output=target)
    assert target.read_bytes() == (folder / "sub" / "f07").read_bytes()
    assert (found["type"], found["size"]) == ("file", 100)
    backup_browse(backup, f"sub/{names[-1]}", actor=ACTOR, output=tmp_path / "odd")
    assert (tmp_path / "odd").read_bytes() == b"odd"
    with pytest.raises(TargetOccupied):
        backup_browse(backup, "a", actor=ACTOR, output=target)
    with pytest.raises(UsageError, match="is a folder"):
        backup_browse(backup, "sub", actor=ACTOR, output=tmp_path / "folder")
    with pytest.raises(UsageError, match="no 'sub/f99'"):
        backup_browse(backup, "sub/f99", actor=ACTOR)
    with pytest.raises(TargetError, match="cannot write"):
        backup_browse(backup, "a", actor=ACTOR, output=tmp_path / "no" / "folder")
    assert sorted(each.name for each in tmp_path.glob("fet*")) == ["fetched"]


def test_browsing_pages_and_fetches_tables(house: House, tmp_path: Path) -> None:
    """Goal: one table without the rest, exactly as COPY text, and safely as CSV; put formulas into cells."""
    tenant = house.tenant()
    source = house.database(tenant, rows=250)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute(
            "INSERT INTO users VALUES (1000, '=HYPERLINK(1)'), (1001, NULL), (1002, 'a\tb\n'), (1003, '-5.5')"
        )
    backup = house.backup(tenant)
    (contents,) = backup_browse(backup, actor=ACTOR)["sources"]
    assert [(each["name"], each["rows"]) for each in contents["tables"]] == [("users", 254)]
    rows: list[dict[str, Any]] = []
    after = None
    while True:
        page = backup_browse(backup, "users", actor=ACTOR, after=after, limit=100)
        rows += page["rows"]
        after = page["next"]
        if after is None:
            break
    assert [row["id"] for row in rows] == [*map(str, range(250)), "1000", "1001", "1002", "1003"]
    assert rows[-3]["name"] is None and rows[-2]["name"] == "a\tb\n"
    assert backup_browse(backup, "users", actor=ACTOR, output=tmp_path / "users.copy")["rows_written"] == 254
    lines = (tmp_path / "users.copy").read_bytes().splitlines()
    assert lines[-3:] == [b"1001\t\\N", b"1002\t'a\\tb\\n", b"1003\t'-5.5"]
    backup_browse(backup, "users", actor=ACTOR, output=tmp_path / "users.csv")
    with open(tmp_path / "users.csv", newline="") as handle:
        cells = list(csv.reader(handle))
    assert cells[0] == ["id", "name"]
    assert cells[-4:] == [["1000", "'=HYPERLINK(1)"], ["1001", ""], ["1002", "a\tb\n"], ["1003", "-5.5"]]
    with pytest.raises(NotFound) as error:
        backup_browse(backup, "user", actor=ACTOR)
    assert error.value.hint == "did you mean users?"


def test_browsing_shows_nobody_who_was_erased(house: House) -> None:
    """Goal: the ledger holds for a look, too."""
    tenant = house.tenant()
    source = house.database(tenant)
    backup = house.backup(tenant)
    erasure_add(source, "users", ["7"], actor=ACTOR)
    page = backup_browse(backup, "users", actor=ACTOR, limit=1000)
    assert len(page["rows"]) == 99 and not any(row["id"] == "7" for row in page["rows"])


def test_a_damaged_file_is_not_given_out(house: House, tmp_path: Path) -> None:
    """Goal: exact bytes or an error, and no half file left; flip a byte of each pack."""
    tenant = house.tenant()
    house.files(tenant, a=os.urandom(40_000).hex())
    backup = house.backup(tenant)
    for pack in (house.data / "store").rglob("data/*/*"):
        blob = bytearray(pack.read_bytes())
        blob[1000] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(bytes(blob))
    with pytest.raises(DamageError):
        backup_browse(backup, "a", actor=ACTOR, output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
