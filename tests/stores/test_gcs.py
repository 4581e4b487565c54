"""The gcs store on fake-gcs-server, behind a proxy that fails, and against answers that only Google gives."""

import contextlib
import datetime
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from engine.adapters import parse_config
from engine.errors import (
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from engine.ports import Store
from stores._gcs.config import GcsConfig
from stores._retry import RetryStore
from stores.gcs import GcsStore
from tests.services.absent import absent
from tests.services.canned import Answer, CannedServer, canned
from tests.services.fake_gcs import VERSIONED, FakeGcs, fake_gcs
from tests.services.fault_proxy import FaultProxy, HttpFault, Operation

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> FakeGcs:
    found = fake_gcs()
    if found is None:
        absent("fake-gcs-server", remedy="install the project's test extra")
    return found


@pytest.fixture
def answers() -> Iterator[CannedServer]:
    with canned() as server:
        yield server


def opened(values: dict[str, str]) -> GcsStore:
    return GcsStore(parse_config(GcsConfig, values))


def canned_store(answers: CannedServer, **more: str) -> GcsStore:
    return opened({"bucket": "some-bucket", "endpoint": answers.endpoint, "anonymous": "yes", **more})


def refusal(status: int, reason: str, message: str = "said so") -> Answer:
    body = {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a/k", [b"new"]),
    "create": lambda store: store.create("a/new", [b"new"]),
    "get": lambda store: store.get("a/k"),
    "stat": lambda store: store.stat("a/k"),
    "delete": lambda store: store.delete("a/k"),
    "list": lambda store: [info.key for info in store.list("")],
}


# ---------------------------------------------------------------- settings and credentials


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket", "UPPER"), ("bucket", "a"), ("prefix", "/"), ("prefix", "../x"), ("prefix", "x" * 300), ("endpoint", "ftp://x"),
        ("endpoint", "http://x/path"), ("endpoint", "http://u:p@x"), ("connect_seconds", "0"), ("key", "{}"), ("key", "no json"),
        ("anonymous", "perhaps"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right(name: str, value: str) -> None:
    """Goal: nonsense is refused before anything is asked; try each."""
    with pytest.raises(UsageError) as caught:
        opened({"bucket": "some-bucket", **({} if name == "key" else {"anonymous": "yes"}), name: value})
    assert "no json" not in str(caught.value)


def service_key(token_uri: str) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    about = {
        "type": "service_account",
        "client_email": "lastro@example.org",
        "private_key": pem,
        "token_uri": token_uri,
    }
    return json.dumps(about)


def test_a_key_file_is_traded_for_a_token(server: FakeGcs, answers: CannedServer) -> None:
    """Goal: the usual way in works, and the key is nowhere to be read; trade one at a token server, then store."""
    token = {"access_token": "ya29.token", "expires_in": 3600, "token_type": "Bearer"}
    answers.give(Answer(200, json.dumps(token).encode(), {"Content-Type": "application/json"}))
    values = {**server.values(), "key": service_key(f"{answers.endpoint}/token"), "anonymous": "no"}
    store = GcsStore.make(parse_config(GcsConfig, values))
    store.create("k", [b"x"])
    assert store.get("k") == b"x"
    assert answers.requests == [("POST", "/token")]
    assert "PRIVATE" not in repr(store._config)
    store.close()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."),
         StoreDenied, "clock"),
        (("invalid_grant", "Invalid grant: account not found"), StoreDenied, "no token"),
    ],
)  # fmt: skip
def test_a_refused_key_is_said_in_words(
    said: tuple[str, str], kind: type[StoreError], words: str, answers: CannedServer
) -> None:
    """Goal: a deleted account and a wrong clock are told apart; let the token server say each, through the retries."""
    body = json.dumps({"error": said[0], "error_description": said[1]}).encode()
    answers.give(Answer(400, body, {"Content-Type": "application/json"}))
    store = opened(
        {"bucket": "some-bucket", "key": service_key(f"{answers.endpoint}/token"), "endpoint": answers.endpoint}
    )
    with pytest.raises(kind, match=words) as caught:
        RetryStore(store, sleep=lambda seconds: None).get("k")
    assert caught.value.hint
    assert {path for _, path in answers.requests} == {"/token"}


# ---------------------------------------------------------------- the bucket


@pytest.mark.parametrize("name", CALLS)
def test_a_bucket_that_is_not_there(name: str, server: FakeGcs) -> None:
    """Goal: a wrong name is never an empty store; ask for each operation, and for making one."""
    values = {**server.values(), "bucket": "no-such-bucket"}
    for call in (CALLS[name], lambda store: GcsStore.make(store._config)):
        with pytest.raises(StoreError, match="there is no bucket like that") as caught:
            call(opened(values))
        assert not isinstance(caught.value, ObjectMissing) and not caught.value.retryable


def test_a_place_is_marked_once_and_never_shared(server: FakeGcs) -> None:
    """Goal: nothing of anybody's is mixed up; make a store twice, and one where something else lies."""
    values = server.values()
    GcsStore.make(parse_config(GcsConfig, values)).create("r/x", [b"x"])
    again = GcsStore.make(parse_config(GcsConfig, values))
    assert [info.key for info in again.list("")] == ["r/x"]
    other = server.values()
    opened(other).put("photos/cat.jpg", [b"x"])
    with pytest.raises(StoreError, match="photos/cat"):
        GcsStore.make(parse_config(GcsConfig, other))


def test_versions_that_stay_are_not_called_gone(server: FakeGcs) -> None:
    """Goal: a purge that purged nothing says so; the emulator keeps generations whatever is asked."""
    store = GcsStore.make(parse_config(GcsConfig, server.values()))
    store.put("k", [b"x"])
    assert store.purge("k") == 1
    assert store.purge("k") == 0
    kept = GcsStore.make(parse_config(GcsConfig, server.values(VERSIONED)))
    for content in (b"one", b"two"):
        kept.put("k", [content])
    with pytest.raises(StoreDenied, match="keeps older versions"):
        kept.purge("k")
    with pytest.raises(ObjectMissing):
        kept.get("k")


def test_versions_are_purged_one_by_one(answers: CannedServer) -> None:
    """Goal: every generation goes by its number, and soft deletion is waited for; answer as Google documents it."""

    def page(*items: dict[str, str]) -> Answer:
        return Answer(200, json.dumps({"items": list(items)} if items else {}).encode())

    versions = [
        {"name": "p/k", "generation": "11"},
        {"name": "p/k", "generation": "12"},
        {"name": "p/k2", "generation": "13"},
    ]
    gone = Answer(204)
    store = canned_store(answers, prefix="p")
    answers.give(page(*versions), gone, gone, page(versions[2]), page())
    assert store.purge("k") == 2
    deleted = [target for method, target in answers.requests if method == "DELETE"]
    assert [target.rpartition("generation=")[2] for target in deleted] == ["11", "12"]
    soft = {"name": "p/k", "generation": "12", "hardDeleteTime": "2026-12-01T10:00:00.000Z"}
    answers.give(page(versions[1]), gone, page(), page(soft))
    with pytest.raises(ObjectLocked) as caught:
        store.purge("k")
    assert caught.value.until == datetime.datetime(2026, 12, 1, 10, tzinfo=datetime.UTC)
    assert "clear-soft-delete" in caught.value.hint


# ---------------------------------------------------------------- answers that only Google gives


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(401, "authError"), StoreDenied, "service account's key"),
        (refusal(403, "forbidden"), StoreDenied, "credentials need storage.objects"),
        (refusal(403, "retentionPolicyNotMet"), ObjectLocked, "retention policy"),
        (refusal(403, "objectUnderActiveHold"), ObjectLocked, "hold"),
        (refusal(403, "quotaExceeded"), StoreFull, "quota"),
        (refusal(403, "userRateLimitExceeded"), StoreUnreachable, "busy"),
        (refusal(429, "rateLimitExceeded"), StoreUnreachable, "busy"),
        (refusal(503, "backendError"), StoreUnreachable, "busy"),
        (refusal(400, "invalid"), StoreError, "said so"),
        (Answer(502, b"<html>Bad Gateway</html>"), StoreUnreachable, "busy"),
    ],
)
@pytest.mark.parametrize("name", CALLS)
def test_refusals_in_words(
    name: str, answer: Answer, kind: type[StoreError], words: str, answers: CannedServer
) -> None:
    """Goal: each refusal has its type and its next step; give each to each operation and count what is asked."""
    answers.give(answer)
    with pytest.raises(kind) as caught:
        CALLS[name](canned_store(answers))
    assert words in str(caught.value)
    assert len(answers.requests) == 1


def test_absence_in_googles_words_is_asked_once(answers: CannedServer) -> None:
    """Goal: a missing object costs one request where the answer says that it is the object; answer as Google does."""
    answers.give(refusal(404, "notFound", "No such object: some-bucket/k"))
    store = canned_store(answers)
    with pytest.raises(ObjectMissing):
        store.get("k")
    store.delete("k")
    assert len(answers.requests) == 2


@pytest.mark.parametrize(
    "answer", [Answer(200, b"<html>hello</html>"), Answer(200, b"[]"), Answer(200, b'{"items": [{"name": "k"}]}')]
)
def test_something_that_is_not_google(answer: Answer, answers: CannedServer) -> None:
    """Goal: a login page or a proxy is never an empty store; answer listings with each."""
    answers.give(answer)
    with pytest.raises(StoreError):
        list(canned_store(answers).list(""))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(206, b"abc", {"Content-Range": "bytes 0-9/64"}),
        Answer(206, b"abc", {"Content-Range": "bytes 0-9/64"}, length=10),
        Answer(200, b"all of it"),
    ],
)
def test_bodies_that_are_not_what_was_asked(answer: Answer, answers: CannedServer) -> None:
    """Goal: fewer bytes than there are, or others, are an error; cut a range short in two ways, and ignore one."""
    answers.give(answer)
    with pytest.raises(StoreError):
        canned_store(answers).get("k", 0, 10)


# ---------------------------------------------------------------- faults on the way


class GcsFaults(FaultProxy):
    """The proxy, told which request of this API is which operation."""

    def begin(self, operation: Operation, key: str) -> HttpFault | None:
        if operation == "other":
            operation = "put"
        elif operation == "get" and key.endswith("/o"):
            operation = "list"
        return super().begin(operation, key)


@pytest.fixture
def proxy(server: FakeGcs) -> Iterator[FaultProxy]:
    with GcsFaults(server.port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


PASSING: tuple[Any, ...] = ("500", "503", "429", "reset", "lost_reply", "truncated", "timeout")


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_passes(fault: Any, server: FakeGcs, proxy: FaultProxy) -> None:
    """Goal: no fault on the way loses or doubles anything; strike each operation twice, and look at the server directly."""
    values = server.values()
    direct = GcsStore.make(parse_config(GcsConfig, values))
    store = RetryStore(opened({**values, "endpoint": proxy.endpoint, "read_seconds": "1"}), sleep=lambda seconds: None)
    for name, call in CALLS.items():
        if fault == "timeout" and name not in ("get", "create"):
            continue  # Each takes a second.
        direct.put("a/k", [b"old" * 1000])
        direct.delete("a/new")
        proxy.faults = [HttpFault(fault, times=2 if fault != "timeout" else 1, seconds=1.2)]
        result = call(store)
        proxy.faults = []
        assert result == {"get": b"old" * 1000, "list": ["a/k"]}.get(name) or name == "stat" or result is None
        seen = {info.key: direct.get(info.key) for info in direct.list("")}
        expected = {
            "put": {"a/k": b"new"}, "create": {"a/k": b"old" * 1000, "a/new": b"new"}, "delete": {},
        }.get(name, {"a/k": b"old" * 1000})  # fmt: skip
        assert seen == expected, (name, fault)
    direct.close()


@pytest.mark.parametrize("name", CALLS)
def test_a_403_does_not_storm(name: str, server: FakeGcs, proxy: FaultProxy) -> None:
    """Goal: a refusal is asked for once; refuse each operation for ever."""
    values = server.values()
    GcsStore.make(parse_config(GcsConfig, values)).put("a/k", [b"old"])
    store = RetryStore(opened({**values, "endpoint": proxy.endpoint}), sleep=lambda seconds: None)
    proxy.faults = [HttpFault("403", times=99)]
    with pytest.raises(StoreDenied):
        CALLS[name](store)
    assert proxy.struck == 1


def test_a_lost_reply_to_a_create_is_no_conflict(server: FakeGcs, proxy: FaultProxy) -> None:
    """Goal: the commit that got through counts; lose its reply, repeat with the same bytes, then with others."""
    values = server.values()
    store = opened({**values, "endpoint": proxy.endpoint})
    proxy.faults = [HttpFault("lost_reply")]
    with pytest.raises(StoreUnreachable):
        store.create("manifests/1", [b"x" * MIB])
    store.create("manifests/1", [b"x" * MIB])
    with pytest.raises(ObjectExists):
        store.create("manifests/1", [b"y" * MIB])


def test_a_server_that_is_not_there(answers: CannedServer) -> None:
    """Goal: an outage is an outage; ask a port where nobody listens."""
    store = opened({"bucket": "some-bucket", "endpoint": "http://127.0.0.1:1", "anonymous": "yes"})
    for call in CALLS.values():
        with contextlib.closing(store), pytest.raises(StoreUnreachable) as caught:
            call(store)
        assert caught.value.hint


def test_a_connection_that_the_server_closed_meanwhile(server: FakeGcs, proxy: FaultProxy) -> None:
    """Goal: a kept connection that is gone is no outage for a reader; reset one, without any retries around."""
    store = GcsStore.make(parse_config(GcsConfig, {**server.values(), "endpoint": proxy.endpoint}))
    store.put("k", [b"x"])
    proxy.faults = [HttpFault("reset")]
    assert store.get("k") == b"x"
    proxy.faults = [HttpFault("reset", times=2)]
    with pytest.raises(StoreUnreachable):
        store.get("k")
    proxy.faults = [HttpFault("reset")]
    with pytest.raises(StoreUnreachable):
        store.put("k", [b"y"])
