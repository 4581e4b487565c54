"""Objects made by somebody who may write to the store but has no key: refused by a typed error, at no great cost."""

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from engine.erasures import ErasureLedger, erase
from engine.errors import ChunkMissing, DamageError, LastroError, ManifestDamaged, ObjectDamaged, ObjectExists
from engine.images import ImageReader, ImageWriter
from engine.index import Segment, encode_segment, merge_segments, pack_place
from engine.keys import Keyring, RootKey
from engine.kit import kit_export, kit_open
from engine.manifest import Manifest
from engine.pack import PackBuilder, encode_payload, read_frame, read_trailer
from engine.progress import NullProgress
from engine.prune import prune
from engine.quarantine import packs_quarantine
from engine.rebuild import index_rebuild
from engine.repository import Repository
from engine.sealed import CIPHER_NONE, Kind, new_envelope, seal_object
from engine.selections import selection_read
from engine.verify import verify_backup
from engine.verify_store import store_verify_structure
from stores.local import LocalConfig, LocalStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup


def _stranger() -> Keyring:
    """What the clear config tells anybody: the ids, none of the keys."""
    return Keyring.create(RootKey.generate(), tenant_id="ten_test", repository_id="rep_test")


def _put(repository: Repository, folder: str, parts: list[bytes]) -> str:
    name = hashlib.sha256(b"".join(parts)).hexdigest()
    repository.store.put(f"{repository.prefix}{folder}/{name}", parts)
    return name


def _forged_manifest(text: bytes, *, kind: Kind = Kind.MANIFEST) -> bytes:
    return b"".join(seal_object(_stranger(), kind, text, cipher=CIPHER_NONE))


def _document(**changes: object) -> bytes:
    document = {
        "version": 1,
        "kind": "manifest",
        "number": 1,
        "repository_id": "rep_test",
        "checksums": {"manifest": "00" * 32},
        "signature": "00" * 64,
    }
    return json.dumps({**document, **changes}).encode()


BOMB = bytes.fromhex("28b52ffd") + b"\xe0" + struct.pack("<Q", 1 << 50) + b"\x01\x00\x00"
DOCUMENTS = {
    "nothing": b"",
    "list": b"[]",
    "text": b'"manifest"',
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "deep inside": _document()[:-1] + b', "more": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "version text": _document(version="1"),
    "version null": _document(version=None),
    "version infinite": _document()[:-1] + b', "version": 1e999}',
    "checksums list": _document(checksums=["manifest"]),
    "record with checksums": _document(kind="void", checksum="00", checksums=[1]),
    "kind list": _document(kind=["manifest"]),
    "big number": _document(more=1 << 80),
    "endless digits": _document()[:-1] + b', "more": ' + b"9" * 5000 + b"}",
    "not a number": _document(more=float("nan")),
    "surrogate": _document(more="\ud800"),
    "short signature": _document(signature="00"),
    "signature number": _document(signature=7),
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("name", [*DOCUMENTS, "bomb", "not compressed", "endless zeros"])
def test_forged_manifests_are_damaged_manifests(repository, name):
    """Goal: a typed error. Method: each malformed document, in an envelope that anybody can make."""
    if name == "bomb":
        packed = BOMB
    elif name == "not compressed":
        packed = b"not zstd"
    elif name == "endless zeros":
        compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        packed = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(300)) + compressor.flush()
    else:
        packed = zstandard.ZstdCompressor().compress(DOCUMENTS[name])
    for kind in (Kind.MANIFEST, Kind.RECORD):
        with pytest.raises(ManifestDamaged):
            Manifest.read(_forged_manifest(packed, kind=kind), repository.keyring, number=1)


def test_no_object_without_a_key_counts_in_the_sealed_domain(repository):
    """Goal: cipher 0 belongs to the plain domain. Method: forge a segment that supersedes all others, a pack, a tombstone."""
    backed = backup(repository, MemorySource([MemoryTable(rows={1: "one"})]), 1)
    genuine = [info.key.rpartition("/")[2] for info in repository.store.list(repository.prefix + "index/")]
    forged = encode_segment([("ab" * 32, bytes(80))], [bytes(32) + pack_place(0, 1, 1, 1, 1)], genuine, generation=9)
    _put(repository, "index", seal_object(_stranger(), Kind.INDEX, forged, cipher=CIPHER_NONE))
    builder = PackBuilder(_stranger(), Kind.DATA_PACK, cipher=CIPHER_NONE)
    builder.add(encode_payload(b"forged", None), [(bytes(32), 0, 6)])
    name, parts, _ = builder.finish()
    repository.store.put(f"{repository.prefix}data/{name[:2]}/{name}", parts)
    live = [info.key for info in repository.store.list(repository.prefix + "data/") if name not in info.key]
    doom = {"timestamp": "2020-01-01T00:00:00+00:00", "domain_prefix": repository.prefix, "packs": live}
    sealed = seal_object(_stranger(), Kind.RECORD, json.dumps(doom).encode(), cipher=CIPHER_NONE)
    repository.store.put(repository.prefix + "tombstones/20200101T000000-00000000", sealed)

    fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    with pytest.raises(ChunkMissing):
        fresh.sealed.reader().get(bytes(32))
    assert len(fresh.sealed.index.damaged) == 1
    rebuilt = index_rebuild(fresh, fresh.sealed, NullProgress(), skip=frozenset())
    assert [key.rpartition("/")[2] for key in rebuilt.damaged] == [name]
    progress = NullProgress()
    prune(fresh, forget={}, head=1, dry_run=False, progress=progress)
    assert list(repository.store.list(repository.prefix + "tombstones/")) == []
    assert verify_backup(fresh, backed, deep=True, progress=NullProgress()) == []


def _exercise(segment: Segment) -> None:
    for chunk_id in (bytes(32), b"\xff" * 32, b"\x80" + bytes(31)):
        ordinal = segment.ordinal(chunk_id)
        if ordinal >= 0:
            segment.place(ordinal)
    segment.packs()
    b"".join(merge_segments([segment]))


def test_altered_segments_give_typed_errors(repository):
    """Goal: no other error, no great memory. Method: set each field of the head to extremes, and random bytes anywhere."""
    rng = random.Random(1)
    packs = [("ab" * 32, bytes(80)), ("cd" * 32, bytes(80))]
    entries = sorted(rng.randbytes(32) + pack_place(n % 2, n, 1, 2, 3) for n in range(40))
    content = encode_segment(packs, entries, ["ef" * 32])
    altered = [content[:length] for length in range(len(content))]
    for at in range(4, 40, 4):
        for value in (0, 1, 2, 15, 17, 32, 33, 64, 1 << 16, (1 << 31) - 1, (1 << 32) - 1):
            altered += [content[:at] + value.to_bytes(4, "big") + content[at + 4 :]]
    for _ in range(2000):
        at = rng.randrange(len(content))
        altered.append(content[:at] + rng.randbytes(rng.choice([1, 4])) + content[at + 4 :])
    for each in altered:
        try:
            _exercise(Segment("aa" * 32, each))
        except LastroError:
            pass


def _pack_with_trailer(keyring: Keyring, table: bytes) -> bytes:
    """A well-formed pack around any trailer."""
    envelope = new_envelope(keyring, Kind.DATA_PACK, cipher=CIPHER_NONE)
    trailer = envelope.seal(80, table, last=True)
    size = 80 + len(trailer) + 32
    footer = envelope.seal((1 << 64) - 1, struct.pack(">IIQ", 80, len(trailer), size), last=True)
    return envelope.header + trailer + footer


def test_hostile_trailers_give_typed_errors(repository):
    """Goal: a typed error. Method: bombs, counts that do not fit, frames outside the pack, in a plain pack."""
    pack = zstandard.ZstdCompressor().compress
    entry = struct.pack(">32sII", bytes(32), 0, 6)
    tables = [
        BOMB,
        b"",
        pack(b""),
        pack(struct.pack(">II", 1 << 31, 0)),
        pack(struct.pack(">II", 1, 0)),
        pack(struct.pack(">IIIII", 1, 1, 80, 6, 1 << 31)),
        pack(struct.pack(">IIIII", 1, 2, 80, 6, 2) + entry),
        pack(struct.pack(">IIIII", 1, 1, 80, 6, 1) + entry + entry),
        pack(struct.pack(">IIIII", 1, 1, (1 << 32) - 1, 6, 1) + entry),
    ]
    for table in tables:
        with pytest.raises(ObjectDamaged):
            read_trailer(repository.keyring, _pack_with_trailer(repository.keyring, table), "pack")


def test_hostile_frames_give_typed_errors(repository):
    """Goal: a typed error. Method: bombs and nonsense as the payload of a frame in a plain pack."""
    envelope = new_envelope(repository.keyring, Kind.DATA_PACK, cipher=CIPHER_NONE)
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    for payload in (b"", b"\2abc", b"\1", b"\1" + BOMB, b"\1nonsense", b"\1" + endless):
        with pytest.raises(ObjectDamaged):
            read_frame(envelope, 80, envelope.seal(80, payload, last=False), "frame")


JSON = [b"[" * 200_000, b"[]", b"7", b"null", b'{"version": 1e999}', b"\xff", b'{"version": "x"}', b"9" * 5000]


@pytest.mark.parametrize("blob", JSON, ids=lambda blob: blob[:12].decode("latin-1"))
def test_hostile_json_in_clear_objects(repository, blob):
    """Goal: a typed error. Method: nonsense as config, as keyring, as kit; whole ones with a hostile version."""
    with pytest.raises(DamageError):
        Keyring.from_bytes(blob, RootKey.generate())
    with pytest.raises(DamageError):
        kit_open(blob, "five words are long enough")
    repository.store.put(repository.prefix + "config", [blob])
    with pytest.raises(DamageError):
        Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "00"},
        {"nonce": ""},
        {"root_key": ""},
        {"version": 1e999},
        {"kdf": {"name": "argon2id", "salt": "00" * 16, "iterations": 3, "lanes": 1 << 40, "memory_kib": 65536}},
        {"kdf": {"name": "argon2id", "salt": "00" * 16, "iterations": 3, "lanes": 4, "memory_kib": 4 << 20}},
        {"kdf": {"name": "argon2id", "salt": "00" * 16, "iterations": 0, "lanes": 4, "memory_kib": 65536}},
        {"kdf": {"name": "argon2id", "salt": "", "iterations": 1e999, "lanes": 4, "memory_kib": 65536}},
        {"repositories": 7},
    ],
    ids=str,
)
def test_hostile_kits(change, monkeypatch):
    """Goal: a typed error. Method: alter one field of a kit; deriving with 4 GiB fails as on a small machine."""
    kit = json.loads(kit_export(RootKey.generate(), "five words are long enough", []))
    if "kdf" in change and change["kdf"]["memory_kib"] > 1 << 20:
        monkeypatch.setattr("engine.kit.Argon2id", _no_memory)
    with pytest.raises(LastroError):
        kit_open(json.dumps({**kit, **change}).encode(), "five words are long enough")


def _no_memory(**_cost: int) -> None:
    raise MemoryError


@pytest.mark.parametrize("at", range(12))
def test_a_flipped_pack_header_is_damage_to_a_rebuild(repository, at):
    """Goal: a rebuild goes on. Method: flip a bit of version, cipher, kind, epoch in one of two packs; lose the index."""
    ids = []
    for chunk in (b"one", b"two"):
        session = repository.sealed.session()
        ids.append(session.submit(lambda lane, chunk=chunk: lane.add(chunk)).result())
        session.finish()
    place = repository.sealed.reader().locate(ids[0])
    key = f"{repository.prefix}data/{place.pack[:2]}/{place.pack}"
    blob = bytearray(repository.store.get(key))
    blob[at] ^= 2
    repository.store.put(key, [bytes(blob)])
    for info in list(repository.store.list(repository.prefix + "index/")):
        repository.store.delete(info.key)
    rebuilt = index_rebuild(repository, repository.sealed, NullProgress(), skip=frozenset())
    assert rebuilt.damaged == ((key,) if at != 7 else rebuilt.damaged)
    assert repository.sealed.reader().get(ids[1]) == b"two"


def test_creating_twice_keeps_the_first_keyring(repository, root_key, tmp_path):
    """Goal: the keyring in the store is the only way back without the catalogue. Method: create again with other keys."""
    before = repository.store.get(repository.prefix + "keyring")
    other = Keyring.create(root_key, tenant_id="ten_test", repository_id="rep_test")
    create: Callable[[Keyring], Repository] = lambda keyring: Repository.create(  # noqa: E731
        LocalStore.make(LocalConfig(path=str(tmp_path / "store"))),
        repository_id="rep_test",
        tenant_id="ten_test",
        keyring=keyring,
        root=root_key,
    )
    with pytest.raises(ObjectExists):
        create(other)
    assert repository.store.get(repository.prefix + "keyring") == before
    create(repository.keyring)
    stored = Keyring.from_bytes(repository.store.get(repository.prefix + "keyring"), root_key)
    assert stored == repository.keyring


class _Facts(MemorySource):
    """A source whose connector notes one fact."""

    def __init__(self, fact: object) -> None:
        super().__init__([MemoryTable(rows={1: "one"})])
        self.facts = {"fact": fact}


@pytest.mark.parametrize(
    "fact", [1e20, -1e20, 1e300, 0.1, -0.0, (1 << 53) - 1, "\u0000\U0001f600", [None, True]], ids=repr
)
def test_what_is_committed_can_be_read(repository, fact):
    """Goal: no manifest that nobody can read. Method: facts that canonical JSON writes in a form of its own."""
    manifest = backup(repository, _Facts(fact), 1)
    assert repository.manifest(1).sha256 == manifest.sha256
    assert repository.manifest(1).document["sources"][0]["facts"]["fact"] == fact


@pytest.mark.parametrize("fact", [1 << 60, float("nan"), b"bytes", {1: 2}, "\udcff", os], ids=repr)
def test_what_json_cannot_hold_is_refused_before_the_commit(repository, fact):
    """Goal: a typed error and no manifest. Method: facts that canonical JSON has no form for."""
    with pytest.raises(LastroError):
        backup(repository, _Facts(fact), 1)
    assert repository.numbers() == []


def test_stray_names_are_no_numbers(repository):
    """Goal: keys of other forms are ignored. Method: put some beside the manifests."""
    backup(repository, MemorySource([MemoryTable(rows={1: "one"})]), 1)
    for name in ("5", "00000000007", "x", "0000000002.tmp", os.urandom(4).hex() + "z"):
        repository.store.put(f"{repository.prefix}manifests/{name}", [b"stray"])
    assert repository.numbers() == [1]


def test_segment_sizes_do_not_tell_the_number_of_chunks():
    """Goal: sizes in the store tell little. Method: segments of a hundred different counts have few sizes."""
    packs = [("ab" * 32, bytes(80))]
    entries = [n.to_bytes(32, "big") + pack_place(0, n, 1, 2, 3) for n in range(2000)]
    sizes = {len(encode_segment(packs, entries[:count])) for count in range(1900, 2000)}
    assert len(sizes) < 20


LONG = 100 << 30
"""Bytes of a sparse file: what a hostile store would go on answering."""


@pytest.mark.parametrize(
    "where",
    ["erasures/0000000001", "images/i/head", "images/i/000000", "tombstones/t", "forgets/0000000001", "data", "meta",
     "checkpoints/0000000009-00000000", "selections/0000000001", "manifests/0000000001", "config", "index"],
)  # fmt: skip
def test_no_object_is_read_without_a_bound(repository: Repository, tmp_path: Path, where: str) -> None:
    """Goal: a store that answers 100 GB costs no more than the bound of the format; put a sparse file in the place of each
    kind of object, and do what reads it."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(1000))
    backup(repository, MemorySource([MemoryTable("t", {1: "one"})], tmp_path / "tree", b"ddl"), 1)
    erase(repository, [("db", "t", b"1")])
    writer = ImageWriter(repository, "i")
    writer.table({"name": "t"})
    writer.close()
    path = tmp_path / "store" / repository.prefix / where
    if where in ("data", "meta", "index"):
        path = next(each for each in path.rglob("*") if each.is_file())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.chmod(0o600) if path.exists() else path.touch()
    os.truncate(path, LONG)
    fresh = Repository(repository.store, repository.keyring, cache=None)
    doing: dict[str, Callable[[], object]] = {
        "erasures": lambda: ErasureLedger.load(fresh),
        "images": lambda: list(ImageReader(fresh, "i").sections()),
        "forgets": lambda: fresh.forgotten(1),
        "selections": lambda: selection_read(fresh),
        "manifests": lambda: fresh.manifest(1),
        "config": lambda: Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring),
    }
    folder = where.partition("/")[0]
    if folder in doing:
        with pytest.raises(DamageError):
            doing[folder]()
    elif folder in ("data", "meta"):
        assert verify_backup(fresh, fresh.manifest(1), deep=True, progress=NullProgress())
        packs_quarantine(fresh, fresh.sealed, {path.name}, NullProgress())
        assert not path.exists()
    else:
        found = store_verify_structure(fresh, {1: ""}, erasures=1, progress=NullProgress()).findings
        assert found or folder == "tombstones"
        prune(fresh, forget={}, head=1, dry_run=False, progress=NullProgress())
