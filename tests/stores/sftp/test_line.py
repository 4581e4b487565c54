"""What goes over the line, and what happens when it breaks: sessions, round trips, kills, full disks, garbled answers."""

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.errors import (
    CancelledError,
    ObjectExists,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from engine.ports import Store
from stores._sftp import wire as sftp
from stores._sftp.wire import Reply, Status, Wire
from stores.sftp import SftpStore
from tests.conftest import Rounds
from tests.services.absent import absent
from tests.services.cached_programs import sshd as sshd_program
from tests.services.sshd import Sshd, as_root
from tests.stores.sftp.places import NEW, WRITERS, Asked, made, retried

ROOT = Path(__file__).resolve().parents[3]
root_only = pytest.mark.skipif(not as_root(), reason="only root can give the server a user of its own")


def test_many_threads_share_few_sessions() -> None:
    """Goal: a server with a low limit serves as many threads as come; write and read by sixteen where two may be open."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start(extra="MaxSessions 2")
    try:
        store = made(server.values())

        def work(number: int) -> None:
            store.create(f"k/{number}", [b"x" * 50_000])
            assert store.get(f"k/{number}") == b"x" * 50_000

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(48)))
        assert len(list(store.list("k/"))) == 48
        store.close()
    finally:
        server.discard()


def test_new_session_keys_in_mid_transfer() -> None:
    """Goal: a connection that lives for days goes on; let the server change keys every 2 MiB under three threads."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start(extra="RekeyLimit 2M")
    try:
        store = made(server.values())
        contents = [os.urandom(12 << 20) for _ in range(3)]

        def work(number: int) -> bool:
            store.create(f"k/{number}", [contents[number]])
            return store.get(f"k/{number}") == contents[number]

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(work, range(3))) == [True] * 3
        store.close()
    finally:
        server.discard()


def test_the_pace_is_asked_for_every_byte(store: SftpStore) -> None:
    """Goal: a limit of bandwidth holds inside objects; count what the pace is asked, and stop in the middle of a write."""
    asked: list[int] = []
    store.pace = asked.append
    store.create("k", [b"x" * 500_000])
    assert store.get("k") == b"x" * 500_000
    assert sum(asked) == 1_000_000 and max(asked) < 50_000

    def stop(count: int) -> None:
        asked.append(count)
        if len(asked) > 5:
            raise CancelledError("stopped")

    asked.clear()
    store.pace = stop
    for call in (lambda: store.put("l", [b"y" * 500_000]), lambda: store.get("k")):
        with pytest.raises(CancelledError):
            call()
    store.pace = None
    assert store.get("k") == b"x" * 500_000
    assert [info.key for info in store.list("")] == ["k"]


class Garbled:
    """A channel on which a hostile or broken server speaks."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def sendall(self, s: bytes, /) -> None:
        """Nobody listens."""

    def recv(self, nbytes: int, /) -> bytes:
        piece, self._said = self._said[:nbytes], self._said[nbytes:]
        return piece

    def close(self) -> None:
        """Nothing to close."""


def test_answers_that_are_no_sftp(rng: random.Random, rounds: Rounds) -> None:
    """Goal: a hostile server costs neither memory nor a crash; answer every request with bytes made up or mangled."""
    greeting = b"\x00\x00\x00\x05\x02\x00\x00\x00\x03"
    for _ in rounds(300):
        body = bytes([rng.choice([101, 102, 103, 104, 105, 201])]) + b"\0\0\0\x01" + rng.randbytes(rng.randrange(40))
        wire = Wire(Garbled(greeting + len(body).to_bytes(4, "big") + body + rng.randbytes(rng.randrange(9))))
        with contextlib.suppress(sftp.ProtocolError, EOFError, struct.error, Status):
            (reply,) = wire.ask(sftp.request(sftp.READ, b"h"))
            rng.choice([reply.handle, reply.read, reply.attributes, reply.names, reply.space, reply.done])()
    for said in (b"", b"SSH-2.0 no", b"\xff\xff\xff\xff", greeting[:-1], b"Welcome to this server!\n"):
        with pytest.raises((sftp.ProtocolError, EOFError)):
            Wire(Garbled(said))


# ---------------------------------------------------------------- round trips


def test_the_number_of_round_trips(store: SftpStore, asked: Asked) -> None:
    """Goal: distance costs little; count for each operation how often the line falls silent, whatever the size."""
    store.put("a/first", [b""])
    plug: socket.socket = store._sessions._transport.sock
    assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "else a read waits 40 ms for an acknowledgement"

    def trips(call: Callable[[], object]) -> int:
        asked.round_trips = 0
        call()
        return asked.round_trips

    assert trips(lambda: store.put("a/k", [b"x"])) == 4
    assert trips(lambda: store.create("a/l", [b"x"])) == 4
    assert trips(lambda: store.create("a/m", [b"x" * (3 << 20)])) == 4
    assert trips(lambda: store.get("a/m")) == 2
    assert trips(lambda: store.get("a/m", 100, 1000)) == 2
    assert trips(lambda: store.stat("a/m")) == 1
    assert trips(lambda: store.delete("a/m")) == 3
    for number in range(48):
        store.put(f"b/{number:02x}/k", [b""])
    assert trips(lambda: store.delete_many([f"b/{number:02x}/k" for number in range(32)])) <= 6
    assert trips(lambda: list(store.list("b/"))) <= 3 + 3 * 3 + 1


# ---------------------------------------------------------------- lost connections, kills, faults


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a/k", [NEW]),
    "create": lambda store: store.create("c/new", [NEW]),
    "get": lambda store: store.get("a/k"),
    "stat": lambda store: store.stat("a/k"),
    "delete": lambda store: store.delete("a/k"),
    "list": lambda store: [info.key for info in store.list("")],
}


@pytest.mark.parametrize("name", CALLS)
def test_connections_that_break_at_every_request(name: str, values: dict[str, str], asked: Asked) -> None:
    """Goal: a reply lost at any point leaves whole objects, and a repeat ends well; break before each request in turn."""
    store = made(values)
    broke = 0
    for strike in range(1, 40):
        retried(store).put("a/k", [b"old"])
        retried(store).delete("c/new")
        asked.kinds.clear()

        def cut(wire: Wire, number: int, strike: int = strike) -> None:
            if number == strike:
                channel: Any = wire.channel
                channel.get_transport().sock.close()

        asked.before = cut
        try:
            CALLS[name](store)
        except StoreUnreachable:
            broke += 1
        asked.before = lambda wire, number: None
        again = retried(store)  # A session that broke behind the last answer is noticed by the next request.
        seen = {info.key: again.get(info.key) for info in again.list("")}
        assert seen.get("a/k") in (b"old", NEW, None if name == "delete" else b"old")
        assert seen.get("c/new") in (None, NEW)
        CALLS[name](again)
        if len(asked.kinds) < strike:
            break
    assert broke >= 1
    assert store._sessions._open <= 2, "sessions that broke count no more"
    store.close()


def test_a_server_that_dies_in_mid_transfer(own_server: Sshd) -> None:
    """Goal: neither half an object nor a hang; kill the server's processes under transfers of 64 MiB, then go on."""
    store = made({**own_server.values(), "answer_seconds": "10"})
    whole = os.urandom(64 << 20)
    store.put("whole", [whole])
    calls: list[Callable[[], object]] = [
        lambda: store.put("k", [whole]),
        lambda: store.create("k", [whole]),
        lambda: store.get("whole"),
    ]
    for call in calls:
        cut = threading.Timer(0.1, own_server.cut)
        cut.start()
        with contextlib.suppress(StoreUnreachable):  # On a fast machine it may be through.
            call()
        cut.join()
        assert {info.size for info in retried(store).list("")} == {64 << 20}
    assert retried(store).get("whole") == whole
    store.close()


def test_a_server_that_stops_and_starts(own_server: Sshd) -> None:
    """Goal: an open store outlives its server's restart; stop it, use the store, start it, use it again."""
    store = made(own_server.values())
    store.create("k", [b"x"])
    own_server.stop()
    for call in CALLS.values():
        with pytest.raises(StoreUnreachable) as caught:
            call(store)
        assert caught.value.hint
    own_server.launch()
    assert retried(store).get("k") == b"x"
    store.close()


@pytest.mark.parametrize(
    ("how", "point"),
    [(how, point) for how in WRITERS for point in ("written", "linked" if how == "create" else "renamed")],
)
def test_killed_writers_leave_whole_objects_or_none(
    how: str, point: str, store: SftpStore, values: dict[str, str]
) -> None:
    """Goal: SIGKILL at each labelled point tears nothing and a repeat ends well; kill a writer there, then look."""
    store.put("a/old", [b"old"])
    program = (
        "import json, sys; from engine.adapters import parse_config; from stores.sftp import SftpConfig, SftpStore;"
        "s = SftpStore(parse_config(SftpConfig, json.load(sys.stdin))); getattr(s, sys.argv[1])('a/new', [b'new' * 14_000])"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, how], input=json.dumps(values).encode(),
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "LASTRO_KILL_AT": f"store.sftp.{point}"}, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    shown = {info.key: info.size for info in store.list("")}
    assert shown == {"a/old": 3, **({} if point == "written" else {"a/new": len(NEW)})}
    getattr(store, how)("a/new", [NEW])
    assert store.get("a/new") == NEW


@pytest.mark.parametrize("how", WRITERS)
def test_a_failing_fsync_is_never_acknowledged(
    how: str, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: every fsync counts; answer each one with a failure in turn, and expect an error each time."""
    send, answer = Wire.send, Wire.answer
    syncs: set[int] = set()
    left = 0

    def send_watched(wire: Wire, body: bytes) -> int:
        nonlocal left
        number = send(wire, body)
        if sftp.FSYNC in body[:40]:
            left -= 1
            if left == 0:
                syncs.add(number)
        return number

    def answer_failed(wire: Wire, number: int) -> Reply:
        reply = answer(wire, number)
        return Reply(101, (4).to_bytes(4, "big") + bytes(8)) if number in syncs else reply

    store = made(values)
    monkeypatch.setattr(Wire, "send", send_watched)
    monkeypatch.setattr(Wire, "answer", answer_failed)
    failed_at = 0
    for number in range(1, 12):
        left = number
        syncs.clear()
        try:
            getattr(store, how)(f"a{number}/b/k", [b"x"])
        except StoreError:
            failed_at = number
        if left > 0:
            break
    assert failed_at == 4  # the bytes, two folders' names, the object's name
    store.close()


@root_only
def test_a_full_disk_on_the_server(own_server: Sshd) -> None:
    """Goal: ENOSPC fails cleanly and what was there stays; give the store a file system of 2 MiB."""
    values = own_server.values()
    own_server.mount_small(values, size="3m")
    store = made(values)
    store.create("kept", [b"x" * 300_000])
    for how in WRITERS:
        with pytest.raises(StoreFull) as caught:
            getattr(store, how)("big", [b"x" * 4_000_000])
        assert "full" in caught.value.message and not caught.value.retryable
    assert store.get("kept") == b"x" * 300_000
    assert store.free_bytes() < 3 << 20
    store.create("small", [b"y" * 300_000])
    assert [info.key for info in store.list("")] == ["kept", "small"]
    store.close()


def test_another_writers_bytes_are_never_replaced(values: dict[str, str]) -> None:
    """Goal: the server decides, whoever asks when; let eight processes' worth of stores race for the same keys."""
    stores = [made(values) for _ in range(8)]
    start = threading.Barrier(8)

    def race(number: int) -> list[bool]:
        won = []
        for key in range(10):
            start.wait()
            try:
                stores[number].create(f"race/{key}", [b"%d" % number * 1000])
                won.append(True)
            except ObjectExists:
                won.append(False)
        return won

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    for key in range(10):
        (winner,) = [number for number in range(8) if results[number][key]]
        assert stores[0].get(f"race/{key}") == b"%d" % winner * 1000
    for store in stores:
        store.close()
