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
