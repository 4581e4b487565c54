"""Alerts through the command line: opened once, grouped, acknowledged, muted, escalated, over."""

import datetime
import ipaddress
import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit.models import Entry
from core import clock
from operations.alerting import evaluating
from operations.alerting.channel_settings import ChannelWish, channel_add
from operations.alerting.evaluating import alerts_look
from operations.alerting.notices import report_due
from operations.alerting.rules import rules
from operations.alerting.telling import alerts_tell
from operations.history import history_forget
from operations.management.commands.alert import Command as Alerts
from operations.models import Alert, AlertDelivery, AlertMessage, Channel, Operation, RuleVersion
from operations.services import operation_enqueue
from tenants.freshness import freshness_now
from tenants.management.commands.doctor import Command as Doctor
from tenants.models import Backup, Baseline, Copy, DeletionFreeze, Drill, Source, StoreConfig, Tenant
from tenants.services.clearing import catalogue_clear
from tests.architecture.source import ROOT
from tests.services.receiver import Receiver, receiver
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

Run = Callable[..., tuple[int, dict[str, Any]]]
HOUR = datetime.timedelta(hours=1)
MINUTE = datetime.timedelta(minutes=1)


@pytest.fixture
def run(capsys: Any, house: House, settings: Any) -> Run:
    """Exit code and JSON object of `alert …`."""
    settings.LASTRO_OUTGOING_ALLOW = (ipaddress.ip_network("127.0.0.0/8"),)

    def call(*argv: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = Alerts().run([*argv, "--json"], noun="alert")
        return code, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def target(run: Run) -> Iterator[Receiver]:
    with receiver() as server:
        yield server


def _channel(target: Receiver, name: str = "first", **wish: Any) -> Channel:
    values = {"url": target.url, "plain_http": "yes"}
    return channel_add(name, kind="webhook", values=values, actor=ACTOR, wish=ChannelWish(**wish))


def _heard(target: Receiver, kind: str = "") -> list[dict[str, Any]]:
    told = [json.loads(each.body) for each in target.heard]
    return [
        each
        for each in told
        if each["data"].get("rule") not in ("keys", "recovery", "objective_breached") and kind in each["type"]
    ]


def _live(run: Run, rule: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run("list", "--rule", rule)[1]["data"]
    return found


def _tenants(house: House, count: int) -> list[Source]:
    """Tenants with a source each, without the files: what the rules ask about is in the catalogue."""
    house.tenant("first")
    store, made = StoreConfig.objects.get(), []
    for number in range(count):
        tenant = Tenant.objects.create(
            slug=f"t{number:04}", name="x", store=store, repository_id=f"rep{number}", keyring=b"x"
        )
        made.append(
            Source.objects.create(
                tenant=tenant, name="db", kind="sqlite", category="database", last_good_at=clock.now()
            )
        )
    return made


def test_a_backup_that_fails_is_said_once_and_its_end_too(house: House, run: Run, target: Receiver) -> None:
    """Goal: one message for what is wrong, one when it is over; fail three times, look often, mend it."""
    tenant = house.tenant()
    source = house.files(tenant)
    _channel(target)
    house.backup(tenant)
    folder = house.folder(source)
    away = folder.rename(folder.with_name("away"))
    for expected in (1, 2, 3):
        house.backup(tenant, ok=False)
        run("run")
        run("run")
        (alert,) = _live(run, "backup_failed")
        assert alert["occurrences"] == expected
    assert "aurora/assets" in alert["subject"]
    assert "is not a folder" in alert["message"]
    (told,) = _heard(target, "opened")
    assert told["data"]["alerts"][0]["tenant"] == "aurora"
    away.rename(folder)
    house.backup(tenant)
    run("run")
    assert _live(run, "backup_failed") == []
    assert [each["type"] for each in _heard(target)] == ["alert.opened", "alert.resolved"]
    (over,) = run("list", "--rule", "backup_failed", "--state", "resolved")[1]["data"]
    assert over["resolved_at"]


def test_many_tenants_without_one_store_are_one_message(house: House, run: Run, target: Receiver) -> None:
    """Goal: nobody is flooded; 300 sources too old at once, more a minute later, more after the window."""
    sources = _tenants(house, 300)
    _channel(target)
    now = clock.now()
    with clock.held(now) as advance:
        late = now - 30 * HOUR
        Source.objects.filter(pk__in=[each.pk for each in sources[:200]]).update(last_good_at=late)
        run("run")
        (told,) = _heard(target)
        assert (told["data"]["count"], len(told["data"]["alerts"])) == (200, 20)
        assert "200 at once" in told["data"]["subject"]
        Source.objects.filter(pk__in=[each.pk for each in sources]).update(last_good_at=late)
        advance(MINUTE)
        run("run")
        assert len(_heard(target)) == 1  # Held back for a while …
        advance(15 * MINUTE)
        run("run")
        assert [each["data"]["count"] for each in _heard(target)] == [200, 100]  # … and told together.
        Source.objects.update(last_good_at=clock.now())
        advance(MINUTE)
        run("run")
        assert [each["data"]["count"] for each in _heard(target, "resolved")] == [300]
    assert Alert.objects.filter(rule="backup_age").count() == 300


def test_a_look_takes_as_many_queries_for_many_tenants_as_for_few(house: House, run: Run) -> None:
    """Goal: bounded whatever the number of tenants; count the queries of a quiet look at 5 and at 105."""
    _tenants(house, 5)
    alerts_look()

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            alerts_look()
        return len(seen)

    few = queries()
    store = StoreConfig.objects.get()
    for number in range(100):
        tenant = Tenant.objects.create(
            slug=f"u{number}", name="x", store=store, repository_id=f"u{number}", keyring=b"x"
        )
        Source.objects.create(tenant=tenant, name="db", kind="sqlite", category="database", last_good_at=clock.now())
    assert queries() == few


def test_nobody_at_it_means_the_next_channel_hears(house: House, run: Run, target: Receiver) -> None:
    """Goal: what nobody takes on goes further; wait, let the second channel hear, acknowledge another one in time."""
    sources = _tenants(house, 2)
    _channel(target)
    with receiver() as second:
        _channel(second, "second", step=2)
        with clock.held(clock.now()) as advance:
            Source.objects.filter(pk=sources[0].pk).update(last_good_at=clock.now() - 30 * HOUR)
            run("run")
            advance(29 * MINUTE)
            run("run")
            assert second.heard == []
            advance(2 * MINUTE)
            run("run")
            (told,) = _heard(second)
            assert told["type"] == "alert.escalated"
            advance(40 * MINUTE)
            run("run")
            assert len(_heard(second)) == 1
            Source.objects.filter(pk=sources[1].pk).update(last_good_at=clock.now() - 30 * HOUR)
            run("run")
            (fresh,) = [each for each in _live(run, "backup_age") if each["tenant"] == "t0001"]
            code, acked = run("ack", fresh["id"], "--reason", "on it")
            assert (code, acked["state"], acked["note"]) == (0, "acknowledged", "on it")
            advance(2 * HOUR)
            run("run")
            assert len(_heard(second)) == 1
            Source.objects.update(last_good_at=clock.now())
            run("run")
            assert len(_heard(second, "resolved")) == 1  # Who heard that it began hears that it is over.
    assert Entry.objects.filter(type="alert.acknowledged").count() == 1


def test_a_group_is_acknowledged_and_muted_as_one(house: House, run: Run, target: Receiver) -> None:
    """Goal: nobody acknowledges nine hundred by hand; three alike and one of another rule."""
    sources = _tenants(house, 3)
    _channel(target)
    Source.objects.filter(pk__in=[each.pk for each in sources]).update(last_good_at=clock.now() - 30 * HOUR)
    run("run")
    first, *_ = _live(run, "backup_age")
    assert run("mute", first["id"], "--group", "--hours", "1")[1]["muted"] == 3
    assert run("ack", first["id"], "--group", "--reason", "the store")[1]["acknowledged"] == 3
    assert {each["state"] for each in _live(run, "backup_age")} == {"acknowledged"}
    assert {each["state"] for each in _live(run, "objective_breached")} == {"open"}
    assert run("ack", first["id"], "--group")[1]["acknowledged"] == 0


def test_what_is_muted_is_silent_until_its_time(house: House, run: Run, target: Receiver) -> None:
    """Goal: a known trouble makes no noise, and is not forgotten; mute, let it go and come back, wait."""
    (source,) = _tenants(house, 1)
    _channel(target)
    with clock.held(clock.now()) as advance:
        Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
        run("run")
        (alert,) = _live(run, "backup_age")
        assert run("mute", alert["id"])[0] == 2
        assert run("mute", alert["id"], "--until", "2020-01-01")[0] == 2
        assert run("mute", alert["id"], "--hours", "5")[0] == 0
        Source.objects.filter(pk=source.pk).update(last_good_at=clock.now())
        run("run")
        Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
        advance(HOUR)
        run("run")
        assert len(_heard(target)) == 1
        (again,) = _live(run, "backup_age")
        assert again["muted_until"]
        advance(5 * HOUR)
        run("run")
        assert [each["type"] for each in _heard(target)] == ["alert.opened", "alert.opened"]
        run("mute", again["id"], "--hours", "5")
        assert run("unmute", again["id"])[1]["muted_until"] is None
        advance(16 * MINUTE)
        run("run")
        assert len(_heard(target, "opened")) == 3


def test_what_stays_open_is_said_again_after_a_day(house: House, run: Run, target: Receiver) -> None:
    """Goal: a message that was overlooked comes again; wait a day."""
    (source,) = _tenants(house, 1)
    _channel(target)
    Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
    with clock.held(clock.now()) as advance:
        run("run")
        advance(25 * HOUR)
        run("run")
    assert [each["type"] for each in _heard(target)] == ["alert.opened", "alert.reminder"]


def test_what_gets_worse_is_said_at_once(house: House, run: Run, target: Receiver) -> None:
    """Goal: the window holds back more of the same, not worse; a warning that becomes critical a minute later."""
    (source,) = _tenants(house, 1)
    _channel(target)
    run("rule", "set", "backup_age", "--severity", "warning")
    Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
    run("run")
    run("rule", "set", "backup_age", "--severity", "critical")
    run("run")
    run("run")
    assert [each["data"]["severity"] for each in _heard(target)] == ["warning", "critical"]


def test_channels_hear_what_they_asked_for(house: House, run: Run) -> None:
    """Goal: a tenant's own channel hears of that tenant, a strict one of critical alerts only; three channels, two tenants."""
    sources = _tenants(house, 2)
    with receiver() as everything, receiver() as own, receiver() as strict:
        _channel(everything, "everything", severity="info")
        _channel(own, "own", tenant="t0001")
        _channel(strict, "strict", severity="critical")
        Source.objects.filter(pk__in=[each.pk for each in sources]).update(last_good_at=clock.now() - 30 * HOUR)
        StoreConfig.objects.update(offsite=False)
        run("rule", "set", "backup_age", "--tenant", "t0000", "--severity", "warning")
        run("run")
        slugs = [
            sorted(a["tenant"] for t in _heard(each) for a in t["data"]["alerts"]) for each in (everything, own, strict)
        ]
    assert slugs == [["t0000", "t0001"], ["t0001"], ["t0001"]]


def test_everything_waits_for_the_first_channel(house: House, run: Run, target: Receiver) -> None:
    """Goal: nothing is lost before a channel is set up; an alert first, then the channel."""
    (source,) = _tenants(house, 1)
    Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
    assert run("run")[1]["messages"] == 0
    _channel(target)
    run("run")
    assert len(_heard(target)) == 1


# ---------------------------------------------------------------- rules


def test_thresholds_are_set_for_all_and_for_one_and_kept_as_versions(house: House, run: Run) -> None:
    """Goal: every number can be set, and who set it is known; change, override, reset, refuse."""
    sources = _tenants(house, 2)
    Source.objects.update(last_good_at=clock.now() - 10 * HOUR)
    assert run("run")[1]["live"] == len(_live(run, "recovery")) + len(_live(run, "keys"))
    assert run("rule", "set", "backup_age", "--set", "hours=6", "--tenant", "t0000")[0] == 0
    run("run")
    assert [each["tenant"] for each in _live(run, "backup_age")] == ["t0000"]
    run("rule", "set", "backup_age", "--set", "hours=8")
    run("run")
    assert {each["tenant"] for each in _live(run, "backup_age")} == {"t0000", "t0001"}
    run("rule", "set", "backup_age", "--disable", "--tenant", "t0001")
    run("run")
    assert [each["tenant"] for each in _live(run, "backup_age")] == ["t0000"]
    _, shown = run("rule", "show", "backup_age", "--tenant", "t0000")
    assert shown["limits"]["hours"]["value"] == 6
    run("rule", "set", "backup_age", "--tenant", "t0000", "--reset", "hours")
    _, shown = run("rule", "show", "backup_age")
    assert shown["limits"]["hours"]["value"] == 8
    assert len(shown["versions"]) == RuleVersion.objects.count() == 4
    entries = Entry.objects.filter(type="alert_rule.set").order_by("sequence")
    assert entries.first().data["after"]["values"] == {"hours": "6"}  # type: ignore[union-attr]
    for argv, code in (
        (("rule", "set", "backup_age"), 2),
        (("rule", "set", "backup_age", "--set", "hours=never"), 2),
        (("rule", "set", "backup_age", "--set", "hours=nan"), 2),
        (("rule", "set", "backup_age", "--set", "hours=-1"), 2),
        (("rule", "set", "backup_age", "--set", "minutes=5"), 2),
        (("rule", "set", "backup_age", "--escalate", "-5"), 2),
        (("rule", "set", "nothing", "--enable"), 4),
        (("rule", "set", "backup_age", "--tenant", "nobody", "--enable"), 4),
        (("list", "--rule", "nothing"), 4),
        (("list", "--tenant", "nobody"), 4),
        (("ack", "alt_1"), 4),
    ):
        assert run(*argv)[0] == code, argv
    assert len(sources) == 2


def test_a_rule_that_cannot_look_ends_nothing_and_is_told(house: House, run: Run, monkeypatch: Any) -> None:
    """Goal: nothing is taken for well because nobody could look; break a rule while its alert lives."""
    (source,) = _tenants(house, 1)
    Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)
    run("run")
    real = evaluating.rules

    def broken() -> list[Any]:
        def look(levels: Any, now: Any) -> Any:
            raise ValueError("password=hunter2 is broken")

        from dataclasses import replace

        return [replace(each, look=look) if each.code == "backup_age" else each for each in real()]

    monkeypatch.setattr(evaluating, "rules", broken)
    code, answer = run("run")
    assert (code, answer["broken"]) == (3, ["backup_age"])
    assert len(_live(run, "backup_age")) == 1
    (told,) = _live(run, "alerting_broken")
    assert "hunter2" not in told["message"]
    monkeypatch.setattr(evaluating, "rules", real)
    assert run("run")[0] == 0
    assert _live(run, "alerting_broken") == []


def test_stores_that_are_away_or_full_are_one_alert_each(house: House, run: Run) -> None:
    """Goal: a store is told once, with how many it concerns; take the folder away, put an empty one there, bring it back."""
    for slug in ("aurora", "boreal"):
        house.tenant(slug)
    with clock.held(clock.now()) as advance:
        run("run", "--probes")
        assert _live(run, "store_unreachable") == []
        (house.data / "store").rename(house.data / "away")
        (house.data / "store").mkdir()
        run("run", "--probes")
        (told,) = _live(run, "store_unreachable")
        assert "2 tenants" in told["message"]
        assert "store test default" in told["next_step"]
        (house.data / "store").rmdir()
        (house.data / "away").rename(house.data / "store")
        run("run", "--probes")
        assert len(_live(run, "store_unreachable")) == 1  # What comes and goes makes no noise.
        advance(10 * MINUTE)
        run("run", "--probes")
        assert _live(run, "store_unreachable") == []
    run("rule", "set", "store_filling", "--set", "free_gb=1000000")
    run("run")
    assert [each["subject"] for each in _live(run, "store_filling")] == ["store default"]


def test_every_other_trouble_has_its_rule(house: House, run: Run) -> None:
    """Goal: what the catalogue knows to be wrong is told with a next step; make each thing wrong, look once."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    other = StoreConfig.objects.create(name="other", kind="local", config={"path": str(house.data / "other")})
    day_ago = clock.now() - 48 * HOUR
    Backup.objects.filter(pk=backup.pk).update(damaged=True, duration_ms=4_000_000)
    Copy.objects.create(tenant=tenant, store=other, position=1, health="damaged")
    third = StoreConfig.objects.create(name="third", kind="local", config={"path": str(house.data / "third")})
    Copy.objects.create(tenant=tenant, store=third, position=2, health="behind", run_at=day_ago)
    Drill.objects.create(tenant=tenant, backup=backup, state="failed", checks_failed=2, finished_at=clock.now())
    DeletionFreeze.objects.create(code="clock.stepped", reason="the clock went forward")
    failed = operation_enqueue(kind="prune", tenant="aurora", params={}, actor=ACTOR, here=True)
    Operation.objects.filter(pk=failed.pk).update(
        state="failed", finished_at=clock.now(), error={"code": "store.full", "detail": "no room"}
    )
    run("rule", "set", "data_folder_filling", "--set", "free_gb=100000")
    Source.objects.update(last_good_at=day_ago)
    code, _ = run("run")
    assert code == 0
    alerts = run("list")[1]["data"]
    found = {each["rule"] for each in alerts}
    assert found >= {
        "damage_found", "backup_slow", "copy_damaged", "copy_behind", "drill_failed", "retention_frozen", "operation_failed",
        "data_folder_filling", "recovery", "objective_breached",
    }  # fmt: skip
    assert all(each["next_step"] for each in alerts)
    (repair,) = [each for each in alerts if each["rule"] == "copy_damaged"]
    assert repair["next_step"] == "copy repair aurora --store other"
    assert next(each for each in alerts if each["rule"] == "damage_found")["next_step"].startswith("copy repair aurora")


# ---------------------------------------------------------------- what else holds


@pytest.mark.parametrize("label", ["alert.looked", "alert.told"])
def test_a_watch_that_dies_tells_neither_twice_nor_never(house: House, run: Run, target: Receiver, label: str) -> None:
    """Goal: alert and message stand or fall together; kill in both transactions, look again."""
    (source,) = _tenants(house, 1)
    _channel(target)
    run("run")
    Source.objects.filter(pk=source.pk).update(last_good_at=clock.now() - 30 * HOUR)

    def both() -> None:
        alerts_look()
        alerts_tell()

    killed(both, label=label)
    run("run")
    run("run")
    assert Alert.objects.filter(rule="backup_age").count() == 1
    assert len(_heard(target)) == 1


def test_a_shredded_tenant_is_told_of_no_more(house: House, run: Run, target: Receiver) -> None:
    """Goal: no canary stays; an alert with a tenant's words, queued and not sent, then clear the tenant."""
    tenant = house.tenant()
    house.files(tenant)
    _channel(target, severity="critical")
    Alert.objects.create(
        rule="backup_failed", fingerprint="x", tenant="aurora", subject="aurora/CANARY", message="CANARY", hint="CANARY",
        cause="store.unreachable", note="CANARY", severity="critical", last_seen_at=clock.now(),
    )  # fmt: skip
    Baseline.objects.create(source=Source.objects.get(), window=[{"parts": {"CANARY": 1}}])
    alerts_tell()
    catalogue_clear(tenant, actor=ACTOR, operation_id="")
    for model in (Alert, AlertMessage, AlertDelivery, Baseline):
        assert "CANARY" not in json.dumps([str(row) for row in model.objects.values()])
    run("run")
    assert b"CANARY" not in b"".join(each.body for each in target.heard)


def test_history_is_bounded(house: House, run: Run, target: Receiver, settings: Any) -> None:
    """Goal: the catalogue does not grow for ever; alerts and messages of long ago leave it, what lives stays."""
    sources = _tenants(house, 2)
    _channel(target)
    Source.objects.update(last_good_at=clock.now() - 30 * HOUR)
    run("run")
    Source.objects.filter(pk=sources[0].pk).update(last_good_at=clock.now())
    run("run")
    with clock.held(clock.now() + datetime.timedelta(days=91)):
        DeletionFreeze.objects.all().delete()
        gone = history_forget(actor=ACTOR, dry_run=True)
        assert gone["alerts that are over"] == Alert.objects.filter(state="resolved").count() > 0
        assert gone["messages"] == AlertMessage.objects.count()
        assert gone["deliveries of messages"] == AlertDelivery.objects.count()


def test_successes_and_the_weekly_report_on_request(house: House, run: Run, target: Receiver) -> None:
    """Goal: who asks hears that all is well; a channel with both, a backup, a Monday."""
    tenant = house.tenant()
    house.files(tenant)
    _channel(target, notices=True, reports=True, severity="critical")
    house.backup(tenant)
    run("run")
    (notice,) = _heard(target, "notice")
    assert "a backup of aurora went well" in notice["data"]["subject"]
    sunday = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)
    with clock.held(sunday) as advance:
        assert report_due()  # Of the Monday before: the look above was in the week before that.
        assert not report_due()
        advance(20 * HOUR)
        assert report_due()
        assert not report_due()
        code, report = run("report", "--days", "30")
    assert code == 0
    assert ["tenants", "1"] in report["figures"]
    assert AlertMessage.objects.filter(kind="report").count() == 2
    assert run("report", "--send")[1]["queued"] == 1


def test_monitors_are_answered_without_a_worker(
    house: House, run: Run, capsys: Any, client: Any, monkeypatch: Any
) -> None:
    """Goal: the alarm about the watch needs no watch; ask plugin and page before a look, after one, and long after."""
    from config import health

    monkeypatch.setattr(health, "FRESH_SECONDS", -1.0)
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    assert freshness_now().watch_silent
    assert client.get("/health/ready").status_code == 200
    assert client.get("/health/ready?fresh").status_code == 503
    run("run")
    assert client.get("/health/ready?fresh").json()["freshness"] == {"watch": True, "backups": True}
    shutil.rmtree(house.data / "store")  # The plugin asks the catalogue alone.
    capsys.readouterr()
    assert Doctor().run(["--nagios"]) == 1
    assert "critical" not in capsys.readouterr().out.lower().split("|")[0]
    with clock.held(clock.now() + datetime.timedelta(minutes=20)):
        assert Doctor().run(["--nagios"]) == 2
        assert "nobody looks for alerts since" in capsys.readouterr().out
        assert client.get("/health/ready?fresh").json()["freshness"]["watch"] is False
    with clock.held(clock.now() + 30 * HOUR):
        assert client.get("/health/ready?fresh").json()["freshness"] == {"watch": False, "backups": False}


def test_a_dead_man_s_switch_is_called_after_a_good_look(
    house: House, run: Run, target: Receiver, settings: Any
) -> None:
    """Goal: silence is heard elsewhere; look with a switch, and with one that does not answer."""
    settings.LASTRO_PING_URL = target.url.replace("/hook", "/ping")
    run("run")
    assert [each.path for each in target.heard] == ["/ping"]
    settings.LASTRO_PING_URL = "http://127.0.0.1:9/"
    assert run("run")[0] == 0


def test_every_rule_is_documented() -> None:
    """Goal: an operator can look up every message; compare the table in docs/alerts.md with the rules, number by number."""
    page = (ROOT / "docs" / "alerts.md").read_text()
    rows = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)}
    for rule in rules():
        row = rows.get(rule.code, "")
        assert row, f"describe {rule.code} in docs/alerts.md"
        assert rule.severity.value in row
        assert rule.next_step.replace("|", "\\|") in row
        for name, limit in rule.limits.items():
            assert f"`{name}` {limit.default:g} {limit.unit}: {limit.help}" in row
