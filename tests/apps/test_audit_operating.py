"""Operating the audit log: cutting its oldest part off, sending it on, pages that stay quick."""

import datetime
import json
import re
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from access.services import master_add
from audit import triggers
from audit.checkpoints import checkpoint_make, verifier_key
from audit.deliveries import delivery_name
from audit.export import export
from audit.forwarding import entries_forward
from audit.models import Checkpoint, CheckpointKey, Delivery, Entry, Head
from audit.proofs import consistency_prove, inclusion_prove
from audit.selectors import Filter, entries, entry_list, entry_page
from audit.services import Event, head_get, record, record_many
from audit.syslog import cef, rfc5424
from audit.truncation import LogDamaged, audit_truncate, cut_finish, cut_plan
from audit.verification import audit_verify
from core import clock
from core.errors import Conflict, NotFound
from engine import faults
from engine.errors import UsageError
from tests.apps.test_audit_proofs import _offline

DAY = datetime.timedelta(days=1)


def _history(old: int = 20, new: int = 10) -> datetime.datetime:
    """So many entries of long ago and of now; the time between them."""
    with clock.held(clock.now() - 100 * DAY):
        record_many(Event("test.old", f"old {n}", "ana", data={"n": n}) for n in range(old))
        checkpoint_make()
    record_many(Event("test.new", f"new {n}", "ana") for n in range(new))
    checkpoint_make()
    return clock.now() - DAY


@pytest.fixture
def guarded() -> Iterator[None]:
    triggers.install(connection)
    yield
    triggers.drop(connection)


# ---------------------------------------------------------------- truncation


@pytest.mark.django_db
def test_what_is_cut_off_is_accounted_for(guarded: None, tmp_path: Path) -> None:
    """Goal: the rest verifies, here and by the verifier that others run, with what was exported and without it."""
    before = _history()
    file = tmp_path / "old.ndjson"
    said = audit_truncate(cut_plan(before), actor="ana", export_to=file, reason="too old")
    assert (said["first"], said["upto"]) == (0, 20)
    verdict = audit_verify()
    assert (verdict.findings, verdict.warnings, verdict.first, verdict.size) == ([], [], 20, 31)
    assert list(Entry.objects.order_by("sequence").values_list("sequence", flat=True)) == list(range(20, 31))
    assert not Checkpoint.objects.filter(size__lt=20).exists()
    record("test.new", message="after", actor="ana")
    row = checkpoint_make()
    inclusion_prove(Entry.objects.get(sequence=25), size=row.size)
    consistency_prove(30, row.size)
    with pytest.raises(NotFound):
        consistency_prove(7, row.size)
    rest, notes = tmp_path / "rest.ndjson", tmp_path / "notes"
    rest.write_text("".join(export(entries(Filter()), format="ndjson")))
    notes.write_text("\n".join(Checkpoint.objects.values_list("note", flat=True)))
    key = verifier_key(row.log_id, row.key.public)
    assert _offline(rest, notes, key)[0] == 0
    whole = tmp_path / "whole.ndjson"
    whole.write_text(file.read_text() + rest.read_text())
    code, out = _offline(whole, notes, key)
    assert (code, "32 entries from 0" in out) == (0, True)
    forged = tmp_path / "forged.ndjson"
    forged.write_text(rest.read_text().replace("truncated 0 20", "truncated 0 19"))
    assert _offline(forged, notes, key)[0] == 7
    with pytest.raises(NotFound):
        cut_plan(before)


@pytest.mark.django_db
def test_nothing_else_may_be_deleted(guarded: None) -> None:
    """Goal: the door for truncation is no door for others; try to delete what was not cut off, before and after."""
    before = _history()
    for _ in range(2):
        with pytest.raises(DatabaseError), transaction.atomic():
            Entry.objects.filter(sequence=25).delete()
        with pytest.raises(DatabaseError), transaction.atomic():
            Checkpoint.objects.filter(size__gt=20).delete()
        if head_get().first == 0:  # type: ignore[union-attr]
            audit_truncate(cut_plan(before), actor="ana", export_to=None)
    Head.objects.update(first=30)
    assert not audit_verify().intact


@pytest.mark.django_db
def test_no_cut_hides_an_alteration(tmp_path: Path) -> None:
    """Goal: what is wrong does not go with the cut; alter an old entry, cut."""
    before = _history()
    Entry.objects.filter(sequence=3).update(message="x")
    with pytest.raises(LogDamaged):
        audit_truncate(cut_plan(before), actor="ana", export_to=tmp_path / "old.ndjson")
    assert Entry.objects.count() == 30


@pytest.mark.django_db
def test_cuts_that_cannot_be(tmp_path: Path) -> None:
    """Goal: bad input changes nothing and says why; a file that is there, a time to come, a stale plan."""
    before = _history()
    there = tmp_path / "there"
    there.write_text("mine")
    cut = cut_plan(before)
    with pytest.raises(UsageError, match="is there already"):
        audit_truncate(cut, actor="ana", export_to=there)
    with pytest.raises(UsageError, match="cannot be written"):
        audit_truncate(cut, actor="ana", export_to=tmp_path / "no" / "file")
    with pytest.raises(UsageError, match="still to come"):
        cut_plan(clock.now() + DAY)
    assert there.read_text() == "mine"
    audit_truncate(cut, actor="ana", export_to=None)
    with pytest.raises(Conflict):
        audit_truncate(cut, actor="ana", export_to=None)
    assert audit_verify().intact


class _Killed(BaseException):
    pass


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("label", ["audit.cut_prepared", "audit.cut_recorded", "audit.cut_deleting"])
def test_a_killed_cut_is_finished_by_the_next(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: whole before, whole after, at every write; stop at each point, verify, go on."""
    from audit import truncation

    before = _history()

    def stop(at: str) -> None:
        if at == label:
            raise _Killed

    monkeypatch.setattr(truncation, "kill_point", stop)
    with pytest.raises(_Killed):
        audit_truncate(cut_plan(before), actor="ana", export_to=None)
    monkeypatch.setattr(truncation, "kill_point", faults.kill_point)
    verdict = audit_verify()
    assert verdict.intact, verdict.findings
    assert all(entry.type != "test.old" for entry in entry_list(Filter(), limit=99)) or label == "audit.cut_prepared"
    cut_finish()
    assert Entry.objects.filter(type="test.old").count() == (20 if label == "audit.cut_prepared" else 0)
    assert audit_verify().warnings == []


@pytest.mark.django_db(transaction=True)
def test_a_cut_may_need_two_masters(
    settings: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: nobody shortens the record alone where that was agreed; ask, agree, do it, by the command line."""
    from access.management.commands.approval import Command as Approval
    from access.management.commands.audit import Command

    settings.LASTRO_FOUR_EYES = ("audit",)
    before = _history().isoformat()
    for name in ("ana", "ben"):
        monkeypatch.setenv(f"PW_{name.upper()}", master_add(name, actor="test")[1])

    def run(command: Any, noun: str, *words: str) -> tuple[int, dict[str, Any]]:
        code = command.run([*words, "--json", "--no-input"], noun=noun)
        return code, json.loads(capsys.readouterr().out)

    cut = ("truncate", "--before", before, "--without-export", "--confirm", "audit")
    assert run(Command(), "audit", *cut)[0] == 8
    asked = (*cut, "--master", "ana", "--password", "env:PW_ANA")
    code, answer = run(Command(), "audit", *asked)
    assert (code, answer["error"]["code"]) == (8, "access.approval_needed")
    approval = re.search(r"apr_\w+", answer["error"]["detail"])[0]  # type: ignore[index]
    assert run(Approval(), "approval", "approve", approval, "--master", "ben", "--password", "env:PW_BEN")[0] == 0
    code, answer = run(Command(), "audit", *asked)
    assert (code, answer.get("entries")) == (0, 20)
    assert Entry.objects.filter(type="audit.truncated", user_id="ana").count() == 1
    assert run(Command(), "audit", "verify")[0] == 0


# ---------------------------------------------------------------- pages


@pytest.mark.django_db
def test_pages_together_are_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: looking at a bounded number of entries loses none; small bounds, every filter, against a plain look."""
    from audit import selectors

    monkeypatch.setattr(selectors, "SCAN_ROWS", 7)
    now = clock.now().replace(microsecond=0)
    with clock.held(now - DAY) as advance:
        for n in range(90):
            record(
                ["backup.created", "backup", "backups.x", "restore.done"][n % 4], message=f"m {n % 10}",
                actor=["ana", "ben"][n % 2], tenant=["", "aurora", "boreal"][n % 3], level=["info", "error"][n % 5 == 0],
            )  # fmt: skip
            advance(datetime.timedelta(minutes=1))
    rows = list(Entry.objects.order_by("-sequence"))
    hour = now - DAY + datetime.timedelta(minutes=60)
    wishes: list[tuple[Filter, Callable[[Entry], bool]]] = [
        (Filter(), lambda e: True),
        (Filter(tenant="aurora", text="M 1"), lambda e: e.tenant == "aurora" and e.message == "m 1"),
        (Filter(type="backup"), lambda e: e.type in ("backup", "backup.created")),
        (Filter(type="backup", user="ana"), lambda e: e.type in ("backup", "backup.created") and e.user_id == "ana"),
        (Filter(level="error", until=hour), lambda e: e.level == "error" and e.timestamp < hour),
        (Filter(level="info", since=hour), lambda e: e.level == "info" and e.timestamp >= hour),
        (Filter(since=hour, until=hour + datetime.timedelta(minutes=5)), lambda e: 60 <= e.sequence < 65),
        (Filter(text="m 3", before=50), lambda e: e.message == "m 3" and e.sequence < 50),
        (Filter(type="nothing"), lambda e: False),
        (Filter(type="backup", level="error", tenant="boreal"), lambda e: e.type in ("backup", "backup.created")
         and e.level == "error" and e.tenant == "boreal"),
    ]  # fmt: skip
    for wish, fits in wishes:
        found = entry_list(wish, limit=999)
        assert [e.sequence for e in found] == [e.sequence for e in rows if fits(e)], wish
        assert [e.sequence for e in entries(wish)] == sorted(e.sequence for e in found)
        assert len(entry_page(wish, limit=3).rows) <= 3


# ---------------------------------------------------------------- sending on


class _Receiver(socketserver.ThreadingTCPServer):
    """Takes octet-counted messages, over TLS with a context; keeps what arrived."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.got, self.context, self.deaf = bytearray(), context, False
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def messages(self) -> list[str]:
        """What has arrived, taken apart."""
        found, rest = [], bytes(self.got)
        while rest:
            length, _, rest = rest.partition(b" ")
            found.append(rest[: int(length)].decode())
            rest = rest[int(length) :]
        return found


class _Handler(socketserver.BaseRequestHandler):
    server: _Receiver

    def handle(self) -> None:
        sock = self.request
        if self.server.deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        if self.server.context is not None:
            try:
                sock = self.server.context.wrap_socket(sock, server_side=True)
            except (ssl.SSLError, OSError):
                return
        try:
            while piece := sock.recv(65_536):
                self.server.got += piece
        except (ssl.SSLError, OSError):
            return


@pytest.fixture
def receiving() -> Iterator[Callable[..., _Receiver]]:
    started: list[_Receiver] = []

    def start(context: ssl.SSLContext | None = None) -> _Receiver:
        server = _Receiver(context)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def _fields(entry: Entry) -> dict[str, Any]:
    from audit.canonical import entry_fields

    return entry_fields(entry)


@pytest.mark.django_db
def test_every_entry_arrives_in_order_once_the_receiver_is_there(
    settings: Any, receiving: Callable[..., _Receiver]
) -> None:
    """Goal: gap-free and at least once; a receiver that is away, then resets, then takes all."""
    server = receiving()
    settings.LASTRO_AUDIT_SYSLOG = f"tcp://127.0.0.1:{server.server_address[1]}"
    record_many(Event("test.done", f"done {n}\nline", "ana", "aurora", data={"q": 'a"]b'}) for n in range(1_200))
    server.deaf = True
    with clock.held(clock.now()) as advance:
        failed = entries_forward()
        assert failed is None or failed.error or server.got == b""
        server.deaf = False
        waits = Delivery.objects.get()
        if waits.failures:
            assert entries_forward() is None
            advance(datetime.timedelta(minutes=1))
            Delivery.objects.update(position=0)
        while (done := entries_forward(urgent=True)) is not None and done.behind:
            pass
    numbers = [int(re.search(r'sequence="(\d+)"', each)[1]) for each in server.messages]  # type: ignore[index]
    assert sorted(set(numbers)) == list(range(1_200 + Entry.objects.filter(type="audit.forward_failed").count()))
    first = server.messages[numbers.index(0)]
    assert first.startswith("<110>1 20")
    assert " lastro " in first
    assert "\n" not in first
    record("test.more", message="more", actor="ana")
    done = entries_forward(urgent=True)
    assert done is not None
    assert (done.sent, done.behind) == (1, 0)


@pytest.mark.django_db
def test_tls_is_checked_and_works(settings: Any, receiving: Callable[..., _Receiver], tmp_path: Path) -> None:
    """Goal: nobody in between reads or takes the log; a certificate of nobody, then of the authority that was named."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = receiving(context)
    settings.LASTRO_AUDIT_SYSLOG = f"tls://localhost:{server.server_address[1]}"
    record("test.done", message="m", actor="ana")
    refused = entries_forward(urgent=True)
    assert refused is not None
    assert "certificate" in refused.error
    assert server.got == b""
    settings.LASTRO_AUDIT_SYSLOG_CA = str(certificate)
    done = entries_forward(urgent=True)
    assert done is not None
    assert (done.error, done.behind) == ("", 0)
    assert len(server.messages) == 2  # The entry, and the one that says that nobody could be reached.


@pytest.mark.django_db
def test_datagrams_arrive(settings: Any) -> None:
    """Goal: the oldest way works, too; a receiver of datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        settings.LASTRO_AUDIT_SYSLOG = f"udp://127.0.0.1:{sock.getsockname()[1]}"
        settings.LASTRO_AUDIT_SYSLOG_FORMAT = "CEF"
        record("test.done", message="m", actor="ana")
        entries_forward()
        assert b"CEF:0|Lastro|Lastro|" in sock.recv(65_536)


@pytest.mark.django_db
def test_no_text_breaks_out_of_its_field() -> None:
    """Goal: an entry cannot pretend to be two; the worst texts, parsed by the rules of the formats."""
    evil = 'a"]\\ b|=c\r\n<13>1 forged\x1b[31m\u2028'
    entry = record("test.evil", message=evil, actor=evil, tenant="aurora", level="error", data={evil: evil})
    text = rfc5424(_fields(entry), entry.leaf_hash).decode()
    assert text.startswith("<107>1 ")
    assert "\n" not in text
    parameters = re.search(r'\[lastro@32473((?: [a-z]+="(?:[^"\\\]]|\\["\\\]])*")+)\] \ufeff', text)
    assert parameters is not None
    line = cef(_fields(entry), entry.leaf_hash).decode()
    assert line.isprintable(), "nothing that colours a terminal or ends a line"
    head = re.split(r"(?<!\\)\|", line.partition("CEF:")[2])
    assert len(head) == 8 or head[7:]
    assert re.search(r"(?<!\\)\bmsg=a\"\]\\\\ b\|\\=c\\n<13>1 forged", line)
    for bad in ("http://x", "tcp://", "tcp://u:p@h:1", "tcp://h:99999", "tls://h/x"):
        from audit.syslog import receiver_read

        with pytest.raises(UsageError):
            receiver_read(bad)


@pytest.mark.django_db
def test_keys_are_found_by_a_rotation_of_the_root_key() -> None:
    """Goal: a new root key opens and seals what the log keeps; seal anew, verify under the new one."""
    from audit.sealed_columns import _rewrapped, _rewrapped_key
    from core.rootkey import root_key
    from engine.keys import RootKey, sealed_by

    _history()
    new = RootKey.generate().succeeding(root_key())
    head, key = Head.objects.get(), CheckpointKey.objects.get()
    assert sealed_by(_rewrapped(new, head)) == new.key_id
    assert sealed_by(_rewrapped_key(new, key)) == new.key_id
    assert _rewrapped_key(root_key(), key) == bytes(key.sealed)


def test_receivers_with_long_addresses_have_keys_of_their_own() -> None:
    """Goal: a long address fits where PostgreSQL keeps it, and is nobody else's; two that differ at their ends."""
    most = Delivery._meta.get_field("name").max_length
    first, second = (delivery_name(f"https://witness.example/{'x' * 300}{end}") for end in "ab")
    assert first != second
    assert len(first) == len(second) == most
    assert delivery_name("store:off") == "store:off"
