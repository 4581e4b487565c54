"""The trees that are backed up: real files of this machine, and very many small ones.

The same seed makes the same choice from the same machine. Other machines have other files; both programs always
see the same tree.
"""

import itertools
import os
import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

FILE_BYTES_MAX = 200_000_000
LARGEST_FOLDER = 10
MUTATED_SHARE = 0.02
SMALL_BYTES = range(200, 2048)
SMALL_PER_FOLDER = 250
FOLDERS_PER_FOLDER = 16
COPY_BYTES = 1 << 20


class TooFewFiles(Exception):
    """The machine has not enough real files for the wanted size."""


@dataclass(frozen=True)
class Tree:
    """A tree and what is in it."""

    path: Path
    files: int
    bytes: int


# ---------------------------------------------------------------- real files


def copy_real(target: Path, *, bytes_wanted: int, seed: int, root: Path = Path("/usr")) -> Tree:
    """Copy folders of this machine, in an order drawn by the seed, until their files have the wanted size.

    Whole folders, so that as many files share a folder as do in real trees; of one that would make up more than
    a tenth of everything, only some files. Hard links count once, symbolic links are left out. Raises TooFewFiles.
    """
    folders: dict[str, list[tuple[str, int]]] = {}
    for path, size in _real_files(root):
        folders.setdefault(os.path.dirname(path), []).append((path, size))
    total = count = 0
    for folder in sorted(folders, key=lambda path: _draw(seed, path)):
        room = bytes_wanted // LARGEST_FOLDER
        for path, size in sorted(folders[folder], key=lambda file: _draw(seed, file[0])):
            if total >= bytes_wanted:
                return Tree(target, count, total)
            if size > room:
                continue
            place = target / path.lstrip("/")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
            except OSError:  # a package manager may be at work; another file serves as well
                continue
            total, count, room = total + size, count + 1, room - size
    raise TooFewFiles(f"only {total / 1e9:.2f} GB of files below {root}: use a smaller scale")


def _draw(seed: int, path: str) -> int:
    """A number that stays the same for a path whatever else there is."""
    return crc32(os.fsencode(path), seed)


def _real_files(root: Path) -> Iterator[tuple[str, int]]:
    seen: set[tuple[int, int]] = set()
    device = os.lstat(root).st_dev
    for top, folders, names in os.walk(root):
        folders[:] = [name for name in folders if os.lstat(os.path.join(top, name)).st_dev == device]
        for name in names:
            path = os.path.join(top, name)
            about = os.lstat(path)
            if not os.path.isfile(path) or os.path.islink(path) or not 0 < about.st_size <= FILE_BYTES_MAX:
                continue
            if (about.st_dev, about.st_ino) not in seen:
                seen.add((about.st_dev, about.st_ino))
                yield path, about.st_size


def warm(tree: Tree) -> None:
    """Read every file once, so that both programs find the tree in the page cache."""
    buffer = memoryview(bytearray(COPY_BYTES))
    for top, _, names in os.walk(tree.path):
        for name in names:
            with open(os.path.join(top, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


# ---------------------------------------------------------------- changes


def mutate(tree: Tree, *, seed: int, share: float = MUTATED_SHARE) -> int:
    """Change a share of the files as people do: edits inside, appends, renames, deletions, new files.

    Returns how many were touched.
    """
    rng = random.Random(seed)
    paths = sorted(os.path.join(top, name) for top, _, names in os.walk(tree.path) for name in names)
    chosen = rng.sample(paths, max(5, int(len(paths) * share)))
    steps = rng.choices((_edit, _append, _rename, _delete, _create), cum_weights=(45, 60, 70, 80, 100), k=len(chosen))
    for path, step in zip(chosen, steps, strict=True):
        step(path, rng)
    return len(chosen)


def _edit(path: str, rng: random.Random) -> None:
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(rng.randrange(max(1, size - 64)))
        file.write(rng.randbytes(min(size, rng.randint(1, 64))))


def _append(path: str, rng: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(rng.randbytes(rng.randint(100, 10_000)))


def _rename(path: str, rng: random.Random) -> None:
    os.rename(path, f"{path}.{rng.randrange(10**9)}")


def _delete(path: str, _rng: random.Random) -> None:
    os.unlink(path)


def _create(path: str, rng: random.Random) -> None:
    """A new file beside one that exists, with half of its bytes moved by an insertion."""
    with open(path, "rb") as file:
        data = file.read(10_000_000)
    place = rng.randrange(len(data) + 1)
    with open(f"{path}.{rng.randrange(10**9)}", "wb") as file:
        file.write(data[:place] + rng.randbytes(1000) + data[place:])


# ---------------------------------------------------------------- very many files


def words() -> tuple[list[str], list[int]]:
    """English words with how often they occur, from the text that comes with Python itself."""
    from collections import Counter
    from pydoc_data import topics

    counts = Counter(re.findall(r"[a-z]{2,}", " ".join(topics.topics.values()).lower()))
    return list(counts), list(counts.values())


def make_small(target: Path, *, files: int, seed: int) -> Tree:
    """Make very many small text files, all different, in nested folders; two processes write."""
    folders = [f"{index // FOLDERS_PER_FOLDER:04x}/{index % FOLDERS_PER_FOLDER:x}" for index in range(
        -(-files // SMALL_PER_FOLDER)
    )]  # fmt: skip
    halves = [folders[::2], folders[1::2]]
    with ProcessPoolExecutor(len(halves)) as pool:
        made = list(pool.map(_write_small, itertools.repeat(target), halves, (seed, seed + 1)))
    return Tree(target, sum(count for count, _ in made), sum(size for _, size in made))


def _write_small(target: Path, folders: list[str], seed: int) -> tuple[int, int]:
    rng = random.Random(seed)
    known, weights = words()
    text = " ".join(rng.choices(known, weights, k=400_000)).encode()
    starts = len(text) - SMALL_BYTES.stop
    total = 0
    for folder in folders:
        os.makedirs(target / folder)
        handle = os.open(target / folder, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(SMALL_PER_FOLDER):
            begin = rng.randrange(starts)
            data = b"%s %d\n%s" % (folder.encode(), number, text[begin : begin + rng.choice(SMALL_BYTES)])
            file = os.open(f"{number:03d}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=handle)
            os.write(file, data)
            os.close(file)
            total += len(data)
        os.close(handle)
    return len(folders) * SMALL_PER_FOLDER, total
