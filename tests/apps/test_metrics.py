"""/metrics, what is built upon it, and the log lines of requests."""

import ipaddress
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from access.models import Account
from access.services import master_add
from audit.models import Entry
from audit.services import record
from core import clock, logs
from engine.keys import RootKey
from operations.exposition import exposition
from operations.models import Operation
from tenants.models import Backup, Source, StoreConfig, Tenant
from tests.apps.promql import PromqlError, promql_read

MONITORING = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
TOKEN = "a-long-token-of-the-test"
NAMED = {"backup_age_hours", "backup_size_bytes", "backup_duration_seconds", "backup_success", "last_backup_timestamp"}
Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture
def read(client: Client, settings: Any) -> Callable[[], Figures]:
    """Read /metrics with the official parser: name -> labels -> figure."""
    settings.LASTRO_METRICS_TOKEN = TOKEN

    def figures() -> Figures:
        exposition.forget()
        answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200, answer.content
        found: Figures = {}
        for family in text_string_to_metric_families(answer.content.decode()):
            assert family.documentation
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    return figures


def _tenants(count: int, *, begin: int = 0) -> None:
    store = StoreConfig.objects.get_or_create(name="main", defaults={"kind": "local", "tested": {"status": "passed"}})[
        0
    ]
    now = clock.now()
    for n in range(begin, begin + count):
        slug = f"t{n}"
        tenant = Tenant.objects.create(slug=slug, name=slug, repository_id=f"rep_{slug}", store=store)
        backup = Backup.objects.create(
            tenant=tenant, number=1, state="failed" if n == 7 else "succeeded", requested_type="full", type="full",
            manifest_sha256="0" * 64, size_bytes=1_000 + n, duration_ms=2_000, finished_at=now,
        )  # fmt: skip
        Source.objects.create(
            tenant=tenant, name="s", kind="files", category="assets", last_good_backup=backup,
            last_good_at=now - clock.datetime.timedelta(hours=n + 1),
        )  # fmt: skip


@pytest.mark.django_db
def test_the_figures_are_those_of_the_catalogue(read: Callable[[], Figures]) -> None:
    """Goal: names and values that monitoring of backups counts on; two tenants, an operation, read by the real parser."""
    _tenants(2)
    Operation.objects.create(kind="backup", actor="ana", requested_at=clock.now() - clock.datetime.timedelta(hours=1))
    figures = read()
    assert set(figures) >= NAMED
    label = (("tenant", "t1"),)
    assert figures["backup_age_hours"][label] == pytest.approx(2, abs=0.01)
    assert figures["backup_size_bytes"][label] == 1_001
    assert figures["backup_duration_seconds"][label] == 2
    assert figures["backup_success"][label] == 1
    assert figures["last_backup_timestamp"][label] == pytest.approx(clock.now().timestamp() - 7_200, abs=60)
    assert figures["lastro_queue_depth"][()] == 1
    assert figures["lastro_queue_oldest_seconds"][()] == pytest.approx(3_600, abs=60)
    assert figures["lastro_store_up"] == {(("kind", "local"), ("store", "main")): 1}


@pytest.mark.django_db
def test_labels_and_questions_are_bounded(read: Callable[[], Figures], settings: Any) -> None:
    """Goal: 10,000 tenants cost no more series and no more questions than a few; more tenants than the setting allows."""
    settings.LASTRO_METRICS_TENANTS = 5
    _tenants(4)
    read()
    with CaptureQueriesContext(connection) as few:
        assert len(read()["backup_age_hours"]) == 4
    _tenants(16, begin=4)
    with CaptureQueriesContext(connection) as many:
        figures = read()
    assert len(many) == len(few)
    shown = {dict(labels)["tenant"] for labels in figures["backup_age_hours"]}
    assert shown == {"t7", "t19", "t18", "t17", "t16", "(rest)"}  # What failed, then the least fresh.
    assert figures["backup_age_hours"][(("tenant", "(rest)"),)] == pytest.approx(16, abs=0.01)
    assert figures["lastro_tenants"] == {(("standing", "good"),): 19, (("standing", "failed"),): 1}


@pytest.mark.django_db
def test_who_may_read_it(client: Client, settings: Any) -> None:
    """Goal: nobody learns of tenants by asking; without a setting, with a wrong token, from networks."""
    assert client.get("/metrics").status_code == 403
    settings.LASTRO_METRICS_TOKEN = TOKEN
    assert client.get("/metrics").status_code == 401
    for wrong in ("Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ü"):
        assert client.get("/metrics", headers={"Authorization": wrong}).status_code == 401
    assert client.get("/metrics", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    settings.LASTRO_METRICS_ALLOW = (ipaddress.ip_network("192.0.2.0/24"),)
    assert client.get("/metrics", REMOTE_ADDR="192.0.2.9").status_code == 200
    assert client.get("/metrics", REMOTE_ADDR="192.0.3.9").status_code == 401
    for proxied in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
        assert client.get("/metrics", REMOTE_ADDR="192.0.2.9", headers={proxied: "192.0.2.1"}).status_code == 401
    assert client.post("/metrics").status_code == 405


# ---------------------------------------------------------------- dashboard and rules


def _expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [rule["expr"] for group in rules for rule in group["rules"]] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


@pytest.mark.django_db
def test_dashboard_and_rules_name_what_there_is(read: Callable[[], Figures], settings: Any) -> None:
    """Goal: no panel stays empty for a wrong name; parse every expression, compare metrics and labels with /metrics."""
    settings.LASTRO_AUDIT_SYSLOG = "tcp://127.0.0.1:1"
    _tenants(1)
    Operation.objects.create(kind="backup", actor="ana", state="running", requested_at=clock.now())
    known = {family.name: family for family in text_string_to_metric_families(_text(read))}
    labels = {name: {label for sample in family.samples for label in sample.labels} for name, family in known.items()}
    labels["lastro_drills_last_week"] |= {"state"}
    labels.setdefault("lastro_alerts", set())
    for expression in _expressions():
        for name, asked in promql_read(expression).metrics.items():
            assert name in labels, f"{name} of {expression} is no metric of ours"
            assert asked <= labels[name], (expression, asked)
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def _text(read: Callable[[], Figures]) -> str:
    read()
    return exposition.text().decode()


@pytest.mark.parametrize("wrong", ["sum(", "a b", "a{b}", "a[5]", "a >", "max by x (a)", "a{b=1}", "§", ")"])
def test_the_reader_of_expressions_refuses(wrong: str) -> None:
    """Goal: the test above can fail; expressions that Prometheus would refuse."""
    with pytest.raises((PromqlError, IndexError)):
        promql_read(wrong)


@pytest.mark.django_db
def test_the_page_names_every_metric(read: Callable[[], Figures]) -> None:
    """Goal: every figure is explained; compare the page with the text."""
    page = (MONITORING / "README.md").read_text()
    names = {family.name for family in text_string_to_metric_families(_text(read))}
    missing = sorted(name for name in names if f"`{name}`" not in page)
    assert not missing, f"docs/monitoring/README.md does not explain {', '.join(missing)}"


# ---------------------------------------------------------------- requests


@pytest.mark.django_db
def test_a_request_is_followed_by_its_id(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Goal: one name in the answer, the log and the audit log; ids that are sane, and that are not."""
    name, password = "ana", master_add("ana", actor="test")[1]
    with caplog.at_level(logging.INFO, logger="requests"):
        answer = client.post(
            "/login/", {"username": name, "password": password}, headers={"X-Request-ID": "trace-12345"}, follow=False
        )
        assert answer.headers["X-Request-ID"] == "trace-12345"
        formatted = [logs.JsonLines().format(line) for line in caplog.records if line.name == "requests"]
    assert any('"message": "POST /' in line for line in formatted)
    entry = Entry.objects.filter(type="access.login").first()
    if entry is not None:
        assert (entry.origin["request"], entry.origin["address"]) == ("trace-12345", "127.0.0.1")
    for bad in ("", "x", "a" * 99, "a b c d e f g h", "<script>aaaaaa", "trace\u00e912345"):
        given = client.get("/health/live", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)


@pytest.mark.django_db
def test_a_refused_change_by_http_is_recorded() -> None:
    """Goal: who tries is seen, without what was typed; a form without its token, at an address of ours."""
    strict = Client(enforce_csrf_checks=True)
    assert Account.objects.count() == 0
    assert strict.post("/logout/", {"x": "canary"}).status_code == 403
    entry = Entry.objects.get(type="request.refused")
    assert entry.data["status"] == 403
    assert entry.origin["address"] == "127.0.0.1"
    assert "canary" not in json.dumps(entry.data)


@pytest.mark.django_db
def test_log_lines_name_their_operation_and_request() -> None:
    """Goal: lines of one piece of work are found together; format a line inside of it."""
    line = logging.LogRecord("x", logging.INFO, "f", 1, "said", None, None)
    from core.origin import acting

    with acting(request="r-1", command="backup create"), logs.operation_named("opr_1"):
        said = json.loads(logs.JsonLines().format(line))
        entry = record("test.done", message="m", actor="ana")
    assert (said["operation"], said["request"], said["command"]) == ("opr_1", "r-1", "backup create")
    assert entry.origin["operation"] == "opr_1"


def test_tokens_in_foreign_texts_reach_no_log() -> None:
    """Goal: the last fence knows what we give out; texts with an API token, a webhook's secret, a header."""
    canary = "kanarie7f3a9ckanarie7f3a9c"
    for text in (f"GET /api/v1/lst0123456789_{canary}", f"whsec_{canary}=", f"Authorization: Bearer {canary}"):
        assert canary not in logs.redact(f"failed: {text}, sorry")
        assert logs.redact(f"failed: {text}, sorry").endswith("***, sorry")


def test_no_secret_of_the_settings_reaches_the_log(tmp_path: Path) -> None:
    """Goal: a log can be handed on; give every secret setting a canary, go wrong ways at the lowest level, read all."""
    source = (Path(__file__).resolve().parents[2] / "platform" / "config" / "environment.py").read_text()
    secret = re.findall(r'reader\.secret\("(LASTRO_\w+)"\)', source)
    assert len(secret) >= 6
    canary = "kanarie7f3a9c"
    shapes = {
        "LASTRO_DATABASE_URL": f"postgresql://u:{canary}@127.0.0.1:1/x",
        "LASTRO_DRILL_DSN": f"postgresql://u:{canary}@127.0.0.1:1/x",
        "LASTRO_SMTP_URL": f"smtp://u:{canary}@127.0.0.1:1",
        "LASTRO_PING_URL": f"https://127.0.0.1:1/{canary}",
        "LASTRO_REDIS_URL": f"redis://u:{canary}@127.0.0.1:1/0",
        "LASTRO_ROOT_KEY": f"lastro-root-v1:{canary}",
    }
    root = RootKey.generate().to_text()
    for left_out, *commands in (
        ((), ["tenant", "list", "--json"]),
        (("LASTRO_DATABASE_URL",), ["doctor", "run", "--json"]),
        (
            ("LASTRO_DATABASE_URL", "LASTRO_ROOT_KEY", "LASTRO_ROOT_KEY_OLD"),
            ["migrate", "-v0"], ["tenant", "add", "aurora", "--name", "A", "--json"], ["doctor", "run", "--json"],
            ["store", "test", "nobody", "--json"],
        ),
    ):  # fmt: skip
        given = {name: shapes.get(name, canary) for name in secret if name not in left_out}
        environment = {**os.environ, "LASTRO_DATA": str(tmp_path), "LASTRO_LOG_LEVEL": "DEBUG", **given}
        environment["DJANGO_SETTINGS_MODULE"] = "config.settings"
        if "LASTRO_ROOT_KEY" in left_out:
            environment["LASTRO_ROOT_KEY"] = root
        for words in commands:
            done = subprocess.run(
                [sys.executable, "manage.py", *words], cwd=MONITORING.parents[1], env=environment, capture_output=True,
                text=True,
            )  # fmt: skip
            said = done.stdout + done.stderr
            assert canary not in said, (words, said)
            assert root not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name.startswith("lastro.log")]
    assert written
    assert all(canary not in path.read_text() and root not in path.read_text() for path in written)
