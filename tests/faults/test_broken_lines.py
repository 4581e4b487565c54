"""Backups over a line that breaks all the time: sshd's processes are killed again and again under a tenant's life."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stores
from engine.adapters import parse_config
from engine.keys import Keyring, RootKey
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.verify import verify_backup
from stores._retry import RetryStore
from tests.conftest import Rounds
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth
from tests.services.absent import absent
from tests.services.cached_programs import sshd as sshd_program
from tests.services.kinds import store_made
from tests.services.sshd import Sshd

CUT_EVERY_SECONDS = (0.05, 0.6)


@contextmanager
def cutting(server: Sshd, rng: random.Random) -> Iterator[list[int]]:
    """Kill what serves connections at random moments during the block; how often it was done."""
    done, cuts = threading.Event(), [0]

    def cut() -> None:
        while not done.wait(rng.uniform(*CUT_EVERY_SECONDS)):
            server.cut()
            cuts[0] += 1

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield cuts
    finally:
        done.set()
        thread.join()


def test_a_tenants_life_over_a_line_that_breaks(rng: random.Random, rounds: Rounds, tmp_path: Path) -> None:
    """Goal: patience is all it takes; back up, prune and read while the server's processes die, then judge what is there."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start()
    try:
        values = server.values()
        store_made("sftp", values).close()
        adapter: Any = stores.load_all().get("sftp")
        store = RetryStore(adapter(parse_config(adapter.Config, values)), wait_first_seconds=0.02, wait_seconds_max=0.2)
        root = RootKey.generate()
        keyring = Keyring.create(root, tenant_id="t", repository_id="r")
        Repository.create(store, repository_id="r", tenant_id="t", keyring=keyring, root=root)
        table = MemoryTable("rows", {n: f"row {n}" for n in range(100)})
        (tmp_path / "tree").mkdir()
        source = MemorySource([table], tmp_path / "tree", b"ddl")
        wanted: dict[int, dict[str, Any]] = {}
        with cutting(server, rng) as cuts:
            for number in range(1, 1 + len(rounds(5))):
                table.set(rng.randrange(200), f"v{number}")
                (tmp_path / "tree" / f"f{number % 3}").write_bytes(rng.randbytes(3_000_000))
                wanted[number] = truth(source)
                repository = Repository(store, keyring, cache=None)
                backup(repository, source, number, parent=repository.manifest(number - 1) if number > 1 else None)
                if number % 3 == 0:
                    ending = {min(wanted): "retention"}
                    prune(repository, forget=ending, head=number, dry_run=False, progress=NullProgress())
                    del wanted[min(wanted)]
            while not cuts[0]:
                store.stat("r/r/config")
        repository = Repository(store, keyring, cache=None)
        for number, expected in wanted.items():
            manifest = repository.manifest(number)
            assert content(repository, manifest) == expected
            assert verify_backup(repository, manifest, deep=True, progress=NullProgress()) == []
        store.close()
    finally:
        server.discard()
