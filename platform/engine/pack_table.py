"""Names and sizes of all packs that a store lists, small enough for a million of them."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Self

from engine.pack import PACK_BYTES_MAX, padded_size
from engine.progress import Progress
from engine.repository import Domain, Repository

_NAME_BYTES = 32
_NAME = re.compile("([0-9a-f]{2})/(\\1[0-9a-f]{62})")
_CHECK_EVERY = 10_000
FOLDERS = ("data", "meta")


def pack_key(domain: Domain, folder: str, name: str) -> str:
    """The key of a pack in one of FOLDERS."""
    return f"{domain.prefix}{folder}/{name[:2]}/{name}"


def possible_size(size: int) -> bool:
    """Whether a whole pack can have this size: they are padded, and bounded."""
    return 0 < size <= PACK_BYTES_MAX and padded_size(size) == size


class PackTable:
    """What one listing of a domain's packs showed: 40 bytes a pack, looked up by name."""

    def __init__(self) -> None:
        self._names = {folder: bytearray() for folder in FOLDERS}
        self._sizes: dict[str, array[int]] = {folder: array("Q") for folder in FOLDERS}

    @classmethod
    def listed(cls, repository: Repository, domain: Domain, progress: Progress) -> Self:
        """List the packs; keys of other forms are passed over."""
        table = cls()
        for folder in FOLDERS:
            prefix = f"{domain.prefix}{folder}/"
            names, sizes = table._names[folder], table._sizes[folder]
            for number, info in enumerate(repository.store.list(prefix)):
                if number % _CHECK_EVERY == 0:
                    progress.check()
                found = _NAME.fullmatch(info.key, len(prefix))
                if found:
                    names += bytes.fromhex(found[2])
                    sizes.append(info.size)
        return table

    def size(self, name: str) -> int | None:
        """The pack's size; None when it was not listed."""
        found = self._find(name)
        return None if found is None else self._sizes[found[0]][found[1]]

    def folder(self, name: str) -> str | None:
        """In which folder the pack was listed."""
        found = self._find(name)
        return None if found is None else found[0]

    def ordinal(self, name: str) -> int:
        """The pack's place in the order of iteration, -1 when it was not listed: arrays beside the table go by it."""
        found = self._find(name)
        if found is None:
            return -1
        return found[1] + (0 if found[0] == FOLDERS[0] else len(self._sizes[FOLDERS[0]]))

    def at(self, ordinal: int) -> tuple[str, str, int]:
        """Folder, name and size of the pack with this ordinal."""
        first = len(self._sizes[FOLDERS[0]])
        folder, number = (FOLDERS[0], ordinal) if ordinal < first else (FOLDERS[1], ordinal - first)
        name = self._names[folder][number * _NAME_BYTES : (number + 1) * _NAME_BYTES].hex()
        return folder, name, self._sizes[folder][number]

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __len__(self) -> int:
        return sum(len(sizes) for sizes in self._sizes.values())

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Folder, name and size of each, by folder and name."""
        for folder in FOLDERS:
            names, sizes = self._names[folder], self._sizes[folder]
            for at, size in enumerate(sizes):
                yield folder, names[at * _NAME_BYTES : (at + 1) * _NAME_BYTES].hex(), size

    @property
    def bytes(self) -> int:
        """All sizes added up."""
        return sum(sum(sizes) for sizes in self._sizes.values())

    def _find(self, name: str) -> tuple[str, int] | None:
        wanted = bytes.fromhex(name)
        for folder in FOLDERS:
            names, count = self._names[folder], len(self._sizes[folder])
            at = bisect_left(range(count), wanted, key=lambda n: bytes(names[n * 32 : n * 32 + 32]))
            if at < count and names[at * _NAME_BYTES : (at + 1) * _NAME_BYTES] == wanted:
                return folder, at
        return None
