"""Hooks around operations, against a real HTTP server and real commands."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from audit.models import Entry
from core.errors import Conflict, NotFound
from core.models import Fact
from core.rootkey import root_key
from core.tenancy import tenancy_get, tenants_known_by
from engine.errors import UsageError
from operations import services
from operations.alerting.channel_settings import channel_add
from operations.hook_actions import header_lines
from operations.hook_runs import hook_runs, output_of
from operations.hook_settings import hook_add, hook_enable, hook_list, hook_remove, hook_update
from operations.hooks import hook_test
from operations.models import Hook, HookRun, Operation
from operations.running import operation_run
from tests.apps.work import handlers  # noqa: F401 - registers the made-up kinds

pytestmark = pytest.mark.django_db(transaction=True)


class _TwoTenants:
    """Knows two tenants, whose keys are the root key."""

    def known(self, slugs: Sequence[str]) -> dict[str, bool]:
        return {slug: True for slug in slugs if slug in ("aurora", "boreal")}

    def stores(self, slugs: Sequence[str]) -> Mapping[str, str]:
        return {}

    def seal(self, slug: str, context: str, document: Mapping[str, Any]) -> bytes:
        return root_key().seal(json.dumps(document).encode(), f"{slug}:{context}")

    def open(self, slug: str, context: str, blob: bytes) -> Any:
        return json.loads(root_key().open(blob, f"{slug}:{context}"))


@pytest.fixture(autouse=True)
def tenancy() -> Iterator[None]:
    real = tenancy_get()
    tenants_known_by(_TwoTenants())
    root_key.cache_clear()
    yield
    tenants_known_by(real)
    root_key.cache_clear()


class _Application(ThreadingHTTPServer):
    """Remembers what it was asked; answers with the next of `answers`, 200 when there is none left."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.answers: list[tuple[int, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Application

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = {"method": self.command, "path": self.path, "headers": dict(self.headers)}
        self.server.asked.append({**asked, "body": json.loads(body) if body else None})
        status, text = self.server.answers.pop(0) if self.server.answers else (200, b"fine")
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST  # noqa: N815 - named by http.server

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def application() -> Iterator[_Application]:
    server = _Application()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def commands(tmp_path: Path, settings: Settings) -> Path:
    """An allow-list with commands that succeed, fail, hang and talk."""
    listed = {
        "note": ["/bin/sh", "-c", f'echo "$0 $HOOK_STATE" >> {tmp_path}/notes', "{event}-{tenant}-{kind}"],
        "fail": ["/bin/sh", "-c", "echo cannot stop the application >&2; exit 3"],
        "hang": ["/bin/sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child; wait"],
        "talk": ["/bin/sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"],
        "gone": ["/no/such/program"],
    }
    path = tmp_path / "commands.json"
    path.write_text(json.dumps(listed))
    path.chmod(0o600)
    settings.LASTRO_HOOK_COMMANDS = str(path)
    return tmp_path


def _hook(name: str, *, event: str = "before", kind: str = "command", tenant: str = "", **more: Any) -> Hook:
    values = {key: more.pop(key) for key in ("url", "method", "headers", "until_ok", "command") if key in more}
    return hook_add(
        name, event=event, operation_kind="test.hooked", kind=kind, values=values, actor="ana", tenant=tenant, **more
    )


def _run(*, tenant: str = "aurora", how: str = "well") -> Operation:
    asked = services.operation_enqueue(
        kind="test.hooked", tenant=tenant, params={"how": how}, actor="ana", subject_id="bkp_1"
    )
    return operation_run(asked.pk)


def _worked(operation: Operation) -> bool:
    return Fact.objects.filter(name=f"worked:{operation.pk}").exists()


def test_hooks_run_around_the_work_in_order(commands: Path) -> None:
    """Goal: maintenance on, work, maintenance off; write down the order of two tenants' hooks."""
    _hook("second", command="note", position=2)
    _hook("first", command="note", position=1)
    _hook("off", event="after", command="note")
    _hook("others", command="note", tenant="boreal")
    assert _run().state == "succeeded"
    assert (commands / "notes").read_text().splitlines() == [
        "before-aurora-test.hooked ",
        "before-aurora-test.hooked ",
        "after-aurora-test.hooked succeeded",
    ]
    ran = HookRun.objects.order_by("id").values_list("hook_name", "passed", "status")
    assert list(ran) == [("first", True, "0"), ("second", True, "0"), ("off", True, "0")]


def test_a_failing_before_hook_stops_the_work_and_the_after_hooks_still_run(commands: Path) -> None:
    """Goal: nothing is restored under a running application, and it is never left in maintenance."""
    _hook("on", command="note", position=1)
    _hook("stop", command="fail", position=2)
    _hook("never", command="note", position=3)
    _hook("off", event="after", command="note")
    operation = _run()
    assert operation.state == "failed"
    assert operation.error["code"] == "hook.failed"
    assert "hook stop failed (3); the test.hooked was not begun" in operation.error["detail"]
    assert f"hook runs --operation {operation.pk}" in operation.error["hint"]
    assert not _worked(operation)
    assert (commands / "notes").read_text().splitlines()[-1] == "after-aurora-test.hooked failed"
    assert list(HookRun.objects.order_by("id").values_list("hook_name", flat=True)) == ["on", "stop", "off"]


def test_a_failing_hook_may_only_warn(commands: Path) -> None:
    """Goal: the work is done all the same and the operation says what went wrong."""
    _hook("stop", command="fail", on_failure="warn")
    operation = _run()
    assert (operation.state, _worked(operation)) == ("warned", True)
    assert operation.warnings[0]["code"] == "hook.failed"


def test_a_failing_after_hook_warns_and_keeps_later_ones_from_running(commands: Path) -> None:
    """Goal: an application that did not pass its own tests is not opened to users."""
    _hook("its own tests", event="after", command="fail", position=1)
    _hook("open", event="after", command="note", position=2)
    operation = _run()
    assert (operation.state, _worked(operation)) == ("warned", True)
    assert not (commands / "notes").exists()


@pytest.mark.parametrize(("how", "state", "told"), [("fail", "failed", "failed"), ("stop", "cancelled", "cancelled")])
def test_after_hooks_are_told_how_it_ended(commands: Path, how: str, state: str, told: str) -> None:
    """Goal: an after-hook can tell success from failure; end the work badly."""
    _hook("off", event="after", command="note")
    assert _run(how=how).state == state
    assert (commands / "notes").read_text() == f"after-aurora-test.hooked {told}\n"


def test_a_command_that_hangs_is_ended_with_its_children(commands: Path) -> None:
    """Goal: a time limit is one; let a child of the command sleep for ten minutes."""
    _hook("hang", command="hang", timeout_seconds=1)
    operation = _run()
    assert operation.error["code"] == "hook.failed"
    assert HookRun.objects.get().status == "timed out"
    child = int((commands / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def test_output_is_bounded_and_a_missing_program_is_named(commands: Path) -> None:
    """Goal: five megabytes of output cost no memory, and a typing error in the list is understood."""
    _hook("talk", command="talk")
    _hook("gone", command="gone", on_failure="warn", position=1)
    assert _run().state == "warned"
    talked, gone = HookRun.objects.order_by("id")
    assert (talked.passed, len(output_of(talked) or "")) == (True, 16 << 10)
    assert "No such file" in (output_of(gone) or "")


def test_a_call_says_what_it_is_about(application: _Application) -> None:
    """Goal: the application knows who is concerned, and the token reaches it but nobody else."""
    row = _hook(
        "on", kind="http", url=f"{application.url}/maintenance?x=1", headers="Authorization: Bearer s3cret\nX-A: b"
    )
    operation = _run()
    assert operation.state == "succeeded"
    (asked,) = application.asked
    assert (asked["method"], asked["path"]) == ("POST", "/maintenance?x=1")
    assert asked["headers"]["Authorization"] == "Bearer s3cret"
    assert asked["headers"]["Host"] == f"127.0.0.1:{application.server_port}"
    assert asked["body"] == {
        "event": "before", "kind": "test.hooked", "tenant": "aurora", "operation": operation.pk, "subject": "bkp_1", "state": "",
    }  # fmt: skip
    row.refresh_from_db()
    assert "s3cret" not in json.dumps([row.config, row.sealed])
    assert not any("s3cret" in json.dumps(entry.data) + entry.message for entry in Entry.objects.all())


def test_a_health_address_is_asked_until_it_answers(application: _Application) -> None:
    """Goal: an application that starts slowly is waited for; refuse it twice."""
    application.answers = [(503, b"starting"), (503, b"starting")]
    _hook("health", kind="http", url=f"{application.url}/health", method="GET", until_ok="yes", timeout_seconds=20)
    assert _run().state == "succeeded"
    assert [asked["method"] for asked in application.asked] == ["GET"] * 3


def test_answers_that_are_no_success(application: _Application) -> None:
    """Goal: errors and redirects fail, and are not followed; a dead address fails at once."""
    application.answers = [(500, b"no\x00\x1b[31m")]
    _hook("a", kind="http", url=application.url, on_failure="warn")
    application_gone = application.url.rpartition(":")[0] + ":1"
    _hook("c", kind="http", url=application_gone, on_failure="warn", position=2)
    assert _run().state == "warned"
    application.answers = [(302, b"")]
    assert not hook_test("a", actor="ana").run.passed
    assert len(application.asked) == 2
    runs = list(HookRun.objects.order_by("id"))
    assert [(run.hook_name, run.status) for run in runs] == [("a", "500"), ("c", "failed"), ("a", "302")]
    shown = output_of(runs[0]) or ""
    assert shown and not {"\x1b", "\x00"} & set(shown)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://0.0.0.0/", "http://[::ffff:169.254.169.254]/"]
)
def test_addresses_that_hand_out_credentials_are_refused(url: str) -> None:
    """Goal: a hook is no way to a cloud's credentials, and no restore waits to find out; save the addresses themselves."""
    with pytest.raises(UsageError, match="must call"):
        _hook("metadata", kind="http", url=url, timeout_seconds=2)


@pytest.mark.parametrize("url", ["http://2852039166/latest", "http://0/"])
def test_names_that_lead_to_credentials_are_refused(url: str) -> None:
    """Goal: what counts is where a name leads when it is called; spell addresses in ways that only a resolver reads."""
    _hook("metadata", kind="http", url=url, timeout_seconds=2)
    said = hook_test("metadata", actor="ana")
    assert (said.run.passed, said.run.status) == (False, "refused")
    assert "must call" in said.reason


def test_hooks_that_cannot_be_right_are_refused(commands: Path, settings: Settings) -> None:
    """Goal: a wrong setting is found when it is saved."""
    for values in ({"url": "ftp://x"}, {"url": "http://me:pw@x/"}, {"url": "x"}, {"url": "http://x y/"}):
        with pytest.raises(UsageError):
            _hook("bad", kind="http", **values)
    with pytest.raises(UsageError, match="header"):
        _hook("bad", kind="http", url="http://x/", headers="no colon")
    with pytest.raises(UsageError, match="not in the allow-list"):
        _hook("bad", command="rm -rf /")
    with pytest.raises(UsageError, match="no hooks around"):
        hook_add("bad", event="before", operation_kind="prune", kind="http", values={"url": "http://x/"}, actor="a")
    with pytest.raises(UsageError, match="time limit"):
        _hook("bad", command="note", timeout_seconds=0)
    os.chmod(commands / "commands.json", 0o666)
    with pytest.raises(UsageError, match="can be changed by others"):
        _hook("bad", command="note")
    settings.LASTRO_HOOK_COMMANDS = ""
    with pytest.raises(UsageError, match="no commands are allowed"):
        _hook("bad", command="note")
    assert Hook.objects.count() == 0


def test_a_command_taken_off_the_list_runs_no_more(commands: Path) -> None:
    """Goal: the list is asked at every run; take the command off it."""
    _hook("note", command="note")
    (commands / "commands.json").write_text("{}")
    assert _run().error["code"] == "hook.failed"
    assert not (commands / "notes").exists()


def test_hooks_have_one_name_each_and_can_be_removed(commands: Path) -> None:
    """Goal: a name means one hook; what its runs left stays."""
    _hook("note", command="note")
    with pytest.raises(Conflict):
        _hook("Note", command="note")
    _run()
    hook_remove("NOTE", actor="ana")
    with pytest.raises(NotFound):
        hook_remove("note", actor="ana")
    assert (hook_list().count(), HookRun.objects.get().hook_name) == (0, "note")
    assert Entry.objects.filter(type="hook.removed", user_id="ana").count() == 1


def test_what_an_application_says_is_sealed_and_shown_on_request(commands: Path) -> None:
    """Goal: users' data in a hook's output is nowhere in clear; look through every table, read it back, lose the key."""
    _hook("stop", command="fail")
    operation = _run()
    kept = json.dumps([*map(str, HookRun.objects.values()), *map(str, Entry.objects.values()), operation.error])
    assert "cannot stop" not in kept
    (said,) = hook_runs(actor="ben", operation=operation.pk, limit=10)
    assert said.output == "cannot stop the application\n"
    assert Entry.objects.filter(type="hook.output_read", user_id="ben", tenant="aurora").count() == 1
    tenants_known_by(None)
    assert hook_runs(actor="ben", hook="STOP", limit=10)[0].output == ""
    for wrong in ({"operation": "opr_none"}, {"hook": "none"}):
        with pytest.raises(NotFound):
            hook_runs(actor="ben", limit=10, **wrong)


def test_a_hook_can_be_changed_and_left_out(commands: Path, application: _Application) -> None:
    """Goal: a broken hook is put right at night without losing its token; change one thing at a time."""
    url = f"{application.url}/on"
    _hook("on", kind="http", url="http://127.0.0.1:9/", headers="Authorization: Bearer s3cret", timeout_seconds=2)
    assert _run().error["code"] == "hook.failed"
    hook_enable("ON", enabled=False, actor="ana")
    assert (_run().state, application.asked) == ("succeeded", [])
    changed = hook_update("on", actor="ana", values={"url": url}, on_failure="warn", position=3)
    assert (changed.timeout_seconds, changed.on_failure, changed.position) == (2, "warn", 3)
    hook_enable("on", enabled=True, actor="ana")
    assert _run().state == "succeeded"
    assert application.asked[0]["headers"]["Authorization"] == "Bearer s3cret"
    with pytest.raises(UsageError, match="nothing to change"):
        hook_update("on", actor="ana")
    with pytest.raises(UsageError, match="no address"):
        hook_update("on", actor="ana", values={"url": "ftp://x"})
    with pytest.raises(NotFound, match="no tenant"):
        _hook("lost", command="note", tenant="nobody")
    assert hook_list().get().config["url"] == url
    noted = Entry.objects.filter(type__in=("hook.changed", "hook.enabled", "hook.disabled")).order_by("sequence")
    assert [entry.type for entry in noted] == ["hook.disabled", "hook.changed", "hook.enabled"]


@pytest.mark.parametrize(
    "line", ["X-Name: Ж", "Ж: x", "Transfer-Encoding: chunked", "content-length: 3", "X\x00: a", "X: a\x7f", ": a", "X"]
)
def test_a_header_that_no_request_can_hold_is_refused_by_day(line: str) -> None:
    """Goal: no hook breaks down at night, no request is cut where somebody else says; headers that cannot be sent."""
    with pytest.raises(UsageError, match="header"):
        header_lines(f"X-Good: fine\n{line}")


def test_the_audit_log_has_no_token_of_an_address(commands: Path) -> None:
    """Goal: the log is sent on and forgets nothing; add a hook and a channel whose addresses end in tokens."""
    url = "https://app.example/on?token=kanarie7f3a9c"
    _hook("on", kind="http", url=url)
    channel_add("ops", kind="webhook", values={"url": url}, actor="ana")
    told = Entry.objects.filter(type__in=("hook.added", "channel.added"))
    assert [each.data["config"]["url"] for each in told] == ["https://app.example/on"] * 2
    assert hook_list()[0].config["url"] == url
