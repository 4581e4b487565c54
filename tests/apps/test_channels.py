"""Channels through the command line: real mail servers and HTTP receivers of every temper."""

import base64
import datetime
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from audit.models import Entry
from core import clock
from core.rootkey import root_key
from operations.alerting import delivering
from operations.alerting.channel_settings import channel_add, channel_test, channels_inherit
from operations.alerting.channels.slack import payload
from operations.alerting.channels.webhook import secret_read
from operations.alerting.delivering import deliveries_send
from operations.alerting.telling import alerts_tell, message_queue
from operations.alerting.wording import words_of
from operations.management.commands.alert import Command as Alerts
from operations.management.commands.channel import Command as Channels
from operations.models import Alert, AlertDelivery, AlertMessage, Channel
from tests.services.receiver import LOOPBACK, Mailbox, Receiver, certificate, mail_server, receiver
from tests.tenants.killing import killed

pytestmark = pytest.mark.django_db(transaction=True)
HOSTILE = "aurora/db\r\nBcc: thief@example.org <!channel> <script>alert(1)</script> & *bold* {{ 7 }} password=hunter2"

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(autouse=True)
def house(settings: Any, tmp_path: Path) -> Iterator[None]:
    settings.LASTRO_DATA = tmp_path
    settings.LASTRO_OUTGOING_ALLOW = LOOPBACK
    settings.LASTRO_SMTP_URL = ""
    root_key.cache_clear()
    yield
    root_key.cache_clear()


@pytest.fixture
def run(capsys: Any) -> Run:
    """Exit code, JSON object, standard error of a command."""

    def call(command: Any, *argv: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = command().run([*argv, "--json"], noun=command.__module__.rpartition(".")[2])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return call


@pytest.fixture
def target() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


def _alert(subject: str = "aurora/db", *, number: int = 0, cause: str = "", rule: str = "backup_failed") -> Alert:
    return Alert.objects.create(
        rule=rule, fingerprint=f"f{number}", tenant="", subject=subject, severity="critical", cause=cause,
        message=f"it failed: {subject}", hint="mend it", last_seen_at=clock.now(),
    )  # fmt: skip


def _hook(target: Receiver, name: str = "hook", **more: str) -> Channel:
    return channel_add(name, kind="webhook", values={"url": target.url, "plain_http": "yes", **more}, actor="ana")


def _opened(*rows: Alert) -> AlertMessage:
    message = AlertMessage(
        kind="opened", rule="backup_failed", severity="critical", count=len(rows), alerts=[r.pk for r in rows]
    )
    message_queue(message, Channel.objects.all(), now=clock.now())
    return message


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("email", ["to=nobody"], "no e-mail address"),
        ("email", ["to=a@b.org\r\nBcc: x@y.org"], "no e-mail address"),
        ("email", ["to="], "addresses"),
        ("email", ["to=a@b.org", "port=99999"], "port"),
        ("email", ["to=a@b.org", "security=none", "user=x", "password=y"], "without encryption"),
        ("email", ["to=a@b.org", "user=x"], "go together"),
        ("email", ["to=a@b.org", "security=maybe"], "security"),
        ("slack", ["url=http://hooks.example/x"], "in clear"),
        ("slack", ["url=https://192.168.3.4/x"], "not a public address"),
        ("slack", ["url=https://[::ffff:10.0.0.1]/x"], "not a public address"),
        ("slack", ["url=file:///etc/passwd"], "no address"),
        ("webhook", ["url=https://hooks.example/x", "secret=short"], "base64"),
        ("webhook", [], "missing"),
        ("apprise", ["url=file:///etc/passwd"], "this host only"),
        ("apprise", ["url=syslog://"], "this host only"),
        ("apprise", ["url=nothing"], "no Apprise URL"),
        ("apprise", ["url=jsons://x.example/?verify=no"], "unchecked"),
        ("apprise", ["url=@/nonexistent"], "cannot read"),
        ("pigeon", ["to=x"], "unknown kind"),
    ],
)
def test_what_cannot_be_right_is_refused(run: Run, kind: str, given: list[str], said: str) -> None:
    """Goal: a mistake shows when it is typed; give each kind what it must not take."""
    code, answer, _ = run(Channels, "add", "x", "--kind", kind, *(word for each in given for word in ("--set", each)))
    assert code == 2
    assert said in answer["error"]["detail"] + answer["error"]["hint"]
    assert not Channel.objects.exists()


def test_a_channel_is_kept_without_its_secrets(run: Run, tmp_path: Path, target: Receiver) -> None:
    """Goal: nobody reads a secret again; add, show, change and list, look into rows and audit log."""
    (tmp_path / "url").write_text("https://hooks.slack.example/services/T0/SECRETTOKEN\n")
    code, _, _ = run(
        Channels,
        "add",
        "room",
        "--kind",
        "slack",
        "--set",
        f"url=@{tmp_path}/url",
        "--step",
        "2",
        "--severity",
        "critical",
    )
    assert code == 0
    _, shown, _ = run(Channels, "show", "room")
    assert shown["settings"] == {"url": "set"}
    assert (shown["step"], shown["severity"]) == (2, "critical")
    run(Channels, "set", "room", "--step", "1", "--notices", "yes", "--per-minute", "5")
    row = Channel.objects.get()
    assert (row.step, row.notices, row.per_minute) == (1, True, 5)
    assert "SECRETTOKEN" not in json.dumps(row.config) + json.dumps(row.sealed)
    kept = "".join(json.dumps(entry.data) + entry.message for entry in Entry.objects.all())
    assert "SECRETTOKEN" not in kept
    assert [each.type for each in Entry.objects.order_by("sequence")][-2:] == ["channel.added", "channel.changed"]
    assert run(Channels, "add", "ROOM", "--kind", "slack", "--set", "url=https://x.example/")[0] == 1
    assert run(Channels, "set", "room", "--step", "0")[0] == 2
    assert run(Channels, "set", "room", "--tenant", "nobody")[0] == 4
    assert run(Channels, "set", "none")[0] == 4
    assert run(Channels, "remove", "room")[0] == 0
    assert run(Channels, "list")[1] == {"data": []}


def test_the_environment_of_an_older_set_up_becomes_channels_once(settings: Any, run: Run) -> None:
    """Goal: nobody is left without alerts after moving; name an address and a room, list, remove one, list again."""
    settings.INHERITED_CHANNELS = {"email": "ops@example.org", "slack": "https://hooks.slack.example/x"}
    found = {each["name"]: each for each in run(Channels, "list")[1]["data"]}
    assert found["email"]["settings"] == {"to": "ops@example.org"}
    assert found["slack"]["settings"] == {"url": "set"}
    run(Channels, "remove", "slack")
    assert [each["name"] for each in run(Channels, "list")[1]["data"]] == ["email"]


def test_an_environment_that_cannot_be_right_is_named(settings: Any, run: Run) -> None:
    """Goal: the operator knows which variable; name rubbish, then mend it."""
    settings.INHERITED_CHANNELS = {"email": "rubbish", "slack": ""}
    code, answer, _ = run(Channels, "list")
    assert code == 2
    assert answer["error"]["detail"].startswith("BACKUP_NOTIFY_EMAIL:")
    settings.INHERITED_CHANNELS = {"email": "ops@example.org", "slack": ""}
    assert [row.name for row in channels_inherit()] == ["email"]


# ---------------------------------------------------------------- webhooks


def _verified(target: Receiver, at: int, secret: str) -> bool:
    """As a receiver checks it, by the words of Standard Webhooks."""
    heard = target.heard[at]
    signed = f"{heard.headers['webhook-id']}.{heard.headers['webhook-timestamp']}.".encode() + heard.body
    mac = base64.b64encode(hmac.new(secret_read(secret), signed, hashlib.sha256).digest()).decode()
    return f"v1,{mac}" in heard.headers["webhook-signature"].split(" ")


def test_a_webhook_is_signed_by_every_live_secret(run: Run, target: Receiver) -> None:
    """Goal: receivers can check and change over; add, test, rotate, test, take the old secret back, test."""
    code, added, _ = run(
        Channels, "add", "hook", "--kind", "webhook", "--set", f"url={target.url}", "--set", "plain_http=yes"
    )
    assert code == 0
    old = added["secret"]
    assert run(Channels, "test", "hook")[0] == 0
    assert _verified(target, 0, old)
    new = run(Channels, "rotate", "hook")[1]["secret"]
    run(Channels, "test", "hook")
    assert _verified(target, 1, old)
    assert _verified(target, 1, new)
    assert run(Channels, "set", "hook", "--set", "former_secret=")[0] == 0
    run(Channels, "test", "hook")
    assert not _verified(target, 2, old)
    assert _verified(target, 2, new)
    assert json.loads(target.heard[2].body)["type"] == "test"


def test_a_failed_try_is_repeated_under_the_same_id(run: Run, target: Receiver) -> None:
    """Goal: at least once, and receivers can tell; answer 500, then 429, then 200, and let time pass."""
    _hook(target)
    _alert()
    target.answers = [500, 429]
    with clock.held(datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)) as advance:
        assert alerts_tell() == 1
        assert deliveries_send().retried == 1
        assert deliveries_send().delivered == 0  # Not yet.
        advance(datetime.timedelta(seconds=31))
        assert deliveries_send().retried == 1
        advance(datetime.timedelta(seconds=90))
        assert deliveries_send().delivered == 0  # The receiver asked for two minutes.
        advance(datetime.timedelta(seconds=31))
        assert deliveries_send().delivered == 1
    ids = {each.headers["webhook-id"] for each in target.heard}
    assert (len(target.heard), len(ids)) == (3, 1)
    assert len({each.body for each in target.heard}) == 1
    (logged,) = run(Alerts, "deliveries")[1]["data"]
    assert logged["state"] == "delivered"
    assert [each["status"] for each in logged["log"]] == ["channel.failed", "channel.failed", "200"]
    assert Channel.objects.get().failing_since is None


def test_it_gives_up_after_a_bounded_number_of_tries(target: Receiver, monkeypatch: Any) -> None:
    """Goal: a dead receiver costs a bounded number of calls; answer 503 for ever, look at channel and rule."""
    monkeypatch.setattr(delivering, "ATTEMPTS_MAX", 3)
    row = _hook(target)
    _opened(_alert())
    target.answers = [503] * 9
    with clock.held(datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)) as advance:
        for _ in range(6):
            deliveries_send()
            advance(datetime.timedelta(hours=2))
    assert AlertDelivery.objects.get().state == "failed"
    assert len(target.heard) == 3
    row.refresh_from_db()
    assert row.failing_since is not None
    assert "503" in row.error


@pytest.mark.parametrize("status", [302, 404, 410])
def test_what_cannot_become_better_is_not_repeated(target: Receiver, status: int) -> None:
    """Goal: a redirect is not followed and a wrong address not called again; answer with each."""
    row = _hook(target)
    target.answers, target.location = [status], target.url.replace("hook", "elsewhere")
    _opened(_alert())
    assert deliveries_send().failed == 1
    assert [each.path for each in target.heard] == ["/hook"]
    row.refresh_from_db()
    assert str(status) in row.error


def test_a_private_address_behind_a_name_is_refused_when_it_is_called(
    target: Receiver, settings: Any, run: Run
) -> None:
    """Goal: names are judged, too; a channel to `localhost` without an allow-list."""
    run(
        Channels,
        "add",
        "hook",
        "--kind",
        "webhook",
        "--set",
        f"url=http://localhost:{target.server_port}/",
        "--set",
        "plain_http=yes",
    )
    settings.LASTRO_OUTGOING_ALLOW = ()
    code, answer, _ = run(Channels, "test", "hook")
    assert code == 1
    assert answer["data"][0]["status"] == "outgoing.refused"
    assert "LASTRO_OUTGOING_ALLOW" in answer["data"][0]["said"]
    assert target.heard == []


def test_a_channel_that_hangs_holds_up_no_other(target: Receiver, monkeypatch: Any) -> None:
    """Goal: the others hear at once; one that drips for ever beside one that answers, in one turn."""
    monkeypatch.setattr(delivering, "SEND_SECONDS", 1.5)
    with receiver() as slow:
        slow.drip_seconds = 0.1
        _hook(slow, "a-slow")
        _hook(target, "b-good")
        for number in range(3):
            _opened(_alert(number=number))
        done = deliveries_send(seconds=1.0)
    assert (done.delivered, done.retried) == (3, 1)
    assert len(target.heard) == 3
    assert len(slow.heard) == 1


def test_a_channel_gets_no_more_than_its_rate(target: Receiver) -> None:
    """Goal: a room is not flooded; five messages to a channel of two a minute, and a minute later."""
    _hook(target)
    Channel.objects.update(per_minute=2)
    with clock.held(datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)) as advance:
        for number in range(5):
            _opened(_alert(number=number))
        assert deliveries_send().delivered == 2
        advance(datetime.timedelta(seconds=61))
        assert deliveries_send().delivered == 2


def test_a_sender_that_dies_after_sending_sends_again(target: Receiver) -> None:
    """Goal: at least once, the same id; kill between the answer and the record, let the claim run out."""
    _hook(target)
    _opened(_alert())
    killed(deliveries_send, label="alert.sent")
    assert len(target.heard) == 1
    assert AlertDelivery.objects.get().state == "queued"
    assert deliveries_send().delivered == 0  # It is still claimed.
    with clock.held(clock.now() + delivering.CLAIM + datetime.timedelta(seconds=1)):
        assert deliveries_send().delivered == 1
    first, second = target.heard
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_switching_off_drops_what_is_queued(run: Run, target: Receiver) -> None:
    """Goal: nothing old comes when a channel is used again; disable, enable, send."""
    _hook(target)
    _opened(_alert())
    assert run(Channels, "disable", "hook")[0] == 0
    assert run(Channels, "enable", "hook")[0] == 0
    assert deliveries_send().delivered == 0
    assert AlertDelivery.objects.get().state == "dropped"


# ---------------------------------------------------------------- words


def test_no_text_becomes_a_mention_a_header_or_mark_up() -> None:
    """Goal: what a tenant's data says stays text; a hostile message in every form."""
    row = _alert(HOSTILE)
    AlertMessage(kind="opened", rule="backup_failed", severity="critical", count=1, alerts=[row.pk]).save()
    words = words_of(AlertMessage.objects.get())
    assert "\n" not in words.subject + words.lead
    assert "\r" not in words.text
    slack = payload(words)
    assert "<" not in slack["text"]
    assert slack["blocks"][0]["text"]["type"] == "plain_text"
    from operations.alerting.channels import Stamp
    from operations.alerting.channels.mail import EmailConfig, letter

    sent = letter(EmailConfig(to="ops@example.org"), words, Stamp("msg_1", clock.now(), "h")).as_bytes()
    read = message_from_bytes(sent, policy=policy.default)
    assert read["Bcc"] is None
    assert read.get_body(("html",)).get_content().count("<script>") == 0
    assert "&lt;script&gt;" in read.get_body(("html",)).get_content()


def test_the_rule_s_next_step_and_the_number_of_all_are_told() -> None:
    """Goal: nine hundred are one message with something to do; put a group into words."""
    rows = [_alert(f"t{number}/db", number=number, cause="store.unreachable") for number in range(7)]
    message = AlertMessage(
        kind="opened",
        rule="backup_failed",
        cause="store.unreachable",
        severity="critical",
        count=900,
        alerts=[r.pk for r in rows],
    )
    message.save()
    text = words_of(message).text
    assert "900 at once" in text
    assert "and 895 more" in text
    assert "What to do: mend it" in text
    assert f"alert ack {rows[0].pk} --group" in text


# ---------------------------------------------------------------- mail


def _mail(run: Run, box: Mailbox, *given: str) -> None:
    values = (
        "host=127.0.0.1",
        f"port={box.port}",
        "to=ops@example.org,night@example.org",
        "sender=lastro@example.org",
        *given,
    )
    code, answer, _ = run(
        Channels, "add", "mail", "--kind", "email", *(word for each in values for word in ("--set", each))
    )
    assert code == 0, answer


def test_mail_goes_by_starttls_with_a_password(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """Goal: the usual set-up works, and nothing else gets through; right and wrong password, trusted and unknown server."""
    context, pem = certificate(tmp_path, "127.0.0.1")
    with mail_server(starttls=context) as box:
        _mail(run, box, "user=lastro", "password=right")
        code, answer, _ = run(Channels, "test", "mail")
        assert code == 1
        assert "no certificate that this host trusts" in answer["data"][0]["said"]
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert run(Channels, "test", "mail")[0] == 0
        run(Channels, "set", "mail", "--set", "password=wrong")
        code, answer, _ = run(Channels, "test", "mail")
        assert code == 1
        assert "user or password are wrong" in answer["data"][0]["said"]
    (letter,) = box.letters
    read = message_from_bytes(letter.content, policy=policy.default)
    assert letter.rcpt_tos == ["ops@example.org", "night@example.org"]
    assert read["Auto-Submitted"] == "auto-generated"
    assert "this channel works" in read.get_body(("plain",)).get_content()


def test_mail_goes_by_tls_from_the_start(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """Goal: port 465 works; a server that speaks TLS at once."""
    context, pem = certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with mail_server(tls=context) as box:
        _mail(run, box, "security=tls")
        assert run(Channels, "test", "mail")[0] == 0
    assert len(box.letters) == 1


def test_a_server_without_starttls_gets_nothing(run: Run) -> None:
    """Goal: no fall-back to clear text; a plain server, first asked for STARTTLS, then as told without."""
    with mail_server() as box:
        _mail(run, box)
        code, answer, _ = run(Channels, "test", "mail")
        assert code == 1
        assert "nothing was sent" in answer["data"][0]["said"]
        assert box.letters == []
        run(Channels, "set", "mail", "--set", "security=none")
        assert run(Channels, "test", "mail")[0] == 0
    assert len(box.letters) == 1


def test_refused_recipients_are_told(run: Run) -> None:
    """Goal: who hears nothing is known; a server that refuses one, then all, then the letter itself."""
    with mail_server() as box:
        _mail(run, box, "security=none")
        box.refuses = {"night@example.org": "550 no such user"}
        code, answer, _ = run(Channels, "test", "mail")
        assert code == 0
        assert "night@example.org: 550 no such user" in answer["data"][0]["said"]
        box.refuses["ops@example.org"] = "550 gone"
        code, answer, _ = run(Channels, "test", "mail")
        assert code == 1
        assert "every recipient was refused" in answer["data"][0]["said"]
        box.refuses, box.data_answer = {}, "451 try later"
        row = _alert()
        _opened(row)
        assert deliveries_send().retried == 1
        box.data_answer = "554 spam"
        with clock.held(clock.now() + datetime.timedelta(minutes=5)):
            assert deliveries_send().failed == 1
    assert len(box.letters) == 1


def test_the_weekly_report_is_a_letter_that_people_read(run: Run) -> None:
    """Goal: figures and the worst tenants in text and HTML; a report with a hostile slug to a real server."""
    from operations.alerting.notices import report_send

    with mail_server() as box:
        _mail(run, box, "security=none")
        run(Channels, "set", "mail", "--reports", "yes")
        Alert.objects.create(
            rule="backup_failed",
            fingerprint="x",
            tenant="<b>x</b>",
            severity="critical",
            message="m",
            last_seen_at=clock.now(),
        )
        assert report_send(actor="ana") == 1
        assert deliveries_send().delivered == 1
    read = message_from_bytes(box.letters[0].content, policy=policy.default)
    assert read["Subject"].startswith("Lastro: report ")
    plain, html = read.get_body(("plain",)).get_content(), read.get_body(("html",)).get_content()
    assert "tenants with critical alerts: 1" in plain
    assert "<b>x</b> (critical): backup_failed" in plain
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<b>x" not in html


def test_a_slow_mail_server_is_given_up(run: Run, monkeypatch: Any) -> None:
    """Goal: a server that accepts and then sleeps ends in a retry, not in a hang."""
    monkeypatch.setattr(delivering, "SEND_SECONDS", 1.0)
    with mail_server() as box:
        box.hang_seconds = 5
        _mail(run, box, "security=none")
        _opened(_alert())
        assert deliveries_send().retried == 1
    assert "did not answer within" in Channel.objects.get().error


def test_the_relay_of_the_house_needs_no_allow_list(run: Run, settings: Any) -> None:
    """Goal: BACKUP_NOTIFY_EMAIL works with the administrator's own relay; name it in the environment only."""
    settings.LASTRO_OUTGOING_ALLOW = ()
    settings.INHERITED_CHANNELS = {"email": "ops@example.org", "slack": ""}
    run(Channels, "list")
    code, answer, _ = run(Channels, "test", "email")
    assert code == 1
    assert "LASTRO_SMTP_URL" in answer["data"][0]["said"]
    with mail_server() as box:
        settings.LASTRO_SMTP_URL = f"smtp+plain://127.0.0.1:{box.port}"
        assert run(Channels, "test", "email")[0] == 0
    assert len(box.letters) == 1
    settings.LASTRO_SMTP_URL = "smtp+plain://user:pw@127.0.0.1"
    assert "without encryption" in run(Channels, "test", "email")[1]["data"][0]["said"]


# ---------------------------------------------------------------- others


def test_other_services_are_reached_through_the_guard(run: Run, target: Receiver, settings: Any) -> None:
    """Goal: Apprise is no way round; send to a receiver that is allowed, then by name when it is not, then a redirect."""
    url = f"json://localhost:{target.server_port}/x/SECRETTOKEN"
    assert run(Channels, "add", "other", "--kind", "apprise", "--set", f"url={url}")[0] == 0
    assert run(Channels, "test", "other")[0] == 0
    assert "this channel works" in target.heard[0].body.decode()
    settings.LASTRO_OUTGOING_ALLOW = ()
    code, answer, _ = run(Channels, "test", "other")
    assert code == 1
    assert "is not a public address: nothing was sent" in answer["data"][0]["said"]
    assert len(target.heard) == 1
    settings.LASTRO_OUTGOING_ALLOW = LOOPBACK
    target.answers = [500]
    code, answer, _ = run(Channels, "test", "other")
    assert code == 1
    assert "SECRETTOKEN" not in json.dumps(answer)


def test_a_test_of_all_channels_names_each(run: Run, target: Receiver) -> None:
    """Goal: one command tells whether anybody would hear; without a channel, with a good and a bad one."""
    code, answer, _ = run(Alerts, "test")
    assert code == 1
    assert "channel add" in answer["error"]["hint"]
    _hook(target, "good")
    channel_add("bad", kind="webhook", values={"url": "http://127.0.0.1:9/", "plain_http": "yes"}, actor="ana")
    code, answer, _ = run(Alerts, "test")
    assert code == 1
    assert {each["channel"]: each["state"] for each in answer["data"]} == {"good": "delivered", "bad": "failed"}
    assert channel_test("good", actor="ana").state == "queued"
