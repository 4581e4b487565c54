"""A repository: keys, index, chunks and the chain of manifests of one tenant in one store.

r/<repository>/config             JSON in clear: format, version, ids, public key
r/<repository>/keyring            engine.keys.Keyring, wrapped by the root key
r/<repository>/manifests/<n>      backup or void record number n (ten digits), created once
r/<repository>/forgets/<n>        signed record that number n was ended by retention
r/<repository>/checkpoints/<n>-…  signed record that up to number n only certain ones are kept
r/<repository>/data|meta/aa/<sha256>   packs
r/<repository>/index/<sha256>     index segments
r/<repository>/plain/…            the same three for backups made without encryption
"""

import datetime
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from engine.chunks import ChunkReader
from engine.errors import (
    BackupKept,
    BackupMissing,
    ForeignKeyring,
    ManifestDamaged,
    ManifestForged,
    ObjectDamaged,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    RepositoryMissing,
    RepositoryNewer,
    SessionFenced,
    UsageError,
    WrongKey,
)
from engine.faults import kill_point
from engine.fencing import Guard, NoGuard
from engine.index_set import IndexSet
from engine.keys import Keyring, RootKey
from engine.manifest import DOCUMENT_BYTES_MAX, FORMAT_VERSION, Manifest
from engine.ordered import in_order
from engine.ports import Store
from engine.sealed import CIPHER_AES_GCM, CIPHER_NONE
from engine.session import Session
from engine.signers import break_after

FORMAT = "lastro-repository"
CONFIG_BYTES_MAX = 64 << 10
_NUMBER = re.compile("[0-9]{10}")
_CHECKPOINT = re.compile("[0-9]{10}-[0-9a-f]{8}")


CHECKPOINT_STEP = 16
"""From so many backups on that are ended at once a checkpoint takes the place of their forget records."""
DELETE_BATCH = 500


def delete_all(store: Store, keys: Sequence[str]) -> None:
    """Delete objects, many at a time where the kind of store can."""
    many = getattr(store, "delete_many", None)
    if many is None:
        for key in keys:
            store.delete(key)
        return
    for at in range(0, len(keys), DELETE_BATCH):
        many(keys[at : at + DELETE_BATCH])


def delete_unlocked(store: Store, keys: Sequence[str]) -> dict[str, datetime.datetime | None]:
    """Delete objects, and leave those that the store has locked: by key until when, None when it does not say."""
    left: dict[str, datetime.datetime | None] = {}
    try:
        delete_all(store, keys)
    except ObjectLocked:
        for key in keys:
            try:
                store.delete(key)
            except ObjectLocked as error:
                left[key] = error.until
    return left


def _ended(checkpoints: Iterable[Manifest], keyring: Keyring) -> set[int]:
    """Numbers that any of the checkpoints says were ended.

    One that is signed by keys which had got out ends nothing that was kept when they were replaced.
    """
    ended: set[int] = set()
    for record in checkpoints:
        kept = {n for first, last in record.document["kept"] for n in range(first, last + 1)}
        known = break_after(keyring.successors, record.epoch)
        kept |= set(known.kept) if known else set()
        ended.update(number for number in range(1, record.number + 1) if number not in kept)
    return ended


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each stretch."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def keyring_key(repository_id: str) -> str:
    """Where a store that keeps keys has the keyring of a repository."""
    return f"r/{repository_id}/keyring"


def _number_key(number: int) -> str:
    return f"{number:010d}"


class Domain:
    """Chunks of one sort, encrypted or plain: they share ids, packs and index among themselves only."""

    def __init__(self, repository: "Repository", *, encrypted: bool) -> None:
        name = "sealed" if encrypted else "plain"
        self.encrypted = encrypted
        self.cipher = CIPHER_AES_GCM if encrypted else CIPHER_NONE
        self.prefix = repository.prefix + ("" if encrypted else "plain/")
        self.id_keys = repository.keyring.chunk_id_keys(name)
        self.index = IndexSet(
            repository.store,
            f"{self.prefix}index/",
            repository.keyring,
            cipher=self.cipher,
            cache=repository.cache and repository.cache / f"{repository.repository_id}-{name}",
            on_claim=lambda number: repository.guard.claiming(name, number),
            on_taken=lambda number: repository.guard.claimed_elsewhere(name, number),
        )
        self._repository = repository

    def reader(self) -> ChunkReader:
        """A new reader with a cache of its own."""
        return ChunkReader(
            self._repository.store, self.prefix, self._repository.keyring, self.index, id_keys=self.id_keys
        )

    def session(self, *, compress: bool = True, workers: int | None = None, rewriting: bool = False) -> Session:
        """Begin writing; `rewriting` stores chunks again that the index already knows (repacking)."""
        self._repository.guard.check()
        self.index.reload()  # What was looked up long ago may name packs that a prune has dropped since.
        return Session(
            self._repository.store,
            self.prefix,
            self._repository.keyring,
            self.index,
            id_key=self.id_keys[0],
            cipher=self.cipher,
            compress=compress,
            workers=workers,
            rewriting=rewriting,
        )


class Repository:
    """Made by `create` or `open`. Writers are serialised by the caller's lease, readers need nothing."""

    def __init__(self, store: Store, keyring: Keyring, *, cache: Path | None) -> None:
        self.store, self.keyring, self.cache = store, keyring, cache
        self.guard: Guard = NoGuard()
        """Asked before anything is written; a caller with a catalogue puts its own here."""
        self.repository_id, self.tenant_id = keyring.repository_id, keyring.tenant_id
        self.prefix = f"r/{self.repository_id}/"
        self.sealed = Domain(self, encrypted=True)
        self.plain = Domain(self, encrypted=False)

    def domain(self, *, encrypted: bool) -> Domain:
        """The chunks of encrypted backups, or those of plain ones."""
        return self.sealed if encrypted else self.plain

    @classmethod
    def create(
        cls,
        store: Store,
        *,
        repository_id: str,
        tenant_id: str,
        keyring: Keyring,
        root: RootKey | None,
        cache: Path | None = None,
    ) -> Self:
        """Write config and keyring; repeating it with the same keyring succeeds. Raises ObjectExists.

        Without `root` the keyring is left out: it lies elsewhere, because this store could not delete it.
        """
        if (keyring.repository_id, keyring.tenant_id) != (repository_id, tenant_id):
            raise UsageError("the keyring belongs to another repository or tenant")
        repository = cls(store, keyring, cache=cache)
        config = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "repository_id": repository_id,
            "tenant_id": tenant_id,
            "public_key": keyring.public_key.hex(),
        }
        # The config decides between two creators: the keyring of a repository that exists is never replaced.
        store.create(f"{repository.prefix}config", [json.dumps(config, indent=1, sort_keys=True).encode()])
        kill_point("repository.config_stored")
        if root is not None:
            store.put(keyring_key(repository_id), [keyring.to_bytes(root)])
        return repository

    @classmethod
    def open(cls, store: Store, *, repository_id: str, keyring: Keyring, cache: Path | None = None) -> Self:
        """Raises RepositoryMissing, RepositoryNewer, WrongKey, ForeignKeyring or ObjectDamaged."""
        if keyring.repository_id != repository_id:
            # Whoever can write to the store can put another repository's keyring, and its config, in this place.
            raise ForeignKeyring(
                f"the keyring in the place of {repository_id}'s is that of {keyring.repository_id}",
                hint="somebody put it there: look who may write to the store",
            )
        repository = cls(store, keyring, cache=cache)
        try:
            config = json.loads(store.get(f"r/{repository_id}/config", 0, CONFIG_BYTES_MAX))
            version, public_key = int(config["version"]), config["public_key"]
        except ObjectMissing:
            raise RepositoryMissing(
                f"this store holds no repository {repository_id}", hint="is it the right store, and is it mounted?"
            ) from None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ObjectDamaged(f"the config of repository {repository_id} is not readable") from error
        if version > FORMAT_VERSION:
            raise RepositoryNewer(f"repository format {version} is newer than {FORMAT_VERSION}", hint="upgrade Lastro")
        if public_key != keyring.public_key.hex():
            raise WrongKey(f"the keyring does not belong to repository {repository_id}", hint="check the store's path")
        return repository

    def reader(self, manifest: Manifest) -> ChunkReader:
        """A reader for the chunks of this manifest's domain."""
        return self.domain(encrypted=bool(manifest.document["metadata"]["encrypted"])).reader()

    # ------------------------------------------------------------ the chain

    def numbers(self) -> list[int]:
        """Numbers that hold a manifest or a void record, ascending, as the store lists them."""
        found = []
        for info in self.store.list(f"{self.prefix}manifests/"):
            name = info.key.rpartition("/")[2]
            if _NUMBER.fullmatch(name):
                found.append(int(name))
        return found

    def head(self) -> int:
        """The highest number the store lists, 0 for none. A stale listing may show less than there is."""
        return max(self.numbers(), default=0)

    def head_from(self, number: int, *, most: int | None = None) -> int:
        """The highest number that the store holds, or that was ended, without a gap behind `number`; asked by name.

        Stops `most` numbers further on.
        """
        last = None if most is None else number + most
        checked = max((each.number for each in self._checkpoints()), default=0)
        number = max(number, checked if last is None else min(checked, last))
        while number != last and (self._holds("manifests", number + 1) or self._holds("forgets", number + 1)):
            number += 1
        return number

    def _holds(self, folder: str, number: int) -> bool:
        try:
            self.store.stat(f"{self.prefix}{folder}/{_number_key(number)}")
        except ObjectMissing:
            return False
        return True

    def manifest(self, number: int) -> Manifest:
        """The manifest or void record of this number. Raises BackupMissing or ManifestDamaged."""
        try:
            blob = self.store.get(f"{self.prefix}manifests/{_number_key(number)}", 0, DOCUMENT_BYTES_MAX)
        except ObjectMissing:
            raise BackupMissing(f"the store holds no manifest {number}", hint="another copy may hold it") from None
        return Manifest.read(blob, self.keyring, number=number)

    def manifests(self, *, on_damage: Callable[[int, ManifestDamaged], None] | None = None) -> Iterator[Manifest]:
        """Every backup, oldest first; void records and numbers ended meanwhile are passed over.

        A damaged manifest is given to `on_damage`, and hides no other; without it ManifestDamaged is raised.
        """
        for number in self.numbers():
            try:
                manifest = self.manifest(number)
            except BackupMissing:
                continue
            except ManifestDamaged as error:
                if on_damage is None:
                    raise
                on_damage(number, error)
                continue
            if manifest.kind == "manifest":
                yield manifest

    def forgotten(self, number: int) -> bool:
        """True when a signed record ended this number. Raises ManifestDamaged for a forged one."""
        try:
            blob = self.store.get(f"{self.prefix}forgets/{_number_key(number)}", 0, DOCUMENT_BYTES_MAX)
        except ObjectMissing:
            return number in _ended(self._checkpoints(), self.keyring)
        return Manifest.read(blob, self.keyring, number=number).kind == "forget"

    def chain(self, head: int, *, ahead: int = 1) -> Iterator[Manifest]:
        """Every document from 1 to `head`, read by name because a listing may lie; ended ones are passed over.

        What a checkpoint says was ended is not asked for again, unless it is listed all the same. So many are asked
        for at a time as `ahead` says. Raises ManifestDamaged for a number that holds nothing and that no signed record
        ended.
        """
        ended = _ended(self._checkpoints(), self.keyring)
        ended.difference_update(self.numbers())
        numbers = (number for number in range(1, head + 1) if number not in ended)
        # A local store answers at once: threads would only hand the lock of the interpreter around.
        at_once = ahead if self.store.kind != "local" else 1
        with closing(in_order(self._linked, numbers, at_once=at_once)) as found:
            for manifest in found:
                if manifest is not None:
                    yield manifest

    def _linked(self, number: int) -> Manifest | None:
        """The document of a number; None for one that a signed record ended."""
        try:
            return self.manifest(number)
        except BackupMissing:
            if self.forgotten(number):
                return None
            raise ManifestDamaged(
                f"manifest {number} is missing and no signed record ended it",
                hint="repair it from another copy (copy repair), or accept the loss: backup delete BACKUP --lost",
            ) from None

    def _checkpoints(self) -> list[Manifest]:
        """Checkpoints that can be read; several when writers overtook one another, each of them true."""
        found = []
        for info in self.store.list(f"{self.prefix}checkpoints/"):
            name = info.key.rpartition("/")[2]
            if not _CHECKPOINT.fullmatch(name):
                continue
            try:
                blob = self.store.get(info.key, 0, DOCUMENT_BYTES_MAX)
                record = Manifest.read(blob, self.keyring, number=int(name.partition("-")[0]))
            except (ManifestDamaged, ObjectMissing):
                continue  # What it alone said was ended is a gap then, which is loud.
            if record.kind == "checkpoint":
                found.append(record)
        return found

    def end(self, ending: Mapping[int, str], *, head: int, kept: Sequence[int]) -> None:
        """End backups (number -> reason) for good; deletes no chunk. Repeating is safe.

        Few get a forget record each, many one checkpoint: signed, that no number up to `head` is kept but those in
        `kept` (ascending). Only a reader of the whole chain can tell that.
        """
        if len(ending) < CHECKPOINT_STEP:
            for number, reason in ending.items():
                self.forget(number, reason)
            return
        self.guard.check()
        older = [info.key for info in self.store.list(f"{self.prefix}checkpoints/")]
        record = self._record("checkpoint", head, "prune", kept=_ranges(kept))
        key = f"{self.prefix}checkpoints/{_number_key(head)}-{secrets.token_hex(4)}"
        self.store.put(key, record.parts(self.keyring))
        kill_point("prune.checkpoint_stored")
        delete_unlocked(self.store, [f"{self.prefix}manifests/{_number_key(number)}" for number in ending])
        delete_unlocked(self.store, older)

    def gaps_close(self, *, head: int, kept: Sequence[int]) -> None:
        """Say by a checkpoint that no number up to `head` is held here but those in `kept` (ascending).

        For a copy that becomes the primary: what it was never given is no loss in its chain. Deletes nothing.
        """
        self.guard.check()
        record = self._record("checkpoint", head, "adopted", kept=_ranges(kept))
        key = f"{self.prefix}checkpoints/{_number_key(head)}-{secrets.token_hex(4)}"
        self.store.put(key, record.parts(self.keyring))

    def commit(self, document: Mapping[str, Any]) -> Manifest:
        """Sign and create the manifest under its number; the moment at which the backup exists.

        Raises SessionFenced when the number was closed or taken meanwhile. A repeat after a lost reply
        finds its own bytes and succeeds.
        """
        manifest = Manifest.signed(document, self.keyring)
        cipher = self.domain(encrypted=bool(document["metadata"]["encrypted"])).cipher
        parts = manifest.parts(self.keyring, cipher=cipher)
        try:
            again = Manifest.read(b"".join(parts), self.keyring, number=manifest.number)
        except ManifestDamaged as error:
            raise ObjectDamaged(
                f"the manifest could not be read back before it was stored: {error.message}",
                hint="nothing was committed; is it too large, or is this machine's memory bad?",
            ) from error
        assert again.sha256 == manifest.sha256
        kill_point("backup.before_manifest")
        self.guard.check()
        self._create(manifest, parts)
        kill_point("backup.manifest_stored")
        return manifest

    def _create(self, manifest: Manifest, parts: list[bytes]) -> None:
        key = f"{self.prefix}manifests/{_number_key(manifest.number)}"
        try:
            self.store.create(key, parts)
        except ObjectExists:
            there = self.manifest(manifest.number)
            if there.sha256 != manifest.sha256:
                raise SessionFenced(
                    f"number {manifest.number} was closed by another session ({there.kind})",
                    hint="the operation was taken over; start it again",
                ) from None

    def void(self, number: int, reason: str) -> Manifest:
        """Close a number whose session is gone. Returns what holds the number now.

        When the session did commit before, that manifest is returned and stays: adopt it. What somebody with former keys
        put there is set aside in `damaged/`, so that it keeps nobody from going on.
        """
        record = self._record("void", number, reason)
        key, parts = f"{self.prefix}manifests/{_number_key(number)}", record.parts(self.keyring)
        try:
            self.store.create(key, parts)
        except ObjectExists:
            try:
                return self.manifest(number)
            except ManifestForged:
                # The key is taken, so nobody of ours can have created anything in it since.
                blob = self.store.get(key, 0, DOCUMENT_BYTES_MAX)
                self.store.put(f"{self.prefix}damaged/{hashlib.sha256(blob).hexdigest()}", [blob])
                self.store.put(key, parts)
        return record

    def _record(self, kind: str, number: int, reason: str, **more: Any) -> Manifest:
        document = {
            "version": FORMAT_VERSION,
            "kind": kind,
            "number": number,
            "repository_id": self.repository_id,
            "reason": reason,
            "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
            **more,
        }
        return Manifest.signed(document, self.keyring)

    def forget(self, number: int, reason: str) -> None:
        """End a backup by a signed record, then drop its manifest; deletes no chunk. Repeating is safe."""
        self.guard.check()
        if not self._forgotten_truly(number):
            record = self._record("forget", number, reason, manifest_sha256=self.manifest(number).sha256)
            self.store.put(f"{self.prefix}forgets/{_number_key(number)}", record.parts(self.keyring))
        kill_point("prune.forget_stored")
        # A locked manifest stays behind its record, and whoever prunes names its number again.
        delete_unlocked(self.store, [f"{self.prefix}manifests/{_number_key(number)}"])

    def _forgotten_truly(self, number: int) -> bool:
        """As `forgotten`; a record that is forged or altered ended nothing, and is replaced."""
        try:
            return self.forgotten(number)
        except ManifestDamaged:
            return False

    def forget_lost(self, number: int, reason: str, *, manifest_sha256: str) -> None:
        """End a backup whose manifest is gone or cannot be read, by a signed record with the digest it had.

        Raises BackupKept while the manifest is there and whole.
        """
        self.guard.check()
        if self._forgotten_truly(number):
            return
        try:
            self.manifest(number)
        except (BackupMissing, ManifestDamaged):
            record = self._record("forget", number, reason, manifest_sha256=manifest_sha256, lost=True)
            self.store.put(f"{self.prefix}forgets/{_number_key(number)}", record.parts(self.keyring))
            delete_unlocked(self.store, [f"{self.prefix}manifests/{_number_key(number)}"])
            return
        raise BackupKept(f"the store holds backup number {number}", hint="verify it; to end it: backup delete")
