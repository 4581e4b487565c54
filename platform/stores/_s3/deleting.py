"""Delete from a bucket what may be deleted: objects, their versions, never what is locked."""

import datetime
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from engine.errors import ObjectLocked, ObjectMissing, StoreDenied, StoreError, StoreUnreachable
from stores._keys import check_key
from stores._s3.config import S3Config
from stores._s3.errors import errors_of, mapped_answer
from stores._s3.locks import lock_of, locked, version_of

DELETE_BATCH_MAX = 1000
DELETE_THREADS = 8


class Deleter:
    """The deletions of one S3Store; `head` looks an object up."""

    def __init__(self, config: S3Config, client: Any, head: Callable[[str], Any]) -> None:
        self._config, self._client, self._head = config, client, head
        self._bucket, self._root = config.bucket, config.root
        self._bucket_locks: bool | None = True if config.lock_mode != "none" else None

    def delete(self, key: str) -> None:
        """See S3Store.delete."""
        check_key(key)
        version = self._deletable(key) if self._has_locks() else {}
        if version is None:
            return
        with self._errors(f"deleting {key}", "delete_version" if version else "delete_object"):
            self._client.delete_object(Bucket=self._bucket, Key=self._root + key, **version)

    def delete_many(self, keys: Sequence[str]) -> None:
        """See S3Store.delete_many."""
        for key in keys:
            check_key(key)
        refused: list[StoreError] = []
        targets = self._targets(keys, refused)
        for at in range(0, len(targets), DELETE_BATCH_MAX):
            with self._errors(f"deleting {len(targets)} objects", "delete_objects"):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": targets[at : at + DELETE_BATCH_MAX], "Quiet": True}
                )
            refused += [self._refusal(each) for each in answer.get("Errors", []) if each.get("Code") != "NoSuchKey"]
        if refused:
            raise max(refused, key=_gravity)

    def purge(self, key: str) -> int:
        """See engine.ports.VersionedStore."""
        check_key(key)
        removed = 0
        refused: list[StoreError] = []
        for version in self._versions(key):
            try:
                with self._errors(f"deleting version {version} of {key}", "delete_version"):
                    self._client.delete_object(Bucket=self._bucket, Key=self._root + key, VersionId=version)
                removed += 1
            except StoreDenied as error:
                refused.append(self._locked_version(key, version) or error)
        if refused:
            raise max(refused, key=_gravity)
        return removed

    def keys_kept(self, prefix: str) -> Iterator[str]:
        """See S3Store.keys_kept."""
        last, more = "", dict[str, str]()
        while True:
            with self._errors(f"listing the versions below {prefix}", "list_object_versions"):
                page = self._client.list_object_versions(Bucket=self._bucket, Prefix=self._root + prefix, **more)
            # Versions and markers come as two lists, each sorted.
            for name in sorted({item["Key"] for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]}):
                if name > last:
                    last = name
                    yield name[len(self._root) :]
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    # ------------------------------------------------------------ inner parts

    def _errors(self, doing: str, operation: str, *, key: str | None = None) -> AbstractContextManager[None]:
        return errors_of(self._config.place, doing, operation, key=key)

    def _has_locks(self) -> bool:
        """Whether the bucket was made with Object Lock, asked once; unknown counts as not."""
        if self._bucket_locks is None:
            try:
                with self._errors("looking up Object Lock", "get_object_lock_configuration"):
                    found = self._client.get_object_lock_configuration(Bucket=self._bucket)
                self._bucket_locks = found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
            except StoreUnreachable:
                raise
            except StoreError:
                self._bucket_locks = False
        return self._bucket_locks

    def _deletable(self, key: str) -> dict[str, str] | None:
        """The version to delete; None when there is none. Raises ObjectLocked."""
        try:
            head = self._head(key)
        except ObjectMissing:
            return None
        until = lock_of(head)
        if until is not None:
            raise locked(key, until)
        return version_of(head)

    def _targets(self, keys: Sequence[str], refused: MutableSequence[StoreError]) -> Sequence[dict[str, str]]:
        """What to name in a bulk deletion; locked objects are left out and added to `refused`."""
        if not self._has_locks():
            return [{"Key": self._root + key} for key in keys]

        def target(key: str) -> dict[str, str] | None:
            try:
                version = self._deletable(key)
            except ObjectLocked as error:
                refused.append(error)
                return None
            return None if version is None else {"Key": self._root + key, **version}

        with ThreadPoolExecutor(DELETE_THREADS, "s3-look") as pool:
            return [found for found in pool.map(target, keys) if found is not None]

    def _refusal(self, item: Mapping[str, str]) -> StoreError:
        """The error of one object in the answer to a bulk deletion."""
        key = item.get("Key", "")[len(self._root) :]
        answer = {"Error": dict(item), "ResponseMetadata": {"HTTPStatusCode": 403 if "Denied" in item["Code"] else 500}}
        return mapped_answer(answer, self._config.place, f"deleting {key}", "delete_objects")

    def _versions(self, key: str) -> Iterator[str]:
        """Every version of the object and every marker of its deletion."""
        name = self._root + key
        more: dict[str, str] = {}
        while True:
            with self._errors(f"listing the versions of {key}", "list_object_versions"):
                page = self._client.list_object_versions(Bucket=self._bucket, Prefix=name, **more)
            for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if item["Key"] == name:
                    yield item["VersionId"]
            # Sorted by key: what comes after this one's versions belongs to longer names.
            if not page.get("IsTruncated") or page["NextKeyMarker"] != name:
                return
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    def _locked_version(self, key: str, version: str) -> ObjectLocked | None:
        """The error that says until when, if it is a lock that kept the version from being deleted."""
        try:
            with self._errors(f"looking up the lock of {key}", "get_object_retention", key=key):
                head = self._client.head_object(Bucket=self._bucket, Key=self._root + key, VersionId=version)
        except StoreError:
            return None
        until = lock_of(head)
        return None if until is None else locked(key, until)


def _gravity(error: StoreError) -> tuple[bool, datetime.datetime]:
    """Which of several refusals to raise: one that is no lock, else the latest date."""
    until = error.until if isinstance(error, ObjectLocked) else None
    return until is None, until or datetime.datetime.min.replace(tzinfo=datetime.UTC)
