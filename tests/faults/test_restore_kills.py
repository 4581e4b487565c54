"""kill -9 between the steps of a restore over a folder and two databases: a retry ends it, and nothing is half done for good."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e.program import Program

POINTS = (
    "restore.image_stored:2",
    "restore.prepared",
    "restore.before_source:2",
    "restore.source_applied:1",
    "restore.source_applied:2",
    "restore.source_recorded:1",
)
LEASE_SECONDS = 2.2
"""What a killed process held is let go after two heartbeats of a second."""


class Killer:
    """Kills commands of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def killed(self, point: str, *args: object) -> str:
        """Run a command that dies at the point; the id of the operation that is lost by it."""
        died = self.program.raw(*args, "--here", "--json", LASTRO_KILL_AT=point)
        assert died.code == -9, f"{point} was not reached: {died.err}"
        time.sleep(LEASE_SECONDS)
        return str(self.program("operation", "reap")["lost"][0])


class Hotel(Killer):
    """One tenant with three sources, which a bad night changes again and again."""

    def __init__(self, program: Program, top: Path) -> None:
        super().__init__(program)
        self.top = top
        (top / "assets").mkdir(parents=True)
        (top / "assets" / "a").write_text("one")
        program.tenant("aurora", assets=top / "assets")
        for name in ("bookings", "crm"):
            with sqlite3.connect(top / f"{name}.db") as connection:
                connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
                connection.executemany("INSERT INTO users VALUES (?, ?)", [(n, f"u{n}") for n in range(50)])
            path = f"path={top}/{name}.db"
            program("source", "add", "aurora", name, "--kind", "sqlite", "--category", "database", "--set", path)

    def bad_night(self, number: int) -> dict[str, Any]:
        (self.top / "assets" / "a").write_text(f"changed {number}")
        for name in ("bookings", "crm"):
            with sqlite3.connect(self.top / f"{name}.db") as connection:
                connection.execute("UPDATE users SET name = ? WHERE id < 9", (f"night {number}",))
                connection.execute("DELETE FROM users WHERE id > 40")
        return self.now()

    def now(self) -> dict[str, Any]:
        found: dict[str, Any] = {"assets": (self.top / "assets" / "a").read_text()}
        for name in ("bookings", "crm"):
            with sqlite3.connect(self.top / f"{name}.db") as connection:
                found[name] = connection.execute("SELECT * FROM users ORDER BY id").fetchall()
        return found

    def nothing_left_beside(self) -> bool:
        return [path.name for path in self.top.iterdir() if "lastro" in path.name] == []


@pytest.fixture
def hotel(program: Program, tmp_path: Path) -> Hotel:
    return Hotel(program, tmp_path / "hotel")


def test_a_restore_of_several_sources_killed_anywhere_is_ended_by_a_retry(hotel: Hotel) -> None:
    """Goal: each target is old or new, never between; kill at every step, look, retry, undo the last one."""
    program = hotel.program
    wanted = hotel.now()
    backup = program.backup("aurora")["id"]
    for number, point in enumerate(POINTS):
        changed = hotel.bad_night(number)
        lost = hotel.killed(point, "restore", "run", backup, "--confirm", "aurora")
        found = hotel.now()
        assert all(found[name] in (changed[name], wanted[name]) for name in found), f"half done after {point}"
        program("operation", "retry", lost, "--here")
        assert hotel.now() == wanted, f"not ended after {point}"
        assert hotel.nothing_left_beside()
    last = program("restore", "list", "aurora")["data"][0]
    program("restore", "undo", last["id"], "--confirm", "aurora", "--here")
    assert hotel.now() == changed


@pytest.mark.parametrize("point", ["restore.before_taking_back", "restore.taken_back"])
def test_taking_back_killed_anywhere_is_ended_by_a_retry(hotel: Hotel, point: str) -> None:
    """Goal: all or nothing survives two crashes; kill between commits, make the plan stale, kill the taking back."""
    program = hotel.program
    backup = program.backup("aurora")["id"]
    changed = hotel.bad_night(1)
    plan = program("restore", "plan", backup)["plan"]
    lost = hotel.killed("restore.source_recorded:2", "restore", "run", plan, "--confirm", "aurora")
    with sqlite3.connect(hotel.top / "crm.db") as connection:
        connection.execute("UPDATE users SET name = 'newest' WHERE id = 3")
    before = {**changed, "crm": hotel.now()["crm"]}
    lost = hotel.killed(point, "operation", "retry", lost)
    program("operation", "retry", lost, "--here", code=10)
    assert hotel.now() == before
    shown = program("restore", "show", program("restore", "list", "aurora")["data"][0]["id"])
    assert (shown["state"], {each["state"] for each in shown["sources"]}) == ("failed", {"old"})


def test_a_plan_killed_at_its_end_can_be_made_again(hotel: Hotel) -> None:
    """Goal: a plan is whole or not there; kill it before it is recorded, retry, run it."""
    program = hotel.program
    wanted = hotel.now()
    backup = program.backup("aurora")["id"]
    hotel.bad_night(1)
    lost = hotel.killed("plan.previewed", "restore", "plan", backup)
    plan = program("restore", "plans", "aurora")["data"][0]
    assert (plan["state"], plan["error"]["code"]) == ("failed", "operation.lost")
    program("operation", "retry", lost, "--here")
    program.restore(plan["plan"], "aurora")
    assert hotel.now() == wanted


@pytest.mark.parametrize("point", ["pg.restore.applied", "pg.restore.committed"])
def test_a_killed_commit_on_postgresql_is_settled(
    program: Program, tmp_path: Path, postgres_database: str, point: str
) -> None:
    """Goal: the server is asked how a commit ended that nobody saw; kill around it, retry, undo."""

    def sql(text: str) -> list[Any]:
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            done = connection.execute(text)  # type: ignore[arg-type]
            return done.fetchall() if done.description else []

    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a").write_text("one")
    sql("CREATE TABLE rooms (id int PRIMARY KEY, tenant int, name text)")
    sql("INSERT INTO rooms SELECT g, g % 2, 'r' || g FROM generate_series(1, 100) g")
    program.tenant("aurora", assets=tmp_path / "assets")
    settings = [f"dsn={postgres_database}", "layout=rows", "tenant_column=tenant", "tenant_value=1"]
    more = [word for each in settings for word in ("--set", each)]
    program("source", "add", "aurora", "db", "--kind", "postgresql", "--category", "database", *more)
    wanted = sql("SELECT * FROM rooms ORDER BY id")
    backup = program.backup("aurora")["id"]
    sql("DELETE FROM rooms WHERE id % 3 = 0 AND tenant = 1; UPDATE rooms SET name = 'x' WHERE id < 9 AND tenant = 1")
    (tmp_path / "assets" / "a").write_text("changed")
    changed = sql("SELECT * FROM rooms ORDER BY id")
    lost = Killer(program).killed(point, "restore", "run", backup, "--confirm", "aurora")
    assert sql("SELECT * FROM rooms ORDER BY id") in (changed, wanted)
    program("operation", "retry", lost, "--here")
    assert sql("SELECT * FROM rooms ORDER BY id") == wanted
    assert (tmp_path / "assets" / "a").read_text() == "one"
    restore = program("restore", "list", "aurora")["data"][0]
    program("restore", "undo", restore["id"], "--confirm", "aurora", "--here")
    assert sql("SELECT * FROM rooms ORDER BY id") == changed
    assert (tmp_path / "assets" / "a").read_text() == "changed"
