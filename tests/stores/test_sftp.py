"""The sftp store on a real OpenSSH: host keys, credentials, lost connections, kills, full and vanished disks."""

import contextlib
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.adapters import parse_config
from engine.errors import (
    CancelledError,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from engine.ports import Store
from stores._retry import RetryStore
from stores._sftp import wire as sftp
from stores._sftp.config import SftpConfig
from stores._sftp.wire import Reply, Status, Wire
from stores.sftp import TEMP_AGE_MAX_SECONDS, SftpStore
from tests.conftest import Rounds
from tests.services.absent import absent
from tests.services.cached_programs import sshd as sshd_program
from tests.services.sshd import PASSWORD, Sshd, as_root, new_key, sshd

ROOT = Path(__file__).resolve().parents[2]
WRITERS = ("put", "create")
NEW = b"new" * 14_000  # two blocks of the wire
root_only = pytest.mark.skipif(not as_root(), reason="only root can give the server a user of its own")


@pytest.fixture(scope="module")
def server() -> Sshd:
    found = sshd()
    if found is None:
        absent("sshd")
    return found


@pytest.fixture
def own_server() -> Iterator[Sshd]:
    """A server that this test may stop and cut."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start()
    yield server
    server.discard()


@pytest.fixture
def values(server: Sshd) -> dict[str, str]:
    return server.values()


@pytest.fixture
def store(values: dict[str, str]) -> Iterator[SftpStore]:
    store = made(values)
    yield store
    store.close()


def config(values: Mapping[str, str]) -> SftpConfig:
    parsed: SftpConfig = parse_config(SftpConfig, values)
    return parsed


def made(values: Mapping[str, str]) -> SftpStore:
    return SftpStore.make(config(values))


def opened(values: Mapping[str, str]) -> SftpStore:
    return SftpStore(config(values))


def retried(store: Store) -> RetryStore:
    return RetryStore(store, sleep=lambda seconds: time.sleep(min(seconds, 0.05)))


# ---------------------------------------------------------------- the host key


def test_a_host_key_is_never_learned_in_silence(values: dict[str, str], server: Sshd) -> None:
    """Goal: the operator compares and decides; add a store without a host key, then as the refusal says."""
    asked = {**values, "host_key": ""}
    with pytest.raises(UsageError) as caught:
        made(asked)
    told = subprocess.run(
        ["ssh-keygen", "-lf", server.folder / "host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert told in caught.value.message
    assert not server.path(values).exists()
    line = caught.value.hint.rpartition("host_key='")[2].rstrip("'")
    made({**values, "host_key": line}).close()


@pytest.mark.parametrize("form", ["a .pub line", "a line of ssh-keyscan", "a fingerprint", "with others"])
def test_forms_of_a_host_key(form: str, values: dict[str, str]) -> None:
    """Goal: what tools print can be pasted; open by each form."""
    kind, text = values["host_key"].split()[:2]
    printed = next(iter(config(values).host_keys()))
    key = {
        "a .pub line": f"{kind} {text} root@server",
        "a line of ssh-keyscan": f"# comment\n[127.0.0.1]:22 {kind} {text}",
        "a fingerprint": printed,
        "with others": f"{new_key()[1]}\n\n{printed}",
    }[form]
    made({**values, "host_key": key}).close()


def test_a_server_with_several_host_keys(own_server: Sshd) -> None:
    """Goal: whichever of its keys the operator compared is the one that counts; know each by line and by fingerprint."""
    others = own_server.add_host_keys()
    for line in others:
        fingerprint = next(iter(config({**own_server.values(), "host_key": line}).host_keys()))
        for known in (line, fingerprint):
            made({**own_server.values(), "host_key": known}).close()
    stranger = next(iter(config({**own_server.values(), "host_key": new_key()[1]}).host_keys()))
    with pytest.raises(StoreDenied, match="is not the server that is known"):
        made({**own_server.values(), "host_key": stranger})


def test_another_server_gets_nothing(own_server: Sshd) -> None:
    """Goal: no password and no key goes to somebody in between; know another host key, and read the server's log."""
    values = {**own_server.values(), "host_key": new_key()[1]}
    with pytest.raises(StoreDenied, match="is not the server that is known") as caught:
        made(values)
    assert "SHA256:" in caught.value.message and "in between" in caught.value.hint
    log = (own_server.folder / "log").read_text()
    assert "Accepted" not in log and "Failed" not in log and "for user" not in log


# ---------------------------------------------------------------- settings and credentials


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""), ("host", "a b"), ("user", "a\nb"), ("port", "0"), ("port", "70000"), ("folder", ""), ("folder", "/"),
        ("folder", ".."), ("folder", "a\nb"), ("host_key", "nonsense"), ("host_key", "ssh-ed25519 AAAA"), ("key", ""),
        ("key", "no key at all"), ("connect_seconds", "0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right(name: str, value: str, values: dict[str, str]) -> None:
    """Goal: nonsense is refused before anything is sent; try each, and look for the key in the message."""
    with pytest.raises(UsageError) as caught:
        made({**values, name: value})
    assert "PRIVATE KEY" not in str(caught.value)


def test_keys_under_a_passphrase(values: dict[str, str], server: Sshd) -> None:
    """Goal: a key need not lie open; open with the right passphrase, a wrong one and none."""
    private, public = new_key("secret words")
    with open(server.folder / "authorized_keys", "a") as keys:
        keys.write(f"\n{public}\n")
    made({**values, "key": private, "key_passphrase": "secret words"}).close()
    with pytest.raises(UsageError, match="passphrase"):
        made({**values, "key": private})
    with pytest.raises(UsageError, match="passphrase is another one"):
        made({**values, "key": private, "key_passphrase": "other words"})


@root_only
def test_a_password_serves_too(values: dict[str, str]) -> None:
    """Goal: servers without keys can be used; open by password alone, then by a wrong one."""
    del values["key"]
    store = made({**values, "password": PASSWORD})
    store.create("k", [b"x"])
    store.close()
    with pytest.raises(StoreDenied, match="refuses user"):
        made({**values, "password": "wrong"})


@pytest.mark.parametrize("wrong", ["key", "user"])
def test_refused_credentials_are_tried_once(wrong: str, own_server: Sshd) -> None:
    """Goal: a wrong key locks nobody out; open through the retries with a stranger's key and as nobody, and count."""
    values = {**own_server.values(), **({"key": new_key()[0]} if wrong == "key" else {"user": "nobody-of-that-name"})}
    with pytest.raises(StoreDenied) as caught:
        made(values)
    assert "authorized_keys" in caught.value.hint
    log = (own_server.folder / "log").read_text()
    assert log.count("Failed publickey") + log.count("Invalid user") == 1


def test_an_unreachable_server_is_said_in_words(values: dict[str, str]) -> None:
    """Goal: a wrong port, a wrong name and something that is no SSH server are told apart from refusals; open each."""
    from tests.services.fake_gcs import fake_gcs

    other = fake_gcs()
    wrong = [{"port": "1"}, {"host": "no-such-host.invalid"}, *([{"port": str(other.port)}] if other else [])]
    for each in wrong:
        with pytest.raises(StoreUnreachable) as caught:
            made({**values, **each, "connect_seconds": "2"})
        assert caught.value.hint and caught.value.retryable


@root_only
def test_missing_rights_are_named(values: dict[str, str], server: Sshd) -> None:
    """Goal: a folder that may not be written is a refusal, not an outage; take the right away."""
    store = made(values)
    store.create("a/k", [b"x"])
    folder = server.path(values)
    for path in (folder / ".tmp", folder / "a"):
        path.chmod(0o500)
    calls: list[Callable[[], object]] = [lambda: store.put("a/k", [b"y"]), lambda: store.delete("a/k")]
    for call in calls:
        with pytest.raises(StoreDenied) as caught:
            call()
        assert values["user"] in caught.value.hint
    (folder / "a").chmod(0o700)
    (folder / "a" / "k").chmod(0)
    with pytest.raises(StoreDenied):
        store.get("a/k")
    store.close()


@pytest.mark.parametrize("missing", ["hardlink", "posix-rename", "fsync", "statvfs"])
def test_a_server_that_cannot_decide_is_refused(missing: str) -> None:
    """Goal: no manifests where two writers could both win or an fsync is not to be had; forbid each extension in turn."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start(options=f"-P {missing}")
    try:
        with pytest.raises(StoreError, match=f"{missing}@openssh.com") as caught:
            made(server.values())
        assert "OpenSSH" in caught.value.hint
    finally:
        server.discard()


# ---------------------------------------------------------------- the place


def operations(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a/k"),
        lambda: store.stat("a/k"),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/k"),
        lambda: store.put("a/k", [b"y"]),
        lambda: store.create("a/l", [b"y"]),
    ]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_vanished_folder_is_no_empty_store(left: str, values: dict[str, str], server: Sshd) -> None:
    """Goal: a disk that is not mounted on the server never looks like deleted backups; take the folder away."""
    store = made(values)
    store.put("a/k", [b"x"])
    folder = server.path(values)
    folder.rename(folder.with_name(f"{folder.name}-elsewhere"))
    if left == "an empty folder":
        folder.mkdir()
        os.chown(folder, *(os.stat(server.home)[4:6] if as_root() else (-1, -1)))
    calls: list[Callable[[], object]] = [*operations(store), lambda: opened(values).stat("a/k")]
    for operation in calls:
        with pytest.raises(StoreUnreachable) as caught:
            operation()
        assert caught.value.hint
    if left == "an empty folder":
        assert os.listdir(folder) == []
        folder.rmdir()
    folder.with_name(f"{folder.name}-elsewhere").rename(folder)
    store.put("b/k", [b"z"])
    assert [info.key for info in store.list("")] == ["a/k", "b/k"]
    store.close()


def test_opening_makes_nothing(values: dict[str, str], server: Sshd) -> None:
    """Goal: a store begins only where one was added; open what is none."""
    with pytest.raises(StoreUnreachable):
        opened(values).put("k", [b"x"])
    assert not server.path(values).exists()


def test_everything_is_private_and_durable_in_order(values: dict[str, str], server: Sshd, asked: "Asked") -> None:
    """Goal: bytes, then name, then folder, and nobody else reads them; look at the requests of a create, and at the modes."""
    store = made({**values, "folder": f"{values['folder']}/new/deeper"})
    asked.kinds.clear()
    store.create("a/b/k", [b"x" * 100_000])
    order = [kind for kind in asked.kinds if kind in ("write", "fsync", "hardlink@openssh.com", "mkdir")]
    assert order == ["write"] * 4 + ["fsync", "mkdir", "fsync", "mkdir", "fsync", "hardlink@openssh.com", "fsync"]
    if as_root():
        made_of = list(server.path(values).rglob("*"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in made_of if path.is_dir()} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in made_of if path.is_file()} == {0o600}
    store.close()


def test_stale_temporary_files_are_cleared_on_opening(values: dict[str, str], server: Sshd) -> None:
    """Goal: killed writers' leftovers do not pile up, running writers keep theirs; open over one of each."""
    made(values).close()
    temp = server.path(values) / ".tmp"
    for name, age in (("old", TEMP_AGE_MAX_SECONDS + 60), ("young", TEMP_AGE_MAX_SECONDS - 60)):
        (temp / name).write_bytes(b"half")
        os.utime(temp / name, times=(time.time() - age,) * 2)
    assert list(opened(values).list("")) == []
    assert os.listdir(temp) == ["young"]


def test_only_objects_are_listed_and_read(store: SftpStore, values: dict[str, str], server: Sshd) -> None:
    """Goal: what is not an object never shows, and a pipe blocks nobody; put links, pipes and dot files beside one."""
    store.put("a/k", [b"x"])
    folder = server.path(values)
    (folder / "lost+found").mkdir()
    (folder / "a" / ".hidden").write_bytes(b"")
    (folder / "a" / "link").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to("/etc")
    os.mkfifo(folder / "a" / "pipe")
    assert [info.key for info in store.list("")] == ["a/k"]
    for key in ("a/link", "a/pipe", "linked", "a"):
        with pytest.raises(ObjectMissing):
            store.get(key)
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", [b"x"]),
        lambda: store.create("a", [b"x"]),
        lambda: store.put("a/k/l", [b"x"]),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="folder"):
            call()
    assert store.get("a/k") == b"x"


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


class Asked:
    """What went over the wire: kinds of requests, and how often an answer was waited for with nothing more to send."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        self.round_trips = 0
        self.before: Callable[[Wire, int], None] = lambda wire, number: None
        self._sent = False
        send, packet = Wire.send, Wire._packet
        names = {sftp.WRITE: "write", sftp.MKDIR: "mkdir", sftp.OPEN: "open"}

        def send_watched(wire: Wire, body: bytes) -> int:
            self._sent = True
            kind = names.get(body[0], str(body[0]))
            if body[0] == sftp.EXTENDED:
                kind = body[5 : 5 + body[4]].decode()
            self.kinds.append("fsync" if kind == "fsync@openssh.com" else kind)
            self.before(wire, len(self.kinds))
            return send(wire, body)

        def packet_watched(wire: Wire) -> tuple[int, bytes]:
            self.round_trips += self._sent
            self._sent = False
            return packet(wire)

        monkeypatch.setattr(Wire, "send", send_watched)
        monkeypatch.setattr(Wire, "_packet", packet_watched)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_the_number_of_round_trips(store: SftpStore, asked: Asked) -> None:
    """Goal: distance costs little; count for each operation how often the line falls silent, whatever the size."""
    store.put("a/first", [b""])

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
