"""The standalone reader over tables of every key kind and many deltas, against what the source held."""

import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.backup import BackupRequest, SourceInput, backup_run
from engine.keys import Keyring
from engine.kit import kit_export
from engine.manifest import Manifest
from engine.ports import Column, KeySpec
from engine.progress import NullProgress
from engine.repository import Repository
from stores.local import LocalConfig, LocalStore
from tests.formats.golden import PASSPHRASE, REPOSITORY, ROOT_KEY, TENANT
from tests.formats.test_reader import run

ROWS, BACKUPS = 700, 14
TEXTS = (b"", b"a", b"\\\\", b"tab\\t", "ü€".encode(), b"\\N\\n", b"z" * 300, b"x\\by")


class Rows:
    """A source with one table that changes at random; rows keep a version that rises with each change."""

    def __init__(self, key: KeySpec, rng: random.Random) -> None:
        self.name = self.module = "rows"
        self.key, self._rng = key, rng
        count = len(key.kinds) - key.synthetic
        self.columns = (*(Column(f"k{n}", "text") for n in range(count)), Column("value", "text"))
        self.fingerprint, self.version_domain, self.facts = "f", "v", {}
        self.position, self.schema_version = {"at": "now"}, "1"
        self._clock = 0
        self._rows: dict[bytes, tuple[bytes, bytes]] = {}
        self.change(ROWS)

    def _field(self, kind: str) -> bytes:
        rng = self._rng
        if kind == "int":
            return b"%d" % rng.randrange(-(1 << 40), 1 << 40)
        if kind == "uuid":
            return str(uuid.UUID(int=rng.getrandbits(128))).encode()
        return rng.choice(TEXTS) + b"%d" % rng.randrange(10**6)

    def change(self, count: int) -> None:
        rng = self._rng
        for _ in range(count):
            self._clock += 1
            key = b"\t".join([self._field(kind) for kind in self.key.kinds])
            if self._rows and rng.random() < 0.4:
                key = rng.choice(list(self._rows))
            if rng.random() < 0.15:
                self._rows.pop(key, None)
            else:
                self._rows[key] = b"%d" % self._clock, rng.choice(TEXTS) + b"%d" % self._clock

    def _sorted(self) -> list[bytes]:
        return sorted(self._rows, key=self.key.encode)

    def _line(self, key: bytes) -> bytes:
        version, value = self._rows[key]
        return b"\t".join([version, key, value])

    def plain(self) -> bytes:
        """What the reader must write."""
        names = "\t".join(column.name for column in self.columns).encode()
        rows = [self._line(key).split(b"\t")[1 + self.key.synthetic :] for key in self._sorted()]
        return b"".join(line + b"\n" for line in [names, *(b"\t".join(row) for row in rows)])

    def rows(self) -> Iterator[list[bytes]]:
        yield [self._line(key) for key in self._sorted()]

    def versions(self) -> Iterator[list[bytes]]:
        yield [self._rows[key][0] + b"\t" + key for key in self._sorted()]

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        yield [self._line(key) for key in keys if key in self._rows]

    @contextmanager
    def open(self, progress: Any) -> Iterator["Rows"]:
        yield self

    def tables(self) -> list["Rows"]:
        return [self]

    def trees(self) -> list[Any]:
        return []

    def documents(self) -> list[Any]:
        return []

    def finish(self) -> Mapping[str, Any]:
        return {
            "share": 0.1,
            "small": 1e-5,
            "large": [1e20, 1.5e300, 1e21],
            "tiny": [5e-7, 1.25e-10],
            "none": -0.0,
            "text": 'ü"\\\u2028\x1f',
        }


@pytest.mark.parametrize(
    "key",
    [
        KeySpec(("int",)),
        KeySpec(("uuid",)),
        KeySpec(("text",)),
        KeySpec(("hash",)),
        KeySpec(("int", "text")),
        KeySpec(("text", "uuid", "hash")),
        KeySpec(("hash", "int"), synthetic=2),
    ],
)
def test_reader_extracts_tables_with_deltas(tmp_path: Path, key: KeySpec, seed: int) -> None:
    """Goal: the table format is as documented. Method: random histories, the last backup extracted and compared."""
    source = Rows(key, random.Random(seed))
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    keyring = Keyring.create(ROOT_KEY, tenant_id=TENANT, repository_id=REPOSITORY)
    repository = Repository.create(store, repository_id=REPOSITORY, tenant_id=TENANT, keyring=keyring, root=ROOT_KEY)
    parent: Manifest | None = None
    deltas = 0
    for number in range(1, BACKUPS + 1):
        request = BackupRequest(
            backup_id=f"bkp_{number}",
            number=number,
            type="incremental" if parent else "full",
            tenant_name="Test",
            created_by="test",
            parent=parent,
        )
        inputs = [SourceInput("db", "database", "rows", source)]  # type: ignore[arg-type]
        parent = backup_run(repository, inputs, request, NullProgress())
        deltas = max(deltas, parent.document["sources"][0]["tables"][0]["runs"]["deltas"])
        wanted = source.plain()
        source.change(6)
    assert deltas > 2
    (tmp_path / "kit.json").write_bytes(kit_export(ROOT_KEY, PASSPHRASE, []))
    done = run(tmp_path / "store", tmp_path / "kit.json", "extract", f"bkp_{BACKUPS}", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "db" / "rows.copy").read_bytes() == wanted
