"""Keep objects as block blobs in a container of Azure Blob Storage.

A create is a put with `If-None-Match: *`, so the server itself decides between two writers; objects over 32 MiB go up in
blocks, and the request that commits them carries the condition. Every request is tried once; stores._retry repeats.
"""

import datetime
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, ClassVar, Self

from engine.errors import ObjectExists, ObjectLocked, ObjectMissing, StoreDenied, StoreUnreachable
from engine.ports import Buffer, ObjectInfo
from stores import registry
from stores._azure.config import AzureConfig, client_of
from stores._azure.errors import errors_of
from stores._body import check_length
from stores._keys import check_key, check_prefix, is_key_part
from stores._place import LOOK_AT_MAX, MARKER, MARKER_TEXT, mark_place

PAGE_OBJECTS = 1000
BLOCKS_AT_ONCE = 4
DELETE_THREADS = 8
VERSIONS_MAX = 10_000


@registry.register
class AzureStore:
    """A store in one container, below one prefix."""

    kind: ClassVar[str] = "azure"
    label: ClassVar[str] = "Azure Blob Storage"
    Config: ClassVar[type] = AzureConfig

    def __init__(self, config: AzureConfig) -> None:
        """Open without asking the server anything. Raises UsageError for a connection string that is none."""
        self._config, self._root = config, config.root
        self._container = client_of(config)

    @classmethod
    def make(cls, config: AzureConfig) -> Self:
        """Mark the place as a store's and open it; one that is a store already stays as it is."""
        store = cls(config)
        mark_place(
            config.place, is_marked=store._is_marked, names=store._first_names,
            mark=lambda: store._write(MARKER, [MARKER_TEXT], "create"),
        )  # fmt: skip
        return store

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._write(check_key(key), parts, "put")

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        try:
            self._write(check_key(key), parts, "create")
        except ObjectExists:
            # Our own earlier try whose reply was lost, or its twin, counts as done.
            if not self._holds(key, parts):
                raise ObjectExists(f"{key} exists already with other content") from None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0 and (length is None or length >= 0), "ranges are not negative"
        check_key(key)
        if length == 0:
            self.stat(key)
            return b""
        from azure.core.exceptions import HttpResponseError

        with self._errors(f"reading {key}", "get", key=key):
            try:
                stream = self._blob(key).download_blob(offset=offset, length=length)
            except HttpResponseError as error:
                if error.status_code == 416:
                    return b""  # The offset is at the end or behind it.
                raise
            data: bytes = stream.readall()
        check_length(key, len(data), stream.properties.content_range or "", offset, length)
        return data

    def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        with self._errors(f"looking up {key}", "get", key=key):
            return _info(key, self._blob(key).get_blob_properties())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a prefix, one page of the server's (1,000) in memory at a time."""
        check_prefix(prefix)
        pages = self._container.list_blobs(
            name_starts_with=self._root + prefix, results_per_page=PAGE_OBJECTS
        ).by_page()
        while True:
            with self._errors(f"listing {prefix or 'the store'}", "list"):
                page = next(pages, None)
                found = None if page is None else [*page]
            if found is None:
                return
            for blob in found:
                key = blob.name[len(self._root) :]
                if all(map(is_key_part, key.split("/"))):
                    yield _info(key, blob)

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            with self._errors(f"deleting {key}", "delete", key=key):
                self._blob(key).delete_blob(delete_snapshots="include")
        except ObjectMissing:
            pass

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects as `delete` does, several at once. Raises the first refusal, with all others gone."""
        with ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="azure-delete") as pool:
            refused = [each.exception() for each in [pool.submit(self.delete, key) for key in keys]]
        for error in refused:
            if error is not None:
                raise error

    def purge(self, key: str) -> int:
        """Delete the blob with its snapshots and versions, then look whether they are gone.

        Raises ObjectLocked while the account's soft deletion keeps any of them, StoreDenied when some were not deleted.
        """
        doing = f"deleting all versions of {check_key(key)}"
        there = self._versions(key, doing)
        self.delete(key)
        for blob in there:
            if blob.version_id and not blob.deleted:
                self._delete_version(key, blob.version_id, doing)
        left = self._versions(key, doing)
        if any(not blob.deleted for blob in left):
            raise StoreDenied(
                f"{self._config.place} keeps older versions of {key}", hint="delete them with Azure's tools"
            )
        if left:
            days = max(int(blob.remaining_retention_days or 0) for blob in left) + 1
            until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
            raise ObjectLocked(
                f"the account's soft deletion keeps {key} until {until:%Y-%m-%d %H:%M} UTC",
                hint="turn soft deletion for blobs off for what is deleted from then on", until=until,
            )  # fmt: skip
        return sum(not blob.deleted for blob in there)

    def keys_kept(self, prefix: str) -> Iterator[str]:
        """Keys below the prefix of which the container keeps anything, what no listing shows too; sorted."""
        check_prefix(prefix)
        last = ""
        pages = self._container.list_blobs(
            name_starts_with=self._root + prefix, include=["versions", "snapshots", "deleted"]
        ).by_page()
        while True:
            with self._errors(f"listing what is kept below {prefix}", "list"):
                page = next(pages, None)
                found = None if page is None else [*page]
            if found is None:
                return
            for blob in found:
                if blob.name != last:
                    last = blob.name
                    yield last[len(self._root) :]

    def close(self) -> None:
        self._container.close()

    # ------------------------------------------------------------ inner parts

    def _errors(self, doing: str, operation: str, *, key: str | None = None) -> AbstractContextManager[None]:
        return errors_of(self._config.place, doing, operation, key=key)

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(self._root + key)

    def _write(self, key: str, parts: Sequence[Buffer], operation: str) -> None:
        data = b"".join(parts)
        with self._errors(f"{'creating' if operation == 'create' else 'writing'} {key}", operation, key=key):
            self._blob(key).upload_blob(
                data, length=len(data), overwrite=operation == "put", max_concurrency=BLOCKS_AT_ONCE
            )

    def _holds(self, key: str, parts: Sequence[Buffer]) -> bool:
        try:
            if self.stat(key).size != sum(memoryview(part).nbytes for part in parts):
                return False
            return self.get(key) == b"".join(parts)
        except ObjectMissing:
            raise StoreUnreachable(
                f"{key} was there and is gone", hint="somebody deletes meanwhile; run it again"
            ) from None

    def _versions(self, key: str, doing: str) -> Sequence[Any]:
        """The blob, its snapshots and versions, and what is softly deleted of them."""
        which = ["versions", "snapshots", "deleted"]
        with self._errors(doing, "list"):
            found = self._container.list_blobs(name_starts_with=self._root + key, include=which)
            return [blob for blob in islice(found, VERSIONS_MAX) if blob.name == self._root + key]

    def _delete_version(self, key: str, version: str, doing: str) -> None:
        try:
            with self._errors(doing, "delete", key=key):
                self._blob(key).delete_blob(version_id=version)
        except ObjectMissing:
            pass

    def _is_marked(self) -> bool:
        try:
            with self._errors("looking for a store", "get", key=MARKER):
                self._blob(MARKER).get_blob_properties()
            return True
        except ObjectMissing:
            return False

    def _first_names(self) -> Sequence[str]:
        with self._errors("looking at what is there", "list"):
            pages = self._container.list_blobs(name_starts_with=self._root, results_per_page=LOOK_AT_MAX).by_page()
            return [blob.name[len(self._root) :] for blob in next(pages, ())]


def _info(key: str, blob: Any) -> ObjectInfo:
    modified: datetime.datetime = blob.last_modified
    return ObjectInfo(key=key, size=int(blob.size), modified=modified.astimezone(datetime.UTC))
