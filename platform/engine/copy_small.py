"""The small objects of a repository on their way to a copy: config, erasure ledger, records, change images."""

from collections.abc import Collection, Iterable
from contextlib import suppress

from engine.erasures import ledger_record_lost
from engine.errors import BackupMissing, DamageError, ManifestDamaged, ObjectExists, ObjectMissing, StoreDenied
from engine.fallback import check_object
from engine.faults import kill_point
from engine.manifest import DOCUMENT_BYTES_MAX
from engine.ports import Store
from engine.progress import Progress
from engine.repository import CONFIG_BYTES_MAX, Repository, delete_all


def config_copy(source: Repository, target: Store) -> None:
    """Put the repository's config into a store that has none, the first object of a copy. Raises ObjectExists.

    That is what keeps a copy out of a place that holds another repository of this name.
    """
    key = f"{source.prefix}config"
    target.create(key, [source.store.get(key, 0, CONFIG_BYTES_MAX)])
    kill_point("copy.config_stored")


def ledger_copy(source: Repository, target: Repository, *, at_least: int) -> int:
    """Copy records of the erasure ledger that the copy lacks; how many. Before any manifest: none may bring back more.

    Raises ManifestDamaged when the source lacks a record up to `at_least` or one between others.
    """
    present, there = _sizes(source, "erasures/"), _sizes(target, "erasures/")
    number, copied = 0, 0
    last = max([at_least, *(int(key[-10:]) for key in present if key[-10:].isdigit())])
    while True:
        number += 1
        key = f"erasures/{number:010d}"
        if number <= last and there.get(key) is not None and there.get(key) == present.get(key):
            continue
        try:
            blob = source.store.get(source.prefix + key, 0, DOCUMENT_BYTES_MAX)
        except ObjectMissing:
            if number > last:
                return copied
            raise ManifestDamaged(
                f"erasure record {number} is missing", hint="without it erased data could come back; run copy repair"
            ) from None
        copied += _put(source, target, key, blob)
        if key in there:
            _lost_found(source, target, key, blob)


def _lost_found(source: Repository, target: Repository, key: str, blob: bytes) -> None:
    """Put a record back that the source was given up to have lost, and the copy has."""
    if not ledger_record_lost(source.keyring, blob, key):
        return
    found = target.store.get(target.prefix + key, 0, DOCUMENT_BYTES_MAX)
    check_object(target.keyring, target.prefix, target.prefix + key, found)
    if not ledger_record_lost(target.keyring, found, key):
        source.store.put(source.prefix + key, [found])


def records_copy(source: Repository, target: Repository, *, known: Collection[int]) -> int:
    """Copy forget records, checkpoints and void records that the copy lacks; how many."""
    copied = 0
    for folder in ("forgets/", "checkpoints/"):
        there = _sizes(target, folder)
        for key, size in _sizes(source, folder).items():
            if there.get(key) != size:
                copied += _copy_one(source, target, key)
        if folder == "checkpoints/":
            _drop_superseded(source, target, there)
    numbers = set(target.numbers())
    for number in source.numbers():
        if number in numbers or number in known:
            continue
        try:
            is_record = source.manifest(number).kind != "manifest"
        except (BackupMissing, DamageError):
            continue  # Its session may have committed or been closed a moment ago; the next run sees it.
        if is_record:
            copied += _copy_one(source, target, f"manifests/{number:010d}")
    return copied


def _drop_superseded(source: Repository, target: Repository, there: Iterable[str]) -> None:
    """Checkpoints that the source has dropped for a newer one: that says all that they said (Repository.end)."""
    newest = max(_sizes(source, "checkpoints/"), default="")
    # `0000000012-…` sorts by its number: an older one goes when a newer one has been copied, never for its absence.
    older = [target.prefix + key for key in there if key[:22] < newest[:22]]
    if newest and older:
        target.store.stat(target.prefix + newest)
        with suppress(StoreDenied):  # A store that locks or only appends keeps them: they say nothing else.
            delete_all(target.store, older)


def images_copy(source: Repository, target: Repository, names: Iterable[str], progress: Progress) -> int:
    """Copy the change images of these names, each with its head last; one that is gone is passed over."""
    copied = 0
    for name in names:
        progress.check()
        folder = f"images/{name}/"
        present, there = _sizes(source, folder), _sizes(target, folder)
        if f"{folder}head" not in present:
            continue
        for key in sorted(present, key=lambda each: (each.endswith("/head"), each)):
            if there.get(key) != present[key]:
                copied += _copy_one(source, target, key)
                kill_point("copy.image_stored")
    return copied


def _sizes(repository: Repository, folder: str) -> dict[str, int]:
    """Key without the repository's prefix -> size."""
    cut = len(repository.prefix)
    return {info.key[cut:]: info.size for info in repository.store.list(repository.prefix + folder)}


def _copy_one(source: Repository, target: Repository, key: str) -> int:
    try:
        blob = source.store.get(source.prefix + key, 0, DOCUMENT_BYTES_MAX)
    except ObjectMissing:
        return 0
    return _put(source, target, key, blob)


def _put(source: Repository, target: Repository, key: str, blob: bytes) -> int:
    """Store an authenticated object, over one that is altered."""
    check_object(source.keyring, source.prefix, source.prefix + key, blob)
    try:
        target.store.create(target.prefix + key, [blob])
    except ObjectExists:
        try:
            there = target.store.get(target.prefix + key, 0, DOCUMENT_BYTES_MAX)
            check_object(target.keyring, target.prefix, target.prefix + key, there)
        except DamageError:
            target.store.put(target.prefix + key, [blob])
    return 1
