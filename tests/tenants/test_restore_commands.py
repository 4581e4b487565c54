"""The verbs of `restore` as they are typed: what they print, and with which exit code they end."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class

from tests.tenants.conftest import House

Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def lastro(house: House, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Run a command in this process; its exit code, what it printed (parsed with --json), and what it said beside that."""

    def run(noun: str, *argv: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = load_command_class(get_commands()[noun], noun).run([*argv, "--no-input"], noun=noun)
        said = capsys.readouterr()
        return code, json.loads(said.out) if "--json" in argv else said.out, said.err

    return run


def test_a_stale_plan_is_made_again_and_a_part_of_it_undone(
    house: House, lastro: Callable[..., tuple[int, Any, str]]
) -> None:
    """Goal: every step names the next one in words that can be typed; follow them through a stale plan and two undos."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    database = house.folder(house.database(tenant, rows=3))
    backup = house.backup(tenant)
    (folder / "a").write_text("changed")
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM users")
    _, plan, _ = lastro("restore", "plan", backup.pk, "--json")
    (folder / "b").write_text("changed later")
    code, _, told = lastro("restore", "run", plan["plan"], "--confirm", "aurora", "--here")
    assert code == 10
    hint = told.rpartition("see what would be done now: ")[2].split()
    assert hint[:2] == ["restore", "plan"] and len(hint) == 3
    code, refused, _ = lastro(*hint, "--mode", "merge", "--json")
    assert (code, "--mode does not go with" in refused["error"]["detail"]) == (2, True)
    code, again, _ = lastro(*hint, "--json")
    assert (code, again["files"]["replaced"], again["tables"][0]["insert"]) == (0, 2, 3)
    code, restored, _ = lastro("restore", "run", again["plan"], "--confirm", "aurora", "--here", "--json")
    assert (code, restored["undoable"], restored["undone"]) == (0, ["assets", "db"], {})
    undo = ("restore", "undo", restored["id"])
    code, shown, _ = lastro(*undo, "--source", "db", "--plan")
    assert (code, "still to be undone afterwards: assets" in shown) == (0, True)
    assert lastro(*undo, "--source", "none", "--confirm", "aurora")[0] == 4
    code, done, _ = lastro(*undo, "--source", "db", "--confirm", "aurora", "--here")
    assert code == 0
    assert f"still as {restored['id']} made them: assets" in done
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)
    assert (folder / "a").read_text() == "one"
    code, rest, _ = lastro(*undo, "--confirm", "aurora", "--here", "--json")
    assert (code, [each["name"] for each in rest["sources"]], rest["left_of_undone"]) == (0, ["assets"], [])
    assert (folder / "a").read_text() == "changed"
    assert lastro(*undo, "--confirm", "aurora")[0] == 1


def test_lost_metadata_is_told_and_nothing_touched(
    house: House, lastro: Callable[..., tuple[int, Any, str]], content: Content
) -> None:
    """Goal: whoever meets a loss at night learns what is lost, what is safe, and where to go; lose a backup's metadata."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    database = house.folder(house.database(tenant, rows=3))
    first = house.backup(tenant)
    lost = set((house.data / "store").rglob("meta/*/*"))
    (folder / "a").write_text("changed since")
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM users WHERE id = 1")
    before, rows = content(folder), database.read_bytes()
    for pack in lost:
        pack.unlink()
    code, _, told = lastro("restore", "plan", first.pk)
    assert code == 7
    assert "cannot be restored: assets.." in told and "db.users" in told and "nothing is whole" in told
    assert "no other backup of aurora is known to be good" in told
    code, said, _ = lastro("restore", "run", first.pk, "--confirm", "aurora", "--here", "--json")
    assert (code, said["error"]["code"]) == (7, "damage.chunk_missing")
    assert {each["state"] for each in said["sources"]} == {"old"}
    assert (content(folder), database.read_bytes()) == (before, rows)
    code, printed, _ = lastro("backup", "verify", first.pk, "--here")
    assert (code, printed.splitlines()[-1]) == (7, f"what is still whole of it is said by: restore plan {first.pk}")
    code, made, _ = lastro("backup", "create", "aurora", "--type", "full", "--here", "--json")
    assert code in (0, 3)
    code, _, told = lastro("restore", "plan", first.pk)
    assert (code, f"backup verify {made['id']} --deep --here" in told) == (7, True)
    assert lastro("backup", "verify", made["id"], "--deep", "--here")[0] == 0
