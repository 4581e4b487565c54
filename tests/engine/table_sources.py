"""Tables that live in memory and a chunk store that counts what is read: shipped fakes for the tests of runs."""

import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from blake3 import blake3

from engine.errors import ChunkMissing
from engine.ports import Buffer, Column, KeySpec

_ESCAPES = str.maketrans({"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"})


def copy_text(value: str | None) -> bytes:
    """A field in COPY text format."""
    return b"\\N" if value is None else value.translate(_ESCAPES).encode()


class MemoryChunks:
    """A session, its lanes and a reader in one: chunks by id, with counts of what was stored and read."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.stored = self.read_bytes = self.read_calls = 0
        self.meta = self
        self._lock = threading.Lock()

    def add(self, data: Buffer, *, fast: bool = False) -> bytes:
        data = bytes(data)
        assert len(data) <= 8 << 20
        chunk_id = blake3(data).digest()
        with self._lock:
            if chunk_id not in self.chunks:
                self.chunks[chunk_id] = data
                self.stored += len(data)
        return chunk_id

    add_small = add

    def submit(self, work: Callable[[Any], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(self))
        return future

    def get(self, chunk_id: bytes) -> bytes:
        try:
            data = self.chunks[chunk_id]
        except KeyError:
            raise ChunkMissing(chunk_id.hex()) from None
        with self._lock:
            self.read_bytes += len(data)
            self.read_calls += 1
        return data

    def count_reads(self) -> None:
        self.read_bytes = self.read_calls = 0


KEYS: dict[str, KeySpec] = {
    "int": KeySpec(("int",)),
    "text": KeySpec(("text",)),
    "uuid": KeySpec(("uuid",)),
    "hash": KeySpec(("hash",)),
    "pair": KeySpec(("int", "text")),
    "triple": KeySpec(("text", "hash", "uuid")),
    "synthetic": KeySpec(("text", "int"), synthetic=2),
}


def any_field(kind: str, rng: random.Random) -> bytes:
    """A key field, from few enough values that histories meet the same key again."""
    if kind == "int":
        return b"%d" % rng.choice([rng.randrange(-300, 900), -(1 << 63), (1 << 63) - 1])
    if kind == "uuid":
        return str(uuid.UUID(int=rng.randrange(700) << 100)).encode()
    return copy_text("".join(rng.choice(["a", "b", "\t", "\n", "\\", "é", "", "\0", "\x01", "N"]) for _ in range(4)))


class MemoryPart:
    """A TablePart whose rows a test changes; each write gives the row a new version when there are versions."""

    def __init__(self, key: KeySpec = KEYS["int"], *, versioned: bool = True, name: str = "rows") -> None:
        self.name = self.module = name
        self.key = key
        self.columns = tuple(Column(f"c{at}", "text") for at in range(len(key.kinds) - key.synthetic + 1))
        self.fingerprint, self.facts = "f1", {"quoted": name}
        self.version_domain = "memory:1" if versioned else ""
        self.versioned = versioned
        self.content: dict[bytes, tuple[int, bytes]] = {}
        self._clock = 0
        self.calls = {"rows": 0, "versions": 0, "rows_for": 0}

    def set(self, key_text: bytes, value: bytes, *, silent: bool = False) -> None:
        """Write a row; silent keeps its version, as no database would."""
        self._clock += 1
        version = self.content[key_text][0] if silent and key_text in self.content else self._clock
        self.content[key_text] = (version, value)

    def ordered(self) -> list[bytes]:
        return sorted(self.content, key=self.key.encode)

    def plain(self) -> list[bytes]:
        return [self.row(text) for text in self.ordered()]

    def row(self, text: bytes) -> bytes:
        return text + b"\t" + self.content[text][1]

    def _version(self, text: bytes) -> bytes:
        return b"%d\t" % self.content[text][0] if self.versioned else b"\t"

    def _batches(self, lines: list[bytes], size: int = 37) -> Iterator[list[bytes]]:
        for at in range(0, len(lines), size):
            yield lines[at : at + size]

    def rows(self) -> Iterator[list[bytes]]:
        self.calls["rows"] += 1
        return self._batches([self._version(text) + self.row(text) for text in self.ordered()])

    def versions(self) -> Iterator[list[bytes]]:
        self.calls["versions"] += 1
        return self._batches([self._version(text) + text for text in self.ordered()])

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        self.calls["rows_for"] += 1
        assert list(keys) == sorted(keys, key=self.key.encode), "keys come sorted"
        return self._batches([self._version(text) + self.row(text) for text in keys if text in self.content], 11)


class WidePart:
    """Integer keys and generated rows of a given width, held as lists for tests of size and speed."""

    def __init__(self, count: int, width: int = 100) -> None:
        self.name = self.module = "wide"
        self.key = KEYS["int"]
        self.columns = (Column("id", "bigint"), Column("text", "text"))
        self.fingerprint, self.version_domain, self.facts = "f1", "memory:1", {}
        self.count, self.width = count, width
        self.versions_of = [700] * count

    def _line(self, at: int) -> bytes:
        version = self.versions_of[at]
        noise = random.Random(at << 20 | version).randbytes(self.width // 4).hex()
        return b"%d\t%d\t%s" % (version, at, (noise + "filler text " * 20)[: self.width].encode())

    def rows(self) -> Iterator[list[bytes]]:
        for begin in range(0, self.count, 5000):
            yield [self._line(at) for at in range(begin, min(begin + 5000, self.count))]

    def versions(self) -> Iterator[list[bytes]]:
        for begin in range(0, self.count, 5000):
            yield [b"%d\t%d" % (self.versions_of[at], at) for at in range(begin, min(begin + 5000, self.count))]

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        yield [self._line(int(text)) for text in keys]

    def change(self, rng: random.Random, count: int) -> None:
        for at in rng.sample(range(self.count), count):
            self.versions_of[at] += 1

    def plain(self) -> list[bytes]:
        return [line.partition(b"\t")[2] for batch in self.rows() for line in batch]
