"""What the s3 store promises beyond the contract: words for refusals, locks, versions, parts, encryption."""

import datetime
import random
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import time_machine

from engine.adapters import parse_config
from engine.errors import (
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnreachable,
    UsageError,
)
from engine.ports import LockingStore, VersionedStore
from stores import s3
from stores._probe import probe_store
from stores._retry import RetryStore
from stores._s3 import upload
from stores._throttle import ThrottleStore, throttled
from stores.local import LocalConfig, LocalStore
from stores.s3 import MARKER, S3Store
from tests.services.moto import Moto
from tests.services.seaweed import APPENDER, LOCKED, READER, VERSIONED, Seaweed

DAY = datetime.timedelta(days=1)


def opened(values: dict[str, str], **more: str) -> S3Store:
    return S3Store(parse_config(S3Store.Config, {**values, **more}))


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture
def store(s3_store_values: dict[str, str]) -> Iterator[S3Store]:
    with closing(opened(s3_store_values)) as store:
        yield store


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bucket": "A"}, "bucket"),
        ({"bucket": "a/b"}, "bucket"),
        ({"region": "eu central"}, "region"),
        ({"endpoint": "127.0.0.1:9000"}, "endpoint"),
        ({"endpoint": "http://user:pw@host"}, "endpoint"),
        ({"endpoint": "http://host/path"}, "endpoint"),
        ({"endpoint": "http://[::1"}, "endpoint"),
        ({"endpoint": "http://a..b"}, "endpoint"),
        ({"endpoint": "http://'; DROP"}, "endpoint"),
        ({"storage_class": "a\nb"}, "storage class"),
        ({"access_key": "a b", "secret_key": "x"}, "access_key"),
        ({"access_key": "a", "secret_key": "x\n"}, "secret_key"),
        ({"prefix": "../up"}, "prefix"),
        ({"prefix": "/"}, "prefix"),
        ({"access_key": "only"}, "go together"),
        ({"sse_key": "k"}, "sse=kms"),
        ({"sse": "aes"}, "not one of"),
        ({"lock_days": "3"}, "lock_mode"),
        ({"lock_mode": "governance", "lock_days": "-1"}, "lock_days"),
        ({"lock_mode": "forever"}, "not one of"),
        ({"read_seconds": "0"}, "read_seconds"),
    ],
)
def test_settings_are_checked_at_the_door(values: dict[str, str], said: str) -> None:
    """Goal: what cannot be right is refused before anything is asked; parse each."""
    with pytest.raises(UsageError, match=said):
        parse_config(S3Store.Config, {"bucket": "bucket", **values})


def test_opening_asks_nothing() -> None:
    """Goal: a command that only looks at rows needs no network; open a store that nobody answers for."""
    opened({"bucket": "bucket", "endpoint": "http://127.0.0.1:9"}).close()


def test_secrets_do_not_show(s3_store_values: dict[str, str]) -> None:
    """Goal: no secret key in a message or a repr; look at both."""
    with closing(opened(s3_store_values, bucket="no-such-bucket")) as store:
        with pytest.raises(StoreError) as raised:
            store.get("k")
        for text in (str(raised.value), repr(store), repr(raised.value)):
            assert s3_store_values["secret_key"] not in text


# ---------------------------------------------------------------- refusals in words


def test_refusals_say_what_is_wrong(s3_server: Seaweed, s3_store_values: dict[str, str]) -> None:
    """Goal: an operator at night knows what to change; get each of them wrong, and read the answer."""
    cases: list[tuple[dict[str, str], type[StoreError], str]] = [
        ({"bucket": "no-such-bucket"}, StoreError, "no bucket like that"),
        ({"secret_key": "wrong"}, StoreDenied, "secret key does not belong"),
        ({"access_key": "nobody"}, StoreDenied, "does not know the access key"),
        ({"endpoint": "http://127.0.0.1:9"}, StoreUnreachable, "127.0.0.1:9"),
    ]
    for change, kind, said in cases:
        with closing(opened(s3_store_values, **change)) as store:
            for operation in (lambda: store.get("k"), lambda: store.put("k", [b""]), lambda: list(store.list(""))):
                with pytest.raises(kind, match=said) as raised:
                    operation()
                assert raised.value.hint


def test_a_bucket_that_is_gone_is_not_an_empty_one(s3_store_values: dict[str, str]) -> None:
    """Goal: nobody takes a lost bucket for lost objects; look one up, which has no body that would tell."""
    with closing(opened(s3_store_values, bucket="no-such-bucket")) as store:
        with pytest.raises(StoreError, match="no bucket") as raised:
            store.stat("k")
        assert not isinstance(raised.value, ObjectMissing)


def test_missing_rights_are_named(s3_server: Seaweed) -> None:
    """Goal: the right that is missing stands in the hint; write as a reader, delete as an appender."""
    bucket = s3_server.bucket()
    s3_server.append_only(bucket)
    reader, appender = opened(s3_server.values(bucket, who=READER)), opened(s3_server.values(bucket, who=APPENDER))
    with pytest.raises(StoreDenied, match="s3:PutObject"):
        reader.create("k", [b""])
    appender.create("k", [b""])
    for delete in (lambda: appender.delete("k"), lambda: appender.delete_many(["k", "other"])):
        with pytest.raises(StoreDenied, match="s3:DeleteObject"):
            delete()
    assert appender.get("k") == b""


def test_a_refusal_does_not_storm(s3_server: Seaweed) -> None:
    """Goal: a 403 is asked once; count the requests of a patient store."""
    reader = opened(s3_server.values(who=READER))
    asked = []
    reader._client.meta.events.register("before-send.s3", lambda **about: asked.append(1))
    with pytest.raises(StoreDenied):
        RetryStore(reader, sleep=lambda seconds: None).put("k", [b"x"])
    assert len(asked) == 1


def test_a_place_that_holds_something_else_is_refused(s3_server: Seaweed) -> None:
    """Goal: nobody's files are mixed up with ours; make a store over some, over none, and over a store."""
    values = s3_server.values()
    s3_server.admin.put_object(Bucket=values["bucket"], Key=f"{values['prefix']}/holiday.jpg", Body=b"x")
    with pytest.raises(StoreError, match=r"holiday\.jpg"):
        S3Store.make(parse_config(S3Store.Config, values))
    config = parse_config(S3Store.Config, {**values, "prefix": f"{values['prefix']}-own"})
    first = S3Store.make(config)
    first.put("r/x/config", [b"x"])
    assert S3Store.make(config).get("r/x/config") == b"x"
    assert [info.key for info in first.list("")] == ["r/x/config"], "the marker is no object of the store"
    assert s3_server.admin.get_object(Bucket=values["bucket"], Key=config.root + MARKER)["Body"].read()


def test_a_wrong_clock_is_named(s3_store_values: dict[str, str]) -> None:
    """Goal: a host whose clock is off is not sent after its credentials; move the clock by two hours."""
    store, then = opened(s3_store_values), now() - datetime.timedelta(hours=2)
    with time_machine.travel(then, tick=True), pytest.raises(StoreDenied, match="clock"):
        store.get("k")


def test_clock_and_region_are_named() -> None:
    """Goal: two set-up errors that no test server makes are told apart by their codes; map the documented answers."""
    from botocore.exceptions import ClientError

    from stores._s3.errors import mapped

    def answer(code: str, status: int, **about: str) -> StoreError:
        reply: Any = {"Error": {"Code": code, **about}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return mapped(ClientError(reply, "x"), "s3://b/", "reading k", "get_object", key="k")

    assert "clock" in answer("RequestTimeTooSkewed", 403).message
    assert "eu-west-1" in answer("AuthorizationHeaderMalformed", 400, Region="eu-west-1").message
    assert "archive class" in answer("InvalidObjectState", 403).message
    assert answer("SlowDown", 503).retryable
    assert answer("TooManyRequests", 429).retryable
    assert answer("ConditionalRequestConflict", 409).retryable
    assert answer("InternalError", 500).retryable
    assert not answer("AccessDenied", 403).retryable


# ---------------------------------------------------------------- large objects


def test_large_objects_go_in_parts(store: S3Store, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: parts make the same object, conditional too; cut small, write, repeat with the same and with other bytes."""
    monkeypatch.setattr(upload, "SINGLE_BYTES_MAX", 6 << 20)
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)
    content = rng.randbytes(12 << 20)
    store.create("data/big", [content[:100], content[100:]])
    assert store.get("data/big") == content
    assert store.get("data/big", 5_000_000, 1_000_000) == content[5_000_000:6_000_000]
    store.create("data/big", [content])
    with pytest.raises(ObjectExists):
        store.create("data/big", [content[:-1] + bytes([content[-1] ^ 1])])
    assert store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=store._root).get("Uploads", []) == []


def test_uploads_that_broke_off_leave_nothing(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: parts of a failed upload are not paid for for ever; fail a part, then leave one as a killed writer does."""
    monkeypatch.setattr(upload, "SINGLE_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)

    def fail(**about: Any) -> None:
        raise OSError("the line is cut")

    store._client.meta.events.register("before-send.s3.UploadPart", fail)
    with pytest.raises(StoreUnreachable, match="cut"):
        store.put("data/big", [bytes(12 << 20)])
    store._client.meta.events.unregister("before-send.s3.UploadPart", fail)
    uploads = {"Bucket": store._bucket, "Prefix": store._root}
    assert store._client.list_multipart_uploads(**uploads).get("Uploads", []) == []
    store._client.create_multipart_upload(Bucket=store._bucket, Key=f"{store._root}data/left")
    assert store.clear_stale() == 0, "it may be somebody's who writes just now"
    assert store.clear_stale(datetime.timedelta(seconds=-60)) == 1
    assert store._client.list_multipart_uploads(**uploads).get("Uploads", []) == []
    assert list(store.list("")) == []


# ---------------------------------------------------------------- locks and versions


def test_locked_objects_stay(s3_server: Seaweed) -> None:
    """Goal: nobody deletes, hides or replaces what is locked; try it all, in both modes."""
    for mode in ("governance", "compliance"):
        store = opened(s3_server.values(LOCKED), lock_mode=mode, lock_days="1")
        assert isinstance(store, LockingStore)
        assert store.lock_days == 1
        store.create("r/a", [b"one"])
        store.put("r/b", [b"two"])
        until = store.locked_until("r/a")
        assert until is not None
        assert abs(until - now() - DAY) < datetime.timedelta(minutes=5)
        for attempt in (
            lambda store=store: store.delete("r/a"),
            lambda store=store: store.put("r/a", [b"other"]),
            lambda store=store: store.purge("r/a"),
            lambda store=store: store.delete_many(["r/none", "r/a", "r/b"]),
        ):
            with pytest.raises(ObjectLocked) as raised:
                attempt()
            assert raised.value.until is not None
            assert abs(raised.value.until - until) < datetime.timedelta(minutes=1)
        assert store.get("r/a") == b"one"
        assert [info.key for info in store.list("")] == ["r/a", "r/b"]
        store.put("r/a", [b"one"])  # A repeat after a lost reply.


def test_locks_are_extended_and_never_shortened(s3_server: Seaweed) -> None:
    """Goal: a date follows retention, upwards only; lock later, then sooner."""
    store = opened(s3_server.values(LOCKED), lock_mode="governance", lock_days="1")
    store.create("r/a", [b"x"])
    later = (now() + 40 * DAY).replace(microsecond=0)
    store.lock("r/a", later)
    store.lock("r/a", now() + 2 * DAY)
    assert store.locked_until("r/a") == later
    with pytest.raises(ObjectMissing):
        store.lock("r/none", later)


def test_what_is_unlocked_again_goes_for_good(s3_server: Seaweed) -> None:
    """Goal: space comes back when a lock has run out; lock for two seconds, delete after them, look for versions."""
    store = opened(s3_server.values(LOCKED), lock_mode="governance")
    store.create("r/a", [b"x"])
    store.lock("r/a", now() + datetime.timedelta(seconds=2))
    until = store.locked_until("r/a")
    assert until is not None
    with pytest.raises(ObjectLocked):
        store.delete("r/a")
    time.sleep(max(0.0, (until - now()).total_seconds()) + 0.1)
    assert store.locked_until("r/a") is None
    store.delete_many(["r/a"])
    assert store.purge("r/a") == 0


def test_versions_are_purged(s3_server: Seaweed) -> None:
    """Goal: a shredded key leaves no version behind; write, replace, delete, then purge in a bucket with versions."""
    store = opened(s3_server.values(VERSIONED))
    assert isinstance(store, VersionedStore)
    store.put("r/keyring", [b"old"])
    store.put("r/keyring", [b"new"])
    store.put("r/keyring2", [b"a neighbour whose name begins alike"])
    store.delete("r/keyring")
    with pytest.raises(ObjectMissing):
        store.get("r/keyring")
    assert store.purge("r/keyring") == 3
    assert store.purge("r/keyring") == 0
    assert store.get("r/keyring2").startswith(b"a neighbour")
    assert probe_store(store).versions


def test_the_probe_of_a_lock_runs_out_soon(s3_server: Seaweed) -> None:
    """Goal: testing a lock leaves nothing for years; probe a bucket with Object Lock and one without."""
    probe = probe_store(opened(s3_server.values(LOCKED), lock_mode="compliance"), lock=True)
    assert probe.usable
    assert probe.locked_until is not None
    assert probe.locked_until - now() < datetime.timedelta(minutes=2)
    plain = probe_store(opened(s3_server.values(), lock_mode="compliance"), lock=True)
    assert [step.name for step in plain.steps if step.state == "failed"] == ["lock"]


# ---------------------------------------------------------------- moto: order, encryption, classes


def test_listings_are_sorted_by_text(moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: keys come as S3 sorts them, across pages; list names around the slash, and some more, in small pages."""
    monkeypatch.setattr(s3, "PAGE_KEYS", 7)
    store = opened(moto_server.values(prefix="p"))
    keys = ["a", "b-c", "b.c", "b/x", "b/x-", "b/y/1", "b0", "b_/z", *(f"z/{number:02d}" for number in range(40))]
    for key in keys:
        store._client.put_object(Bucket=store._bucket, Key=f"p/{key}", Body=b"")
    assert [info.key for info in store.list("")] == sorted(keys)
    store.delete_many(keys[8:])
    assert [info.key for info in store.list("")] == sorted(keys[:8])


def test_encryption_and_class_are_asked_for(moto_server: Moto) -> None:
    """Goal: the server keeps objects as configured; look at what it says of each."""
    key = moto_server.key()
    cases = [
        ({"sse": "s3"}, {"ServerSideEncryption": "AES256"}),
        ({"sse": "kms", "sse_key": key}, {"ServerSideEncryption": "aws:kms"}),
        ({"storage_class": "STANDARD_IA"}, {"StorageClass": "STANDARD_IA"}),
    ]
    for settings, expected in cases:
        store = opened(moto_server.values(**settings))
        store.put("k", [b"x"])
        head = store._client.head_object(Bucket=store._bucket, Key="k")
        assert expected.items() <= head.items()
        assert store.get("k") == b"x"


# ---------------------------------------------------------------- the limit


def test_the_limit_holds_both_ways(s3_store_values: dict[str, str], rng: random.Random) -> None:
    """Goal: transfers stay below the rate, piece by piece; count the pieces that were asked for with a clock of ours."""
    asked: list[int] = []
    store = opened(s3_store_values)
    store.pace = asked.append
    content = rng.randbytes(1 << 20)
    store.put("k", [content])
    assert sum(asked) == len(content), "what is read for the signature is not counted"
    assert max(asked) <= 1 << 18
    asked.clear()
    assert store.get("k") == content
    assert sum(asked) == len(content)


def test_one_limit_for_all_who_open_the_store(s3_store_values: dict[str, str], tmp_path: Any) -> None:
    """Goal: the rate is the process's, not each thread's; open twice under one name, and a kind without pacing."""
    one = throttled(opened(s3_store_values), "sto_test", 1 << 30)
    two = throttled(opened(s3_store_values), "sto_test", 1 << 30)
    assert isinstance(one, S3Store)
    assert isinstance(two, S3Store)
    assert one.pace.__closure__[0].cell_contents is two.pace.__closure__[0].cell_contents  # type: ignore[union-attr,index]
    local = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    assert isinstance(throttled(local, "sto_local", 1 << 30), ThrottleStore)
    assert throttled(local, "sto_local", 0) is local


# ---------------------------------------------------------------- servers that answer something else


def test_answers_to_other_questions_are_refused(
    s3_store_values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a proxy that ignores ranges or lists other keys is met at once; alter what the SDK hands over."""
    store = opened(s3_store_values)
    store.put("k", [b"0123456789"])
    real = store._client.get_object

    def whole(**asked: Any) -> Any:
        asked.pop("Range", None)
        return real(**asked)

    monkeypatch.setattr(store._client, "get_object", whole)
    assert store.get("k") == b"0123456789"
    for offset, length in ((0, 4), (4, None), (2, 3), (0, 10)):
        with pytest.raises(StoreUnreachable, match="announced"):
            store.get("k", offset, length)
    moment = now()
    page = {"Contents": [{"Key": "elsewhere/x", "Size": 1, "LastModified": moment}], "IsTruncated": False}
    monkeypatch.setattr(store._client, "list_objects_v2", lambda **asked: page)
    with pytest.raises(StoreError, match="elsewhere"):
        list(store.list(""))
    again = {"Key": f"{store._root}k", "Size": 1, "LastModified": moment}
    endless = {"Contents": [again], "IsTruncated": True, "NextContinuationToken": "t"}
    monkeypatch.setattr(store._client, "list_objects_v2", lambda **asked: endless)
    with pytest.raises(StoreError, match="out of order"):
        list(store.list(""))
    monkeypatch.setattr(store._client, "list_objects_v2", lambda **asked: {**endless, "Contents": []})
    with pytest.raises(StoreUnreachable, match="does not end"):
        list(store.list(""))
