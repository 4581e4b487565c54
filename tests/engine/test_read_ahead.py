"""Reading ahead where a request is dear: few requests, the same bytes, the same errors, a bounded memory."""

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from engine import read_ahead
from engine.errors import DamageError, ObjectDamaged, StoreUnreachable
from engine.fallback import Place, ReadingRepository
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_restore import restore_tree
from engine.tree_view import TreeView
from stores.local import LocalConfig, LocalStore
from tests.engine.tree_samples import fingerprint, fresh_repository, save, write

MIB = 1 << 20


class Far(LocalStore):
    """A real store of whose requests we pretend that they are dear; counts them."""

    remote: ClassVar[bool] = True

    def __init__(self, config: LocalConfig) -> None:
        super().__init__(config)
        self.reads: Counter[str] = Counter()
        self.read_bytes: Counter[str] = Counter()
        self.fails: Callable[[str], None] = lambda key: None
        self._count_lock = threading.Lock()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.fails(key)
        data = super().get(key, offset, length)
        with self._count_lock:
            self.reads[key.split("/")[2]] += 1
            self.read_bytes[key.split("/")[2]] += len(data)
        return data


class Stored(NamedTuple):
    """A tree and its backup, which no test changes."""

    tree: Path
    folder: Path
    repository: Repository
    node: dict[str, Any]

    def far(self, folder: Path | None = None) -> tuple[Far, Repository]:
        """The same repository behind a store that is dear to ask."""
        far = Far(LocalConfig(path=str((folder or self.folder) / "store")))
        return far, Repository(far, self.repository.keyring, cache=None)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """45 MB that no compression shrinks: small files in bundles, files of several chunks, two large ones, one with a list."""
    folder, rng = tmp_path_factory.mktemp("ahead"), random.Random(5)
    root = folder / "tree"
    for number in range(600):
        write(root / f"d{number % 7}" / f"small{number}", rng.randbytes(rng.randrange(1, 20_000)))
    for number in range(3):
        write(root / f"d{number}" / f"middle{number}", rng.randbytes(2 * MIB))
    write(root / "d3" / "large", rng.randbytes(9 * MIB))
    write(root / "z" / "list", rng.randbytes(24 * MIB))
    repository = fresh_repository(folder)
    return Stored(root, folder, repository, save(repository, root).node)


def _packs(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in (folder / "store" / "r").glob(f"*/{kind}/*/*") if path.is_file())


def _restore(view: TreeView, target: Path) -> None:
    restore_tree(
        view, os.fsencode(target), label="rst", overwrite=False, in_place=False, exclude=None, progress=NullProgress()
    )


def test_few_requests_bring_every_byte_once(tmp_path: Path, stored: Stored) -> None:
    """Goal: a restore asks a few times a pack instead of once a frame, and not for the same bytes again."""
    far, distant = stored.far()
    view = TreeView(distant.sealed.reader(), stored.node)
    _restore(view, tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(stored.tree)
    packs = _packs(stored.folder, "data")
    size = sum(path.stat().st_size for path in packs)
    assert far.reads["data"] <= 6 * len(packs)
    assert far.read_bytes["data"] <= 1.1 * size
    assert far.reads["meta"] <= 10
    assert view.reader._read_ahead._held_bytes == 0


def test_nothing_is_read_ahead_of_a_near_store(tmp_path: Path, stored: Stored) -> None:
    """Goal: where a request costs nothing, no memory is spent; the same restore from the same folder."""
    view = TreeView(stored.repository.sealed.reader(), stored.node)
    _restore(view, tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(stored.tree)
    assert "_read_ahead" not in vars(view.reader)


@pytest.mark.parametrize("held", [0, 3 * MIB, 48 * MIB])
def test_memory_is_bounded(tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """Goal: never more on its way than the bound, and the restore goes on where nothing fits; watched at each request."""
    monkeypatch.setattr(read_ahead, "HELD_BYTES_MAX", held)
    far, distant = stored.far()
    view = TreeView(distant.sealed.reader(), stored.node)
    most: list[int] = []
    far.fails = lambda key: most.append(view.reader._read_ahead._held_bytes)
    _restore(view, tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(stored.tree)
    assert 0 <= max(most) <= held
    assert bool(max(most)) == bool(held)


@pytest.mark.parametrize("spoil", ["flipped", "cut", "gone"])
def test_damage_is_met_as_without(tmp_path: Path, stored: Stored, spoil: str) -> None:
    """Goal: a typed error that names a file, and nothing at the target; with another copy, the right bytes from there."""
    shutil.copytree(stored.folder / "store", tmp_path / "store")
    pack = _packs(tmp_path, "data")[0]
    pack.chmod(0o600)
    if spoil == "gone":
        pack.unlink()
    else:
        blob = bytearray(pack.read_bytes())
        blob[len(blob) // 2] ^= 1
        pack.write_bytes(blob if spoil == "flipped" else blob[: len(blob) // 2])
    _, distant = stored.far(tmp_path)
    with pytest.raises(DamageError) as caught:
        _restore(TreeView(distant.sealed.reader(), stored.node), tmp_path / "out")
    assert isinstance(caught.value, ObjectDamaged) == (spoil != "gone")
    assert not (tmp_path / "out").exists()
    _, other = stored.far()
    reading = ReadingRepository(
        [Place("near", lambda: distant), Place("other", lambda: other)], keyring=stored.repository.keyring, cache=None
    )
    _restore(TreeView(reading.sealed.reader(), stored.node), tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(stored.tree)
    assert {note.served_by for note in reading.notes.all()} == {"other"}


def test_a_store_that_goes_away_is_told(tmp_path: Path, stored: Stored) -> None:
    """Goal: the store's own error ends the restore although it met a thread that read ahead; nothing is at the target."""
    far, distant = stored.far()

    def away(key: str) -> None:
        if far.reads["data"] > 2:
            raise StoreUnreachable("it is away")

    far.fails = away
    with pytest.raises(StoreUnreachable, match="away"):
        _restore(TreeView(distant.sealed.reader(), stored.node), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [each for each in threading.enumerate() if each.name.startswith("ahead")]


def test_one_thread_reads_for_all(tmp_path: Path, stored: Stored) -> None:
    """Goal: threads that want one frame at once read it once; those who waited see for themselves what is wrong."""
    far, distant = stored.far()
    view = TreeView(distant.sealed.reader(), stored.node)
    row = next(row for row in view.rows() if row.path == b"d1/small1")
    before, together, found = far.reads["data"], threading.Barrier(8), list[bytes]()

    def read() -> None:
        together.wait()
        found.append(view.reader.get(row.ids))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {(stored.tree / "d1" / "small1").read_bytes()} and len(found) == 8
    assert far.reads["data"] == before + 1


def test_metadata_is_read_on(tmp_path: Path, stored: Stored) -> None:
    """Goal: leaf after leaf without reading ahead takes a few requests a pack; a look at one path brings no more than it needs."""
    far, distant = stored.far()
    view = TreeView(distant.sealed.reader(), stored.node)
    chunks = [ref.chunk for ref in view.refs()]
    for chunk in chunks:
        view.reader.get(chunk)
    frames = {view.reader.locate(chunk).frame_offset for chunk in chunks}
    assert far.reads["meta"] <= 3 + len(frames) // 2
    near = TreeView(stored.repository.sealed.reader(), stored.node)
    assert [near.reader.get(chunk) for chunk in chunks] == [view.reader.get(chunk) for chunk in chunks]
    looked, distant = stored.far()
    view = TreeView(distant.sealed.reader(), stored.node)
    assert view.find(b"d1/small1") is not None
    assert looked.reads["meta"] <= 3 and looked.read_bytes["meta"] <= far.read_bytes["meta"]
