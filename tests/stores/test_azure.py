"""The azure store on azurite, behind a proxy that fails, and against answers that only Azure gives."""

import contextlib
import datetime
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

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
from stores._azure.config import AzureConfig
from stores._retry import RetryStore
from stores.azure import AzureStore
from tests.services.absent import absent
from tests.services.azurite import ACCOUNT, CONTAINER, KEY, Azurite, azurite
from tests.services.canned import Answer, CannedServer, canned
from tests.services.fault_proxy import FaultProxy, HttpFault, Operation

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Azurite:
    found = azurite()
    if found is None:
        absent("azurite")
    return found


@pytest.fixture
def answers() -> Iterator[CannedServer]:
    with canned() as server:
        yield server


def opened(values: dict[str, str]) -> AzureStore:
    return AzureStore(parse_config(AzureConfig, values))


def made(values: dict[str, str]) -> AzureStore:
    return AzureStore.make(parse_config(AzureConfig, values))


def canned_store(answers: CannedServer) -> AzureStore:
    return opened(
        {"container": "some", "account": ACCOUNT, "account_key": KEY, "endpoint": f"{answers.endpoint}/{ACCOUNT}"}
    )


def refusal(status: int, code: str, message: str = "said so") -> Answer:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


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
    ("changes", "words"),
    [
        ({"container": "Upper"}, "container"), ({"container": "a--b"}, "container"), ({"prefix": "../x"}, "prefix"),
        ({"prefix": "x" * 300}, "prefix"), ({"account": "No"}, "account"), ({"account_key": "not base64!"}, "base64"),
        ({"account_key": ""}, "exactly one"), ({"sas": "sv=1"}, "exactly one"), ({"endpoint": "ftp://x"}, "endpoint"),
        ({"account_key": "", "connection_string": "nonsense"}, "connection string"), ({"read_seconds": "0"}, "read_seconds"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right(changes: dict[str, str], words: str) -> None:
    """Goal: nonsense is refused before anything is asked; try each."""
    values = {"container": "some", "account": ACCOUNT, "account_key": KEY, **changes}
    with pytest.raises(UsageError) as caught:
        opened({name: value for name, value in values.items() if value})
    assert words in str(caught.value)
    assert KEY not in str(caught.value) and "nonsense" not in str(caught.value)


def sas(rights: str, *, hours: float = 1) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return generate_container_sas(
        ACCOUNT, CONTAINER, account_key=KEY, permission=ContainerSasPermissions.from_string(rights),
        expiry=now + datetime.timedelta(hours=hours), start=now - datetime.timedelta(hours=2),
    )  # fmt: skip


def test_every_way_in(server: Azurite) -> None:
    """Goal: a key, a connection string and a signature open the same place; write by one, read by the others."""
    values = server.values()
    made(values).create("k", [b"x"])
    place = {"container": CONTAINER, "prefix": values["prefix"]}
    ways: list[dict[str, str]] = [
        {"connection_string": server.connection_string},
        {"account": ACCOUNT, "sas": sas("racwdl"), "endpoint": server.endpoint},
        {"account": ACCOUNT, "sas": f"?{sas('rl')}", "endpoint": server.endpoint},
    ]
    for way in ways:
        store = opened({**place, **way})
        assert store.get("k") == b"x"
        assert [info.key for info in store.list("")] == ["k"]
        assert not any(secret in repr(store._config) for secret in way.values() if len(secret) > 40)


@pytest.mark.parametrize(
    ("rights", "denied"),
    [("rl", ("put", "create", "delete")), ("rcl", ("delete",)), ("wdl", ("get",)), ("rcwd", ("list",))],
)
def test_missing_rights_are_named(rights: str, denied: tuple[str, ...], server: Azurite) -> None:
    """Goal: the operator reads which right is missing; use signatures that lack some, through the retries."""
    values = server.values()
    made(values).put("a/k", [b"old"])
    del values["account_key"]
    store = RetryStore(opened({**values, "sas": sas(rights)}), sleep=lambda seconds: None)
    needed = {"put": "write (w)", "create": "create (c)", "get": "read (r)", "list": "list (l)", "delete": "delete (d)"}
    for name in denied:
        with pytest.raises(StoreDenied) as caught:
            CALLS[name](store)
        assert needed[name] in caught.value.hint


def test_wrong_credentials_in_words(server: Azurite) -> None:
    """Goal: a wrong key, a wrong account and a signature that has run out are told apart from outages; try each."""
    values = server.values()
    with pytest.raises(StoreDenied, match="credentials"):
        opened({**values, "account_key": "d3Jvbmc="}).get("k")
    with pytest.raises((StoreDenied, StoreUnreachable)):
        opened({**values, "account": "somebodyelse"}).get("k")
    del values["account_key"]
    with pytest.raises(StoreDenied) as caught:
        opened({**values, "sas": sas("racwdl", hours=-1)}).get("k")
    assert caught.value.hint


# ---------------------------------------------------------------- the container


@pytest.mark.parametrize("name", CALLS)
def test_a_container_that_is_not_there(name: str, server: Azurite) -> None:
    """Goal: a wrong name is never an empty store; ask for each operation, and for making one."""
    values = {**server.values(), "container": "no-such-container"}
    calls: list[Callable[[Store], object]] = [CALLS[name], lambda store: made(values)]
    for call in calls:
        if name == "stat" and call is CALLS[name]:
            continue  # A HEAD has no body that tells the two apart; see below.
        with pytest.raises(StoreError, match="there is no container like that") as caught:
            call(opened(values))
        assert not isinstance(caught.value, ObjectMissing) and not caught.value.retryable


def test_a_look_at_an_object_of_a_lost_container(server: Azurite) -> None:
    """Goal: the same for a look-up, whose answer has only a header."""
    with pytest.raises(StoreError) as caught:
        opened({**server.values(), "container": "no-such-container"}).stat("k")
    assert not isinstance(caught.value, ObjectMissing)


def test_a_place_is_marked_once_and_never_shared(server: Azurite) -> None:
    """Goal: nothing of anybody's is mixed up; make a store twice, and one where something else lies."""
    values = server.values()
    made(values).create("r/x", [b"x"])
    assert [info.key for info in made(values).list("")] == ["r/x"]
    other = server.values()
    opened(other).put("photos/cat.jpg", [b"x"])
    with pytest.raises(StoreError, match="photos/cat"):
        made(other)


def test_blocks_of_a_large_object_are_committed_once(server: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the condition holds where an object goes up in blocks; create one twice, and put over it."""
    monkeypatch.setattr("stores._azure.config.SINGLE_BYTES_MAX", MIB)
    monkeypatch.setattr("stores._azure.config.BLOCK_BYTES", MIB)
    store = made(server.values())
    store.create("k", [b"a" * (3 * MIB + 5)])
    blocks, _ = server.admin.get_blob_client(CONTAINER, f"{store._root}k").get_block_list("all")
    assert [block.size for block in blocks] == [MIB, MIB, MIB, 5]
    store.create("k", [b"a" * (3 * MIB + 5)])
    with pytest.raises(ObjectExists):
        store.create("k", [b"b" * (3 * MIB + 5)])
    store.put("k", [b"c" * (2 * MIB)])
    assert store.get("k") == b"c" * (2 * MIB)


def test_snapshots_go_with_their_blob(server: Azurite) -> None:
    """Goal: what somebody's tool kept beside an object is deleted with it; take a snapshot, delete, purge."""
    store = made(server.values())
    for remove in (store.delete, store.purge):
        store.put("k", [b"x"])
        server.admin.get_blob_client(CONTAINER, f"{store._root}k").create_snapshot()
        remove("k")
        with pytest.raises(ObjectMissing):
            store.get("k")
        assert store.purge("k") == 0


def listing(*blobs: str) -> Answer:
    body = f'<?xml version="1.0"?><EnumerationResults><Blobs>{"".join(blobs)}</Blobs><NextMarker/></EnumerationResults>'
    return Answer(200, body.encode(), {"Content-Type": "application/xml"})


def blob(version: str, *, deleted: bool = False, days: int = 0) -> str:
    gone = f"<Deleted>true</Deleted><RemainingRetentionDays>{days}</RemainingRetentionDays>" if deleted else ""
    return (
        f"<Blob><Name>k</Name>{gone.partition('<Remaining')[0]}<VersionId>{version}</VersionId><Properties>"
        f"<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType>{gone[len('<Deleted>true</Deleted>') :]}</Properties></Blob>"
    )


def test_versions_are_purged_one_by_one(answers: CannedServer) -> None:
    """Goal: every version goes by its id, and soft deletion is waited for; answer as Azure documents it."""
    store, gone = canned_store(answers), Answer(202)
    answers.give(listing(blob("2026-01-01"), blob("2026-01-02")), gone, gone, gone, listing())
    assert store.purge("k") == 2
    deleted = [target for method, target in answers.requests if method == "DELETE"]
    assert [re.findall(r"versionid=([\d-]+)", target) for target in deleted] == [[], ["2026-01-01"], ["2026-01-02"]]
    answers.give(listing(blob("2026-01-02")), gone, gone, listing(blob("2026-01-02", deleted=True, days=7)))
    with pytest.raises(ObjectLocked, match="soft deletion") as caught:
        store.purge("k")
    assert caught.value.until is not None
    assert caught.value.until - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=7)
    answers.give(listing(blob("2026-01-02")), gone, gone, listing(blob("2026-01-02")))
    with pytest.raises(StoreDenied, match="keeps older versions"):
        store.purge("k")


# ---------------------------------------------------------------- answers that only Azure gives


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(403, "AuthenticationFailed"), StoreDenied, "does not accept the credentials"),
        (refusal(403, "AuthorizationFailure"), StoreDenied, "credentials need"),
        (refusal(403, "AuthorizationPermissionMismatch"), StoreDenied, "credentials need"),
        (refusal(409, "BlobImmutableDueToPolicy"), ObjectLocked, "immutability"),
        (refusal(409, "AccountQuotaExceeded"), StoreFull, "limit"),
        (refusal(503, "ServerBusy"), StoreUnreachable, "busy"),
        (refusal(500, "OperationTimedOut"), StoreUnreachable, "busy"),
        (refusal(400, "InvalidHeaderValue"), StoreError, "InvalidHeaderValue"),
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


def test_a_wrong_clock_is_named(answers: CannedServer) -> None:
    """Goal: the operator sets the clock, not the key; refuse as Azure does a date that is too old."""
    detail = "<AuthenticationErrorDetail>Request date header too old: 'Sun, 22 Nov 2020'</AuthenticationErrorDetail>"
    body = f'<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>no</Message>{detail}</Error>'
    answers.give(
        Answer(403, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": "AuthenticationFailed"})
    )
    with pytest.raises(StoreDenied) as caught:
        canned_store(answers).get("k")
    assert "clock" in caught.value.hint


@pytest.mark.parametrize(
    "answer",
    [
        Answer(206, b"abc", {"Content-Range": "bytes 0-9/64"}),
        Answer(206, b"abc", {"Content-Range": "bytes 0-9/64"}, length=10),
    ],
)
def test_bodies_that_are_too_short(answer: Answer, answers: CannedServer) -> None:
    """Goal: fewer bytes than there are is an error that may pass; cut a range short in two ways."""
    answers.give(answer)
    with pytest.raises(StoreUnreachable):
        canned_store(answers).get("k", 0, 10)


def test_something_that_is_not_azure(answers: CannedServer) -> None:
    """Goal: a login page is never an empty store; answer a listing with one."""
    answers.give(Answer(200, b"<html><body>hello</body></html>", {"Content-Type": "text/html"}))
    with pytest.raises(StoreError):
        list(canned_store(answers).list(""))


# ---------------------------------------------------------------- faults on the way


class AzureFaults(FaultProxy):
    """The proxy, told which request of this API is which operation."""

    def begin(self, operation: Operation, key: str) -> HttpFault | None:
        if operation == "get" and "/" not in key:
            operation = "list"
        return super().begin(operation, key)


@pytest.fixture
def proxy(server: Azurite) -> Iterator[FaultProxy]:
    with AzureFaults(server.port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


PASSING: tuple[Any, ...] = ("500", "503", "429", "reset", "lost_reply", "truncated", "timeout")


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_passes(fault: Any, server: Azurite, proxy: FaultProxy) -> None:
    """Goal: no fault on the way loses or doubles anything; strike each operation, and look at the server directly."""
    values = server.values()
    direct = made(values)
    through = {**values, "endpoint": f"{proxy.endpoint}/{ACCOUNT}", "read_seconds": "1"}
    store = RetryStore(opened(through), sleep=lambda seconds: None)
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
def test_a_403_does_not_storm(name: str, server: Azurite, proxy: FaultProxy) -> None:
    """Goal: a refusal is asked for once; refuse each operation for ever."""
    values = server.values()
    made(values).put("a/k", [b"old"])
    store = RetryStore(opened({**values, "endpoint": f"{proxy.endpoint}/{ACCOUNT}"}), sleep=lambda seconds: None)
    proxy.faults = [HttpFault("403", times=99)]
    with pytest.raises(StoreDenied):
        CALLS[name](store)
    assert proxy.struck == 1


def test_a_lost_reply_to_a_create_is_no_conflict(server: Azurite, proxy: FaultProxy) -> None:
    """Goal: the commit that got through counts; lose its reply, repeat with the same bytes, then with others."""
    store = opened({**server.values(), "endpoint": f"{proxy.endpoint}/{ACCOUNT}"})
    proxy.faults = [HttpFault("lost_reply")]
    with pytest.raises(StoreUnreachable):
        store.create("manifests/1", [b"x" * MIB])
    store.create("manifests/1", [b"x" * MIB])
    with pytest.raises(ObjectExists):
        store.create("manifests/1", [b"y" * MIB])


def test_a_server_that_is_not_there() -> None:
    """Goal: an outage is an outage; ask a port where nobody listens."""
    for call in CALLS.values():
        values = {
            "container": "some",
            "account": ACCOUNT,
            "account_key": KEY,
            "endpoint": f"http://127.0.0.1:1/{ACCOUNT}",
        }
        with contextlib.closing(opened(values)) as store, pytest.raises(StoreUnreachable) as caught:
            call(store)
        assert caught.value.hint


def test_a_signature_gets_into_no_message() -> None:
    """Goal: a shared access signature is a secret. Method: nobody listens; the SDK's own error names the whole URL."""
    config = AzureConfig(
        container=CONTAINER, account=ACCOUNT, sas="sv=1&sig=TheSecret", endpoint="http://127.0.0.1:1/x"
    )
    with contextlib.closing(AzureStore(config)) as store, pytest.raises(StoreUnreachable) as caught:
        store.get("r/a/config")
    assert f"/x/{CONTAINER}/r/a/config?…" in str(caught.value)
    assert "TheSecret" not in "".join(traceback.format_exception(caught.value))
