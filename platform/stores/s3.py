"""Keep objects in a bucket of S3 or of any server that speaks its language.

A create is a conditional put (If-None-Match: *), so the server itself decides between two writers. Every request is
tried once; stores._retry repeats. Objects are checked on their way up by the server (signed SHA-256 and CRC-32) and on
their way down by their length; what they hold is authenticated by the engine.
"""

import datetime
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

from engine.errors import ObjectExists, ObjectMissing, StoreError, StoreUnreachable, UsageError
from engine.ports import Buffer, ObjectInfo
from stores import registry
from stores._keys import check_key, check_prefix, is_key_part
from stores._s3.config import S3Config, client_of
from stores._s3.deleting import Deleter
from stores._s3.errors import code_of, errors_of, status_of
from stores._s3.locks import lock_of, lock_parameters, locked, version_of
from stores._s3.upload import UPLOAD_AGE_MAX, Uploader

MARKER = ".lastro-store"
MARKER_TEXT = b'{"format": "lastro-store", "version": 1}\n'
OWN_FOLDERS = ("r/", "probe/", "catalogue/")
PAGE_KEYS = 1000
EMPTY_PAGES_MAX = 1000
PACED_READ_BYTES = 64 << 10
BUCKET_SEEN_SECONDS = 60.0
"""So long after any answer from the bucket nobody asks whether it is still there."""


_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z")


@registry.register
class S3Store:
    """A store in one bucket, below one prefix; versions and locks as the bucket has them."""

    kind: ClassVar[str] = "s3"
    label: ClassVar[str] = "Amazon S3 or compatible"
    Config: ClassVar[type] = S3Config

    def __init__(self, config: S3Config) -> None:
        """Open without asking the server anything. Raises UsageError for settings that the SDK refuses."""
        self._config, self._bucket, self._root = config, config.bucket, config.root
        self.lock_days = config.lock_days
        try:
            with self._errors("opening", ""):
                self._client = client_of(config)
        except ValueError as error:
            raise UsageError(
                f"the SDK refuses these settings: {str(error)[:200]}", hint="store kinds explains them"
            ) from error
        self._uploader = Uploader(self._client, self._bucket, self._kept_as)
        self._seen = -BUCKET_SEEN_SECONDS
        self._deleter = Deleter(config, self._client, self._head)

    @classmethod
    def make(cls, config: S3Config) -> Self:
        """Mark the place as a store's and open it; one that is a store already stays as it is.

        Raises StoreError when the place holds anything else, so that nothing of anybody's is mixed up.
        """
        store = cls(config)
        place = {"Bucket": store._bucket, "Key": store._root + MARKER}
        try:
            with store._errors("looking for a store", "get_object", key=MARKER):
                store._client.get_object(**place)
            return store
        except ObjectMissing:
            pass
        stranger = store._stranger()
        if stranger is not None:
            raise StoreError(
                f"{config.place} holds something else, for example {stranger[:80]}",
                hint="give the store a folder of its own: --set prefix=lastro",
            )
        with store._errors("marking the store", "put_object"):
            store._client.put_object(**place, Body=MARKER_TEXT)
        return store

    @property
    def pace(self) -> Callable[[int], None] | None:
        """stores._throttle.PacedStore: asked before every piece of a body, both ways."""
        return self._uploader.pace

    @pace.setter
    def pace(self, pace: Callable[[int], None] | None) -> None:
        self._uploader.pace = pace

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        if self.lock_days == 0:
            self._write(key, parts)
            return
        # In a locked bucket a put would hide the locked version behind a new one: only a free key is written to.
        try:
            self._write(key, parts, IfNoneMatch="*")
        except _Taken:
            if self._holds(key, parts):
                return
            self._check_unlocked(key)
            self._write(key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        try:
            self._write(key, parts, IfNoneMatch="*")
        except _Taken:
            if not self._holds(key, parts):
                raise ObjectExists(f"{key} exists already with other content") from None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0 and (length is None or length >= 0), "ranges are not negative"
        check_key(key)
        if length == 0:
            self.stat(key)
            return b""
        wanted = {} if offset == 0 and length is None else {"Range": _range(offset, length)}
        with self._errors(f"reading {key}", "get_object", key=key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._root + key, **wanted)
            except self._client.exceptions.ClientError as error:
                if status_of(error) == 416:
                    return b""  # The offset is at the end or behind it.
                raise
            _check_answer(key, answer, offset, length, ranged=bool(wanted))
            with answer["Body"] as body:  # One that breaks off is an error of the SDK.
                data = body.read() if self.pace is None else _read_paced(body, self.pace)
        if len(data) != answer["ContentLength"]:
            raise StoreUnreachable(
                f"reading {key}: {len(data)} of {answer['ContentLength']} bytes came", hint="try again"
            )
        self._seen = time.monotonic()
        return data

    def stat(self, key: str) -> ObjectInfo:
        answer = self._head(key)
        return ObjectInfo(key=key, size=int(answer["ContentLength"]), modified=_utc(answer["LastModified"]))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a prefix, one page of the server's (1,000) in memory at a time."""
        check_prefix(prefix)
        after: dict[str, Any] = {}
        last, empty = "", 0
        while empty < EMPTY_PAGES_MAX:
            with self._errors(f"listing {prefix or 'the store'}", "list_objects_v2"):
                page = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._root + prefix, MaxKeys=PAGE_KEYS, **after
                )
            found = page.get("Contents", [])
            empty = 0 if found else empty + 1
            if "KeyCount" in page and page["KeyCount"] != len(found) + len(page.get("CommonPrefixes", [])):
                raise StoreUnreachable(f"the listing of {prefix} in {self._config.place} broke off")
            for item in found:
                if not item["Key"].startswith(self._root + prefix):
                    raise StoreError(f"{self._config.place} lists {item['Key'][:80]} below {prefix}")
                key = item["Key"][len(self._root) :]
                if all(map(is_key_part, key.split("/"))):
                    # SeaweedFS walks folders: there `a/x` comes before `a-b`. A reader that counts on the order must hear.
                    if key <= last:
                        raise StoreError(f"{self._config.place} lists {key} behind {last}: out of order")
                    last = key
                    yield ObjectInfo(key=key, size=int(item["Size"]), modified=_utc(item["LastModified"]))
            if not page.get("IsTruncated"):
                return
            if not page.get("NextContinuationToken"):
                raise StoreUnreachable(f"the listing of {prefix} in {self._config.place} does not say how it goes on")
            after = {"ContinuationToken": page["NextContinuationToken"]}
        raise StoreUnreachable(f"the listing of {prefix} in {self._config.place} does not end")

    def delete(self, key: str) -> None:
        """Remove the object; in a bucket with Object Lock its version, so that nothing stays behind.

        In a bucket that only keeps versions the object goes behind a delete marker: what remains is the bucket's to keep.
        """
        self._deleter.delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete up to 1,000 objects a request. Raises ObjectLocked or StoreDenied, with all others gone."""
        self._deleter.delete_many(keys)

    def close(self) -> None:
        self._uploader.close()
        self._client.close()

    # ------------------------------------------------------------ locks and versions

    def locked_until(self, key: str) -> datetime.datetime | None:
        return lock_of(self._head(key))

    def lock(self, key: str, until: datetime.datetime) -> None:
        head = self._head(key)
        held = lock_of(head)
        if held is not None and held >= until:
            return
        mode = head.get("ObjectLockMode") or lock_parameters(self._config, until)["ObjectLockMode"]
        with self._errors(f"locking {key}", "put_object_retention", key=key):
            self._client.put_object_retention(
                Bucket=self._bucket,
                Key=self._root + key,
                **version_of(head),
                Retention={"Mode": mode, "RetainUntilDate": until},
            )

    def purge(self, key: str) -> int:
        return self._deleter.purge(key)

    def keys_kept(self, prefix: str) -> Iterator[str]:
        """Keys below the prefix of which the bucket has any version or marker, those that no listing shows too; sorted."""
        return self._deleter.keys_kept(prefix)

    def clear_stale(self, older_than: datetime.timedelta = UPLOAD_AGE_MAX) -> int:
        """Abort multipart uploads that writers left unfinished so long ago; how many there were."""
        with self._errors("clearing unfinished uploads", "list_multipart_uploads"):
            return self._uploader.clear_stale(self._root, older_than)

    # ------------------------------------------------------------ inner parts

    def _errors(self, doing: str, operation: str, *, key: str | None = None) -> AbstractContextManager[None]:
        return errors_of(self._config.place, doing, operation, key=key)

    def _kept_as(self) -> dict[str, Any]:
        """How a new object is kept: class, encryption, lock."""
        config = self._config
        kept: dict[str, Any] = {}
        if config.storage_class:
            kept["StorageClass"] = config.storage_class
        if config.sse != "none":
            kept["ServerSideEncryption"] = {"s3": "AES256", "kms": "aws:kms"}[config.sse]
        if config.sse_key:
            kept["SSEKMSKeyId"] = config.sse_key
        if config.lock_days:
            now = datetime.datetime.now(datetime.UTC)
            kept |= lock_parameters(config, now + datetime.timedelta(days=config.lock_days))
        return kept

    def _write(self, key: str, parts: Sequence[Buffer], **condition: str) -> None:
        operation = "put_locked" if self.lock_days else "put_object"
        with self._errors(f"writing {key}", operation):
            try:
                self._uploader.write(self._root + key, parts, condition)
            except self._client.exceptions.ClientError as error:
                if condition and (code_of(error) == "PreconditionFailed" or status_of(error) == 412):
                    raise _Taken(key) from None
                raise

    def _holds(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Whether exactly these bytes are stored: our own earlier try, whose reply was lost, or its twin."""
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            return self.stat(key).size == size and self.get(key) == b"".join(parts)
        except ObjectMissing:
            raise StoreUnreachable(f"{key} was taken and is gone again", hint="try again") from None

    def _head(self, key: str) -> Any:
        check_key(key)
        with self._errors(f"looking up {key}", "head_object", key=key):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._root + key)
            except self._client.exceptions.ClientError as error:
                if status_of(error) == 404:
                    self._check_bucket()
                raise
        self._seen = time.monotonic()
        return answer

    def _check_bucket(self) -> None:
        """Raise StoreError when the bucket is gone: the answer to HEAD has no body that would tell that from absence."""
        if time.monotonic() - self._seen < BUCKET_SEEN_SECONDS:
            return
        with self._errors("looking for the bucket", "head_bucket"):
            self._client.head_bucket(Bucket=self._bucket)
        self._seen = time.monotonic()

    def _check_unlocked(self, key: str) -> None:
        try:
            until = self.locked_until(key)
        except ObjectMissing:
            return
        if until is not None:
            raise locked(key, until)

    def _stranger(self) -> str | None:
        """A key under the prefix that is none of ours."""
        with self._errors("looking at what is there", "list_objects_v2"):
            page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._root, MaxKeys=20)
        for item in page.get("Contents", []):
            if not item["Key"][len(self._root) :].startswith(OWN_FOLDERS):
                return str(item["Key"])
        return None


class _Taken(Exception):
    """A conditional put found the key taken."""


def _range(offset: int, length: int | None) -> str:
    return f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"


def _check_answer(key: str, answer: Mapping[str, Any], offset: int, length: int | None, *, ranged: bool) -> None:
    """Raise StoreUnreachable unless the answer announces exactly what was asked for, before any of it is read."""
    announced = answer.get("ContentLength")
    found = _CONTENT_RANGE.match(answer.get("ContentRange") or "")
    if not ranged:
        good = announced is not None
    elif found is None:
        good = False  # Something on the way ignores ranges: its bytes would be others than those asked for.
    else:
        first, last, total = map(int, found.groups())
        wanted = total - offset if length is None else min(length, total - offset)
        good = first == offset and last + 1 - first == wanted == announced
    if not good:
        said = answer.get("ContentRange") or "no range"
        raise StoreUnreachable(
            f"reading {key}: the server announced {announced} bytes ({said}) for {_range(offset, length)}",
            hint="is there a proxy on the way that cuts or ignores ranges?",
        )


def _read_paced(body: Any, pace: Callable[[int], None]) -> bytes:
    pieces = []
    while piece := body.read(PACED_READ_BYTES):
        pace(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)
