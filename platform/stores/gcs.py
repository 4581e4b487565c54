"""Keep objects in a bucket of Google Cloud Storage.

Of the SDK only credentials and session are used: each object is one request of the JSON API
(https://cloud.google.com/storage/docs/json_api), with its CRC-32C in front, so that Google refuses a damaged upload. A
create asks for `ifGenerationMatch=0`, so the server itself decides between two writers. Every writing request is tried once;
stores._retry repeats. There are no resumable uploads: the engine's objects are 64 MiB at the most.
"""

import base64
import datetime
import json
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, ClassVar, Self
from urllib.parse import quote

from engine.errors import (
    LastroError,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnreachable,
)
from engine.ports import Buffer, ObjectInfo
from stores import registry
from stores._body import Body, check_length
from stores._gcs.config import GcsConfig, session_of
from stores._gcs.errors import errors_of, mapped, no_bucket, said, was_closed
from stores._keys import check_key, check_prefix, is_key_part
from stores._place import LOOK_AT_MAX, MARKER, MARKER_TEXT, mark_place

PAGE_OBJECTS = 1000
DELETE_THREADS = 8
TOKEN_CHARS_MAX = 4096
GENERATIONS_MAX = 10_000


READ_BYTES = 1 << 20


@registry.register
class GcsStore:
    """A store in one bucket, below one prefix."""

    kind: ClassVar[str] = "gcs"
    label: ClassVar[str] = "Google Cloud Storage"
    Config: ClassVar[type] = GcsConfig

    def __init__(self, config: GcsConfig) -> None:
        """Open without asking the server anything. Raises UsageError for a key that is none, StoreDenied without any."""
        self._config, self._root = config, config.root
        self._objects = f"{config.url}/storage/v1/b/{quote(config.bucket, safe='')}/o"
        self._uploads = f"{config.url}/upload/storage/v1/b/{quote(config.bucket, safe='')}/o"
        self._timeout = (config.connect_seconds, config.read_seconds)
        self._session = session_of(config)
        self.pace: Callable[[int], None] | None = None

    @classmethod
    def make(cls, config: GcsConfig) -> Self:
        """Mark the place as a store's and open it; one that is a store already stays as it is."""
        store = cls(config)
        mark_place(
            config.place,
            is_marked=lambda: store._look(MARKER) is not None,
            names=lambda: [item["name"][len(store._root) :] for item in store._page("", LOOK_AT_MAX, "")["items"]],
            mark=lambda: store._create(MARKER, [MARKER_TEXT]),
        )
        return store

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        answer = self._upload(check_key(key), parts, f"writing {key}")
        if answer.status_code != 200:
            raise self._refusal(answer, f"writing {key}", "put")

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._create(check_key(key), parts)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0 and (length is None or length >= 0), "ranges are not negative"
        check_key(key)
        if length == 0:
            self.stat(key)
            return b""
        end = "" if length is None else offset + length - 1
        headers = {} if offset == 0 and length is None else {"Range": f"bytes={offset}-{end}"}
        doing = f"reading {key}"
        with closing(
            self._ask("GET", self._url(key), doing, params={"alt": "media"}, headers=headers, stream=True)
        ) as answer:
            if answer.status_code == 416:
                return b""  # The offset is at the end or behind it.
            if answer.status_code not in (200, 206):
                raise self._absence(answer, key, doing, "get")
            if headers and answer.status_code == 200:
                raise StoreError(
                    f"{self._config.place} does not answer ranges", hint="is a proxy or a cache in between?"
                )
            with errors_of(self._config.place, doing):
                data = _read(answer, length)
        if self.pace is not None:
            self.pace(len(data))
        check_length(key, len(data), answer.headers.get("Content-Range", ""), offset, length)
        return data

    def stat(self, key: str) -> ObjectInfo:
        found = self._look(check_key(key))
        if found is None:
            raise ObjectMissing(f"there is no object {key}")
        return self._info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a prefix, one page of the server's (1,000) in memory at a time."""
        check_prefix(prefix)
        token = ""
        while True:
            page = self._page(prefix, PAGE_OBJECTS, token)
            for item in page["items"]:
                key = item["name"][len(self._root) :]
                if all(map(is_key_part, key.split("/"))):
                    yield self._info(key, item)
            token = page["nextPageToken"]
            if not token:
                return

    def delete(self, key: str) -> None:
        answer = self._ask("DELETE", self._url(check_key(key)), f"deleting {key}")
        if answer.status_code == 404:
            self._check_missing(answer, f"deleting {key}")
        elif answer.status_code not in (200, 204):
            raise self._refusal(answer, f"deleting {key}", "delete")

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects as `delete` does, several at once. Raises the first refusal, with all others gone."""
        with ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="gcs-delete") as pool:
            refused = [each.exception() for each in [pool.submit(self.delete, key) for key in keys]]
        for error in refused:
            if error is not None:
                raise error

    def purge(self, key: str) -> int:
        """Delete every generation of the object, then look whether they are gone.

        Raises ObjectLocked while the bucket's soft deletion keeps any of them, StoreDenied when some were not deleted.
        """
        doing = f"deleting all versions of {check_key(key)}"
        generations = self._generations(key, doing, "versions")
        for item in generations:
            answer = self._ask("DELETE", self._url(key), doing, params={"generation": str(item.get("generation", ""))})
            if answer.status_code not in (200, 204, 404):
                raise self._refusal(answer, doing, "delete")
        if self._generations(key, doing, "versions"):
            raise StoreDenied(
                f"{self._config.place} keeps older versions of {key}", hint="delete them with Google's tools"
            )
        kept = [str(item.get("hardDeleteTime", "")) for item in self._generations(key, doing, "softDeleted")]
        if kept:
            raise _soft_deleted(key, max(kept))
        return len(generations)

    def keys_kept(self, prefix: str) -> Iterator[str]:
        """Keys below the prefix of which the bucket keeps anything, what no listing shows too; some may come twice."""
        check_prefix(prefix)
        for which in ("versions", "softDeleted"):
            last = ""
            for item in self._items(prefix, f"listing what is kept below {prefix}", which):
                name = str(item.get("name", ""))
                if name != last:
                    last = name
                    yield name[len(self._root) :]

    def close(self) -> None:
        self._session.close()

    # ------------------------------------------------------------ inner parts

    def _url(self, key: str) -> str:
        return f"{self._objects}/{quote(self._root + key, safe='')}"

    def _ask(self, method: str, url: str, doing: str, **more: Any) -> Any:
        """One request; a reading one is sent once more when a kept connection turns out to be closed by the server."""
        with errors_of(self._config.place, doing):
            try:
                return self._session.request(method, url, timeout=self._timeout, allow_redirects=False, **more)
            except OSError as error:
                if method != "GET" or not was_closed(error):
                    raise
                return self._session.request(method, url, timeout=self._timeout, allow_redirects=False, **more)

    def _upload(self, key: str, parts: Sequence[Buffer], doing: str, **conditions: str) -> Any:
        boundary = secrets.token_hex(16)
        about = json.dumps({"name": self._root + key, "crc32c": _crc32c(parts)})
        before = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{about}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        body = Body([before.encode(), *parts, f"\r\n--{boundary}--\r\n".encode()], pace=self.pace)
        return self._ask(
            "POST", self._uploads, doing, data=body,
            params={"uploadType": "multipart", "fields": "generation", **conditions},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        )  # fmt: skip

    def _create(self, key: str, parts: Sequence[Buffer]) -> None:
        doing = f"creating {key}"
        answer = self._upload(key, parts, doing, ifGenerationMatch="0")
        if answer.status_code == 412:
            # Our own earlier try whose reply was lost, or its twin, counts as done.
            if not self._holds(key, parts):
                raise ObjectExists(f"{key} exists already with other content")
        elif answer.status_code != 200:
            raise self._refusal(answer, doing, "create")

    def _holds(self, key: str, parts: Sequence[Buffer]) -> bool:
        found = self._look(key)
        if found is None:
            raise StoreUnreachable(f"{key} was there and is gone", hint="somebody deletes meanwhile; run it again")
        size = sum(memoryview(part).nbytes for part in parts)
        if int(found["size"]) != size:
            return False
        answer = self._ask("GET", self._url(key), f"reading {key}", params={"alt": "media"})
        if answer.status_code != 200:
            raise self._refusal(answer, f"reading {key}", "get")
        return bool(answer.content == b"".join(parts))

    def _look(self, key: str) -> Any:
        """Size and time of an object; None when there is none."""
        doing = f"looking up {key}"
        answer = self._ask("GET", self._url(key), doing, params={"fields": "name,size,updated"})
        if answer.status_code == 404:
            self._check_missing(answer, doing)
            return None
        return self._json(answer, doing, "get")

    def _page(self, prefix: str, count: int, token: str) -> Any:
        doing = f"listing {prefix or 'the store'}"
        more = {"pageToken": token} if token else {}
        answer = self._ask(
            "GET", self._objects, doing,
            params={
                "prefix": self._root + prefix, "maxResults": count, "fields": "items(name,size,updated),nextPageToken", **more
            },
        )  # fmt: skip
        if answer.status_code == 404:
            raise no_bucket(self._config.place, doing)
        page = self._json(answer, doing, "list")
        return {"items": page.get("items", []), "nextPageToken": str(page.get("nextPageToken", ""))[:TOKEN_CHARS_MAX]}

    def _generations(self, key: str, doing: str, which: str) -> Sequence[Any]:
        items = self._items(key, doing, which)
        return deque((item for item in items if item.get("name") == self._root + key), maxlen=GENERATIONS_MAX)

    def _items(self, prefix: str, doing: str, which: str) -> Iterator[Any]:
        """Every generation, or everything softly deleted, below a prefix."""
        fields = "items(name,generation,hardDeleteTime),nextPageToken"
        token = ""
        while True:
            more = {"pageToken": token} if token else {}
            params = {"prefix": self._root + prefix, which: "true", "fields": fields, **more}
            page = self._json(self._ask("GET", self._objects, doing, params=params), doing, "list")
            yield from page.get("items", [])
            token = str(page.get("nextPageToken", ""))[:TOKEN_CHARS_MAX]
            if not token:
                return

    def _json(self, answer: Any, doing: str, operation: str) -> Any:
        if answer.status_code != 200:
            raise self._refusal(answer, doing, operation)
        with errors_of(self._config.place, doing):
            found = answer.json()
        if not isinstance(found, dict):
            raise StoreError(
                f"{doing}: {self._config.place} does not answer as Google's storage does", hint="check endpoint"
            )
        return found

    def _info(self, key: str, item: Any) -> ObjectInfo:
        try:
            modified = datetime.datetime.fromisoformat(item["updated"]).astimezone(datetime.UTC)
            return ObjectInfo(key=key, size=int(item["size"]), modified=modified)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self._config.place} describes {key} wrongly", hint="is the endpoint Google's?"
            ) from error

    def _absence(self, answer: Any, key: str, doing: str, operation: str) -> LastroError:
        if answer.status_code != 404:
            return self._refusal(answer, doing, operation)
        self._check_missing(answer, doing)
        return ObjectMissing(f"there is no object {key}")

    def _check_missing(self, answer: Any, doing: str) -> None:
        """Raise StoreError when it is the bucket that is missing: that has the same status as a missing object."""
        if not said(answer)[1].startswith("No such object"):
            self._page("", 1, "")

    def _refusal(self, answer: Any, doing: str, operation: str) -> StoreError:
        if answer.status_code == 404:
            return no_bucket(self._config.place, doing)
        return mapped(answer, self._config.place, doing, operation)


def _soft_deleted(key: str, until: str) -> ObjectLocked:
    try:
        date = datetime.datetime.fromisoformat(until).astimezone(datetime.UTC)
    except ValueError:
        date = None
    return ObjectLocked(
        f"the bucket's soft deletion keeps {key} until {f'{date:%Y-%m-%d %H:%M} UTC' if date else 'a date it does not say'}",
        hint="gcloud storage buckets update gs://BUCKET --clear-soft-delete ends it for what is deleted from then on",
        until=date,
    )


def _read(answer: Any, length: int | None) -> bytes:
    """The body of an answer; no more of it is held than was asked for. Raises StoreUnreachable for a longer one."""
    pieces, size = [], 0
    for piece in answer.iter_content(READ_BYTES):
        size += len(piece)
        if length is not None and size > length:
            raise StoreUnreachable(
                f"more than the {length} bytes came that were asked for", hint="is a proxy in between?"
            )
        pieces.append(piece)
    return b"".join(pieces)


def _crc32c(parts: Sequence[Buffer]) -> str:
    import google_crc32c

    value = 0
    for part in parts:
        value = google_crc32c.extend(value, bytes(part) if not isinstance(part, bytes) else part)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
