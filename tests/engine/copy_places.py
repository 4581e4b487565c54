"""A repository and its copies in local stores, with a source that changes: what the tests of copying begin with."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.copy import CopyReport, CopyWish, copy_run
from engine.copy_small import config_copy
from engine.errors import ObjectExists
from engine.keys import Keyring, RootKey
from engine.ports import Store
from engine.progress import NullProgress
from engine.repository import Repository
from stores.local import LocalConfig, LocalStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


class Places:
    """A primary and any number of copies; the catalogue's part is played by `expected` and `serials`."""

    def __init__(self, folder: Path, *, seed: int = 7) -> None:
        self.folder, self.root = folder, RootKey.generate()
        self.keyring = Keyring.create(self.root, tenant_id="t", repository_id="r")
        self.rng = random.Random(seed)
        self.tree = folder / "tree"
        self.tree.mkdir(parents=True)
        self.source = MemorySource([MemoryTable("rows", {n: f"row {n}" for n in range(60)})], self.tree, b"ddl")
        Repository.create(self.store("primary"), repository_id="r", tenant_id="t", keyring=self.keyring, root=self.root)
        self.head = 0
        self.expected: dict[int, dict[str, Any]] = {}
        self.serials: dict[str, int] = {}

    def store(self, name: str) -> LocalStore:
        return LocalStore.make(LocalConfig(path=str(self.folder / name)))

    def repository(self, name: str = "primary", store: Store | None = None) -> Repository:
        return Repository(store or self.store(name), self.keyring, cache=None)

    def change(self, *names: str, size: int = 30_000) -> None:
        for name in names or ("f0",):
            (self.tree / name).write_bytes(self.rng.randbytes(size))
        (table,) = self.source.tables()
        table.set(self.rng.randrange(100), f"v{self.rng.randrange(1000)}")

    def backup(self, *, store: Store | None = None, encrypt: bool = True) -> int:
        """Take one backup; its number."""
        self.head += 1
        backup(self.repository(store=store), self.source, self.head, encrypt=encrypt)
        self.expected[self.head] = truth(self.source)
        return self.head

    def copy(
        self,
        name: str = "copy",
        *,
        wanted: Iterable[int] | None = None,
        source: Repository | None = None,
        store: Store | None = None,
        **more: Any,
    ) -> CopyReport:
        """Run the copy of that name, made when it is not there."""
        source, store = source or self.repository(), store or self.store(name)
        try:
            config_copy(source, store)
        except ObjectExists:
            raise AssertionError("another repository lies there") from None
        target = Repository.open(store, repository_id="r", keyring=self.keyring)
        wish = CopyWish(
            copy=name,
            wanted=frozenset(self.expected if wanted is None else wanted),
            known=frozenset(self.expected),
            head=self.head,
            selection=self.serials.get(name, 0),
            **more,
        )
        report = copy_run(source, target, wish, NullProgress())
        self.serials[name] = report.selection
        return report

    def packs(self, name: str) -> set[str]:
        return {path.name for path in (self.folder / name / "r/r").rglob("??/*") if len(path.name) == 64}

    def check(self, name: str, numbers: Iterable[int] | None = None) -> None:
        """The copy alone gives back these backups (all of them) byte for byte."""
        repository = Repository.open(self.store(name), repository_id="r", keyring=self.keyring)
        for number in self.expected if numbers is None else numbers:
            assert content(repository, repository.manifest(number)) == self.expected[number], number

    def lose(self, name: str) -> None:
        shutil.rmtree(self.folder / name)
