"""Drills: the newest backup restored somewhere else, asked, timed, removed."""

import datetime
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from audit.models import Entry
from core import clock
from core.errors import Conflict, NotFound
from engine.errors import SourceUnreachable, UsageError
from operations.models import Operation, Schedule
from operations.scheduling.ticking import scheduler_tick
from operations.selectors import operation_get
from tenants import outputs
from tenants.diagnosis import diagnose
from tenants.models import Drill, Tenant, Validation
from tenants.services import drill_schedules, drills
from tenants.services.sources import source_update
from tests.tenants.conftest import ACTOR, House


def _drill(house: House, tenant: Tenant, *, ok: bool = True, **more: Any) -> dict[str, Any]:
    drill, operation = drills.drill_start(tenant, actor=ACTOR, here=True, **more)
    ended = house.run(operation, ok=ok)
    return {**outputs.drill(drills.drill_get(drill.pk)), "operation": ended}


def _left(house: House) -> list[Path]:
    folder = house.data / "drills"
    return list(folder.iterdir()) if folder.exists() else []


def test_a_drill_restores_checks_and_leaves_nothing(house: House) -> None:
    """Goal: proof that the newest backup comes back, without touching the tenant; run one over files and rows."""
    tenant = house.tenant()
    files, database = house.files(tenant), house.database(tenant)
    house.backup(tenant)
    live = (house.folder(files) / "a").read_bytes(), house.folder(database).read_bytes()
    found = _drill(house, tenant)
    assert found["status"] == "passed"
    assert {each["source"]: (each["rows"], each["files"]) for each in found["sources"]} == {
        "assets": (0, 2),
        "db": (100, 0),
    }
    names = {(check["source"], check["name"]) for check in found["checks"]}
    assert {
        ("assets", "checksum_verification"),
        ("db", "checksum_verification"),
        ("db", "schema_compatibility"),
    } <= names
    assert all(check["passed"] for check in found["checks"])
    assert _left(house) == []
    assert live == ((house.folder(files) / "a").read_bytes(), house.folder(database).read_bytes())
    validation = Validation.objects.get()
    assert (validation.drill_id, validation.status) == (found["id"], "passed")
    assert Entry.objects.filter(type="drill.passed", tenant=tenant.slug).count() == 1


def test_questions_are_asked_of_the_restored_copy(house: House) -> None:
    """Goal: the operator's own proof; change the live rows after the backup, so that only the copy fits."""
    tenant = house.tenant()
    source = house.database(tenant)
    drills.check_add(
        source,
        "guests",
        kind="sql",
        ask="SELECT count(*), max(name) FROM users;"[:-1],
        expected="100\tu99",
        actor=ACTOR,
    )
    drills.check_add(source, "null", kind="sql", ask="SELECT NULL", expected="\\N", actor=ACTOR)
    house.backup(tenant)
    with sqlite3.connect(house.folder(source)) as connection:
        connection.execute("DELETE FROM users")
    found = _drill(house, tenant)
    own = {check["name"]: (check["passed"], check["actual"]) for check in found["checks"] if check.get("own")}
    assert own == {"guests": (True, "100\tu99"), "null": (True, "\\N")}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ("SELECT count(*) FROM users", "100"),
        ("SELECT * FROM nowhere", "usage.invalid"),
        ("DELETE FROM users", "usage.invalid"),
        ("SELECT 1; SELECT 2", "usage.invalid"),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r", "target.failed"),
    ],
)
def test_a_wrong_answer_fails_the_drill(house: House, ask: str, said: str) -> None:
    """Goal: a drill that does not prove what it must is a failure that everybody sees; ask what cannot be right."""
    tenant = house.tenant()
    source = house.database(tenant)
    drills.check_add(source, "odd", kind="sql", ask=ask, expected="7", timeout_seconds=1, actor=ACTOR, tried=False)
    house.backup(tenant)
    found = _drill(house, tenant, ok=False)
    assert (found["status"], found["operation"].state) == ("failed", "failed")
    assert found["operation"].error["code"] == "drill.failed"
    assert found["operation"].error["exit"] == 7
    (check,) = [check for check in found["checks"] if not check["passed"]]
    assert (check["name"], check["actual"]) == ("odd", said)
    assert Entry.objects.get(type="drill.failed").level == "error"
    assert _left(house) == []


def test_a_command_looks_at_the_restored_files(house: House, settings: Any) -> None:
    """Goal: the application's own tests can run against the copy; let a command compare a file."""
    listed = house.data / "commands.json"
    listed.write_text(
        json.dumps(
            {"look": ["/bin/sh", "-c", 'grep -q one "$HOOK_PATH/a"'], "no": ["/bin/sh", "-c", "echo bad; exit 9"]}
        )
    )
    listed.chmod(0o600)
    settings.LASTRO_HOOK_COMMANDS = str(listed)
    tenant = house.tenant()
    source = house.files(tenant)
    drills.check_add(source, "look", kind="command", ask="look", actor=ACTOR)
    house.backup(tenant)
    assert _drill(house, tenant)["status"] == "passed"
    drills.check_add(source, "no", kind="command", ask="no", actor=ACTOR)
    found = _drill(house, tenant, ok=False)
    (check,) = [check for check in found["checks"] if not check["passed"]]
    assert (check["name"], check["actual"], check["detail"].strip()) == ("no", "9", "bad")


def test_what_a_killed_drill_left_is_removed_by_the_next(house: House) -> None:
    """Goal: no copy of a tenant's data lies around; leave the targets of a drill that was lost."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    lost = Drill.objects.create(tenant=tenant, backup=backup, sources=["assets"], created_by=ACTOR)
    left = house.data / "drills" / drills.scratch_name(lost, 0)
    left.mkdir(parents=True)
    (left / "secret").write_text("x")
    _drill(house, tenant)
    assert not left.exists()
    lost.refresh_from_db()
    assert lost.cleared


def test_the_evidence_is_sealed(house: House) -> None:
    """Goal: answers are a tenant's data; look for one in the catalogue's row."""
    tenant = house.tenant()
    source = house.database(tenant)
    drills.check_add(source, "who", kind="sql", ask="SELECT name FROM users WHERE id = 42", expected="x", actor=ACTOR)
    house.backup(tenant)
    found = _drill(house, tenant, ok=False)
    assert [check["actual"] for check in found["checks"] if check["name"] == "who"] == ["u42"]
    row = Drill.objects.get()
    assert b"u42" not in bytes(row.evidence)
    assert not any("u42" in json.dumps(entry.data) + entry.message for entry in Entry.objects.all())
    assert "u42" not in json.dumps([each.checks for each in Validation.objects.all()])


def test_a_damaged_backup_fails_its_drill(house: House) -> None:
    """Goal: a drill finds what nobody looked at; flip a byte in each pack."""
    tenant = house.tenant()
    house.files(tenant, **{f"f{n}": os.urandom(2000).hex() for n in range(20)})
    house.backup(tenant)
    for pack in (house.data / "store").rglob("data/*/*"):
        blob = bytearray(pack.read_bytes())
        blob[300] ^= 1  # within the first frame: behind the content there is padding
        pack.chmod(0o600)
        pack.write_bytes(bytes(blob))
    found = _drill(house, tenant, ok=False)
    assert (found["status"], found["operation"].error["exit"]) == ("failed", 7)
    assert _left(house) == []


def test_what_cannot_be_rehearsed_is_refused(house: House) -> None:
    """Goal: clear errors with a next step; no backup, another tenant's, an unknown source, bad checks."""
    tenant, other = house.tenant(), house.tenant("boreal")
    files, database = house.files(tenant), house.database(tenant)
    house.files(other)
    with pytest.raises(NotFound, match="no good backup"):
        drills.drill_start(tenant, actor=ACTOR)
    house.backup(tenant)
    foreign = house.backup(other)
    with pytest.raises(UsageError, match="another tenant"):
        drills.drill_start(tenant, actor=ACTOR, backup=foreign)
    with pytest.raises(UsageError, match="does not hold"):
        drills.drill_start(tenant, actor=ACTOR, sources=["nothing"])
    for bad in (
        {"ask": ""},
        {"ask": "x" * 30_000},
        {"ask": "SELECT 1", "timeout_seconds": 0},
        {"kind": "command", "ask": "rm"},
    ):
        with pytest.raises(UsageError):
            drills.check_add(database, "bad", **{"kind": "sql", "actor": ACTOR, **bad})
    with pytest.raises(UsageError, match="answers no SQL"):
        drills.check_add(files, "bad", kind="sql", ask="SELECT 1", actor=ACTOR)
    drills.check_add(database, "one", kind="sql", ask="SELECT 1", expected="1", actor=ACTOR)
    with pytest.raises(Conflict):
        drills.check_add(database, "ONE", kind="sql", ask="SELECT 1", expected="1", actor=ACTOR)
    drills.check_remove(database, "one", actor=ACTOR)
    with pytest.raises(NotFound):
        drills.check_remove(database, "one", actor=ACTOR)


def test_doctor_says_when_the_last_drill_failed(house: House) -> None:
    """Goal: a failed drill is not overlooked, and a later good one settles it."""
    tenant = house.tenant()
    source = house.database(tenant)
    house.backup(tenant)
    drills.check_add(source, "odd", kind="sql", ask="SELECT 1", expected="2", actor=ACTOR)
    _drill(house, tenant, ok=False)
    (sign,) = [sign for sign in diagnose() if sign.name == "drills"]
    assert (sign.status, sign.figures) == ("critical", {"tenants": 1, "failed": 1}) and "aurora" in sign.message
    drills.check_remove(source, "odd", actor=ACTOR)
    _drill(house, tenant)
    (sign,) = [sign for sign in diagnose() if sign.name == "drills"]
    assert sign.status == "ok"


def test_a_drill_comes_by_the_clock(house: House) -> None:
    """Goal: nobody has to think of it; set a schedule, tick when it is due, twice."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    first = drill_schedules.drill_schedule_put(tenant, "0 2 * * 0", actor=ACTOR)
    assert (first.weekday(), first.hour, first.minute) == (6, 2, 0)
    drill_schedules.drill_schedule_put(tenant, "30 3 * * *", actor=ACTOR)
    (row,) = Schedule.objects.filter(work="drill")
    assert (row.cron, row.selection) == ("30 3 * * *", {"tenants": ["aurora"]})
    assert [each["tenant"] for each in drill_schedules.drill_schedules()] == ["aurora"]
    with clock.held(row.next_at) as advance:
        assert scheduler_tick().released == 1
        advance(datetime.timedelta(days=1))
        assert scheduler_tick().released == 0, "one that is still to be done is not doubled"
    (operation,) = Operation.objects.filter(kind="drill")
    house.run(operation_get(operation.pk))
    assert Drill.objects.get().state == "passed"
    assert drill_schedules.drill_schedule_drop(tenant, actor=ACTOR)
    assert not drill_schedules.drill_schedule_drop(tenant, actor=ACTOR)
    for bad in ("", "x", "* * * *", "* * * * * *", "61 * * * *"):
        with pytest.raises(UsageError):
            drill_schedules.drill_schedule_put(tenant, bad, actor=ACTOR)


def test_a_question_is_tried_when_it_is_added(house: House) -> None:
    """Goal: a typing error shows at once, not in the drill of Sunday night; ask nonsense, something wrong, something right."""
    tenant = house.tenant()
    source = house.database(tenant, rows=3)
    for ask in ("SELECT count(*) FROM usrs", "DELETE FROM users", "SELECT 1; SELECT 2"):
        with pytest.raises(UsageError, match="cannot be asked") as refused:
            drills.check_add(source, "odd", kind="sql", ask=ask, expected="1", actor=ACTOR)
        assert refused.value.hint.endswith("--no-try saves it untried")
    assert drills.checks_of(tenant) == []
    _, answer = drills.check_add(
        source, "odd", kind="sql", ask="SELECT count(*) = 3 FROM users", expected="t", actor=ACTOR
    )
    assert answer == "1"
    _, answer = drills.check_add(
        source, "later", kind="sql", ask="SELECT nothing", expected="", actor=ACTOR, tried=False
    )
    assert answer is None
    os.rename(source.config["path"], house.data / "away")
    with pytest.raises(SourceUnreachable):
        drills.check_add(source, "gone", kind="sql", ask="SELECT 1", expected="1", actor=ACTOR)
    os.rename(house.data / "away", source.config["path"])
    shared, _ = source_update(
        source, values={"layout": "rows", "tenant_column": "name", "tenant_value": "u1"}, actor=ACTOR
    )
    _, answer = drills.check_add(shared, "all", kind="sql", ask="SELECT count(*) FROM users", expected="1", actor=ACTOR)
    assert answer is None
    with pytest.raises(UsageError, match="no such table"):
        drills.check_add(shared, "none", kind="sql", ask="SELECT count(*) FROM usrs", expected="1", actor=ACTOR)
