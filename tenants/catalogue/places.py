"""The repository in which a store keeps backups of the catalogue: made, opened, owned."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import transaction

from core import clock
from core.errors import NotFound, Unreconciled
from core.models import Fact
from core.rootkey import root_key, root_key_former
from engine.errors import BackupMissing, DamageError, ManifestDamaged, ObjectMissing, WrongKey
from engine.keys import Keyring, RootKey
from engine.manifest import DOCUMENT_BYTES_MAX, Manifest
from engine.owner import owner_checked, owner_raise
from engine.ports import Store
from engine.repository import Repository
from engine.sealed import CIPHER_NONE, HEADER, HEADER_BYTES
from engine.signers import Known
from engine.views import source_views
from operations.context import OperationContext
from tenants import wiring
from tenants.catalogue.filling import StoredCatalogue
from tenants.keyring_places import keyring_opened, keyring_store_beside
from tenants.models import CatalogueStore, Installation, StoreConfig
from tenants.owning import catalogue_keyring, installation_get

SOURCE = "catalogue"
PREFIX = "r/cat_"
NUMBERS_AHEAD_MAX = 10_000
EPOCH_FACT = "catalogue_epoch_root"
"""Id of the root key under which the present epoch of the catalogue's keys began."""


@dataclass
class PlaceGuard:
    """engine.fencing.Guard of the catalogue's own repository."""

    store: Store
    repository_id: str
    generation: int

    def check(self) -> None:
        """Raise TakenOver when the store has a later owner."""
        owner_checked(self.store, self.repository_id, self.generation)

    def claiming(self, domain: str, generation: int) -> None:
        """Nobody reads these generations."""

    def claimed_elsewhere(self, domain: str, generation: int) -> None:
        """Nobody reads these generations."""


@contextmanager
def place_open(row: StoreConfig) -> Iterator[tuple[Repository, CatalogueStore]]:
    """The repository for backups of the catalogue in this store, made and owned where it is not yet.

    Raises TakenOver when somebody else has adopted the store, Unreconciled when it holds backups of this catalogue
    that it does not remember.
    """
    installation = installation_get()
    place = CatalogueStore.objects.get_or_create(store=row)[0]
    with wiring.store_open(row) as store:
        owner_checked(store, installation.repository_id, installation.generation)
        repository = _made(store, installation, place)
        repository.guard = PlaceGuard(store, installation.repository_id, installation.generation)
        _remembered(repository, place)
        yield repository, place


def _made(store: Store, installation: Installation, place: CatalogueStore) -> Repository:
    repository = catalogue_repository(store)
    if not place.ready or place.generation < installation.generation:
        if place.generation < installation.generation:
            owner_raise(repository, reason="in use", above=installation.generation - 1)
        place.ready, place.generation = True, installation.generation
        place.save(update_fields=["ready", "generation"])
    return repository


def catalogue_repository(store: Store) -> Repository:
    """The repository of this catalogue's backups in an open store, made where there is none; its keyring is as of today."""
    installation = installation_get()
    keyring = _keyring_newest(store, installation)
    if not wiring.repository_present(store, installation.repository_id):
        Repository.create(
            store, repository_id=installation.repository_id, tenant_id=installation.pk, keyring=keyring, root=None
        )
    _keyring_put(store, installation)
    return Repository.open(
        store, repository_id=installation.repository_id, keyring=keyring, cache=wiring.cache_folder()
    )


def _keyring_newest(store: Store, installation: Installation) -> Keyring:
    """The keyring of the catalogue's backups: that of the store when it has all of our keys and more.

    Another installation may have owned the store meanwhile; what it kept is not to be locked out of.
    """
    keyring = catalogue_keyring(installation)
    try:
        # By today's root key alone: whoever has a former one has keys to begin with, and could add his own.
        there = keyring_opened(installation.repository_id, store, RootKey(root_key().secret_bytes()))
    except (ObjectMissing, WrongKey, DamageError):
        return keyring
    if there == keyring or not there.includes(keyring):
        return keyring
    blob = there.to_bytes(root_key())
    if Installation.objects.filter(pk=installation.pk, keyring=installation.keyring).update(keyring=blob):
        installation.keyring = blob
        return there
    return catalogue_keyring(Installation.objects.get(pk=installation.pk))


def _keyring_put(store: Store, installation: Installation) -> None:
    """What lies there may be wrapped by a former root key, or lack an epoch. It opens no tenant, so a lock is no harm."""
    keyring_store_beside(bytes(installation.keyring), installation.repository_id, store)


def epoch_renew() -> bool:
    """New keys for what is kept from now on, once after every rotation of the root key: the old ones may have got out.

    A rotation does that itself; this is for one that an older version began.
    """
    root, installation = root_key(), installation_get()
    made_by = Fact.objects.filter(pk=EPOCH_FACT).values_list("value", flat=True).first()
    if made_by == root.key_id or root_key_former():
        return False
    with transaction.atomic():
        Fact.objects.update_or_create(pk=EPOCH_FACT, defaults={"value": root.key_id})
        if made_by is not None:
            renewed = _renewed(catalogue_keyring(installation)).to_bytes(root)
            Installation.objects.filter(pk=installation.pk).update(keyring=renewed)
    return made_by is not None


def catalogue_keys_renew(old: RootKey, new: RootKey) -> None:
    """Wrap new keys for the catalogue's backups by the new root key, in the transaction that puts that in its place.

    No store may ever have a keyring under the new root key that lacks them: whoever has the old one has all keys of
    before, and would put that keyring back, and a forged backup beside it.
    """
    installation = installation_get()
    keyring = Keyring.from_bytes(bytes(installation.keyring), new.succeeding(old))
    Installation.objects.filter(pk=installation.pk).update(keyring=_renewed(keyring).to_bytes(new))
    Fact.objects.update_or_create(pk=EPOCH_FACT, defaults={"value": new.key_id})


def _renewed(keyring: Keyring) -> Keyring:
    # Each store's chain has numbers of its own: what is older is told by its epoch alone (`kept_list`).
    renewed = keyring.rotated(compromised=True)
    return renewed.succeeded(since=0, at=clock.now().isoformat(), reason="root", known=Known())


def _remembered(repository: Repository, place: CatalogueStore) -> None:
    if not place.behind and repository.head_from(place.number_reserved, most=1) > place.number_reserved:
        place.behind = True
        place.save(update_fields=["behind"])
    if place.behind:
        raise Unreconciled(
            f"store {place.store.name} holds backups of this catalogue that it does not remember: it was restored from "
            "an earlier one; nothing was written, so that none of them is superseded",
            hint=f"take over what the store knows: store reconcile {place.store.name}",
        )


def number_take(context: OperationContext, repository: Repository, place: CatalogueStore) -> int:
    """The next number of this store's chain; those of lost sessions are closed first."""
    for number in range(place.numbers_closed + 1, place.number_reserved + 1):
        context.check()
        repository.void(number, "its session ended without a commit")
    with transaction.atomic():
        context.fence()
        place.numbers_closed = place.number_reserved
        place.number_reserved += 1
        place.save(update_fields=["numbers_closed", "number_reserved"])
    return place.number_reserved


def place_reconcile(repository: Repository, place: CatalogueStore) -> int:
    """Take over the numbers that the store knows; how many there were. The next one is closed by a void record."""
    before = place.number_reserved
    head = repository.head_from(max(before, head_signed(repository)), most=NUMBERS_AHEAD_MAX)
    while repository.void(head + 1, "closed when the catalogue was reconciled with the store").kind != "void":
        head += 1
    place.number_reserved = place.numbers_closed = head + 1
    place.behind = False
    place.save(update_fields=["number_reserved", "numbers_closed", "behind"])
    return head - before


# ---------------------------------------------------------------- finding what a store keeps


@dataclass(frozen=True)
class Kept:
    """One backup of the catalogue in a store."""

    manifest: Manifest
    repository: Repository = field(repr=False)
    epoch: int = 0
    """Of the data key that seals the manifest: authenticated, as nobody has one that was made after a theft."""

    @property
    def id(self) -> str:
        """Its id, as `--from` takes it."""
        return str(self.manifest.document["id"])

    @property
    def taken_at(self) -> str:
        """RFC 3339."""
        return str(self.manifest.document["timestamp"])

    def opened(self) -> StoredCatalogue:
        """The rows. Raises DamageError."""
        source = source_views(self.repository, self.manifest)[SOURCE]
        (tree,) = source.trees
        return StoredCatalogue(tree)  # type: ignore[arg-type]  # What the engine's own views are.


def repositories_found(store: Store) -> list[str]:
    """Ids of the repositories of catalogues that the store lists; more than one when installations share it."""
    found: dict[str, None] = {}
    for info in store.list(PREFIX):
        found[info.key.split("/")[1]] = None
    return list(found)


def repository_found(store: Store, repository_id: str) -> Repository:
    """That repository by its keyring in the store. Raises NotFound, WrongKey for another root key, ObjectDamaged."""
    try:
        keyring = keyring_opened(repository_id, store, root_key())
    except ObjectMissing:
        raise NotFound(f"the store holds no keyring of {repository_id}", hint="it was never completed") from None
    return Repository.open(store, repository_id=repository_id, keyring=keyring, cache=wiring.cache_folder())


def head_signed(repository: Repository) -> int:
    """The highest listed number that holds a document of ours, 0 for none.

    Anybody who may write to the store can put something under a number that is far beyond all others.
    """
    return next((number for number in reversed(repository.numbers()) if _is_ours(repository, number)), 0)


def newer_unread(repository: Repository, kept: Sequence[Kept]) -> list[int]:
    """Numbers behind the newest backup that is whole under which the store lists what cannot be read, or is forged."""
    newest = kept[0].manifest.number if kept else 0
    return [number for number in repository.numbers() if number > newest and not _is_void(repository, number)]


def _is_void(repository: Repository, number: int) -> bool:
    return _is_ours(repository, number) and repository.manifest(number).kind == "void"


def _is_ours(repository: Repository, number: int) -> bool:
    try:
        repository.manifest(number)
    except (BackupMissing, ManifestDamaged, WrongKey):
        return False
    return True


def kept_list(repository: Repository) -> list[Kept]:
    """Every backup of the catalogue in the store, newest first; damaged ones are passed over."""
    head = repository.head_from(head_signed(repository))
    read = (_kept(repository, number) for number in range(1, head + 1))
    found: list[Kept] = []
    for each in read:
        # Whoever has a former root key has the keys of then, the signing key among them: what is newer is under newer ones.
        if each is not None and (not found or each.epoch >= found[-1].epoch):
            found.append(each)
    return found[::-1]


def _kept(repository: Repository, number: int) -> Kept | None:
    try:
        blob = repository.store.get(f"{repository.prefix}manifests/{number:010d}", 0, DOCUMENT_BYTES_MAX)
        manifest = Manifest.read(blob, repository.keyring, number=number)
    except (ObjectMissing, ManifestDamaged, WrongKey):  # An epoch that nobody has is anybody's to write.
        return None
    cipher = HEADER.unpack(blob[:HEADER_BYTES])[2]
    if manifest.kind != "manifest" or cipher == CIPHER_NONE:  # The catalogue's are always sealed.
        return None
    return Kept(manifest, repository, manifest.epoch)


def kept_get(kept: list[Kept], backup_id: str) -> Kept:
    """The one of this id. Raises NotFound."""
    for each in kept:
        if each.id == backup_id:
            return each
    raise NotFound(f"there is no backup {backup_id[:60]!r} of the catalogue here", hint="catalogue list shows them")
