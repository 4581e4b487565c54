"""Makes the golden repository of format version 1: `python -m tests.formats.golden FOLDER`.

It was run once; what it wrote is kept under golden-v1/ and never made again, so that every later engine
and the standalone reader must go on reading it. The root key and the passphrase are public and protect nothing.
"""

import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from connectors.eventlog import EventLogConfig, EventLogConnector
from connectors.files import FilesConfig, FilesConnector
from connectors.sqlite import SqliteConfig, SqliteConnector
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.keys import Keyring, RootKey
from engine.kit import kit_export
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.views import source_views
from stores.local import LocalConfig, LocalStore
from tests.connectors.eventlog_samples import write_log

ROOT_KEY = RootKey(hashlib.sha256(b"the golden root key is public").digest())
PASSPHRASE = "golden passphrase, known to all"
REPOSITORY, TENANT = "rep_golden", "ten_golden"
GOLDEN = Path(__file__).parent / "golden-v1"


def open_repository(store: Path) -> Repository:
    opened = LocalStore(LocalConfig(path=str(store)))
    keyring = Keyring.from_bytes(opened.get(f"r/{REPOSITORY}/keyring"), ROOT_KEY)
    return Repository.open(opened, repository_id=REPOSITORY, keyring=keyring)


def make_sources(base: Path) -> list[SourceInput]:
    """A small tree with every kind of entry, a database, a log."""
    tree = base / "tree"
    (tree / "docs" / "empty").mkdir(parents=True)
    (tree / "docs" / "hello.txt").write_text("olá\n")
    (tree / "docs" / "big.bin").write_bytes(b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(9_000)))
    (tree / "name with\nnewline").write_bytes(b"x")
    (tree / "none").write_bytes(b"")
    os.link(tree / "docs" / "hello.txt", tree / "hard link")
    os.symlink("docs/hello.txt", tree / "symlink")
    with open(tree / "sparse", "wb") as handle:
        handle.truncate(1_000_000)
        handle.seek(500_000)
        handle.write(b"island")
    (tree / "docs" / "hello.txt").chmod(0o640)
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, ns=(1_700_000_000_123_456_789,) * 2, follow_symlinks=False)
    with sqlite3.connect(base / "shop.db") as database:
        database.execute("create table item (id integer primary key, name text, price real, picture blob)")
        database.execute("create table tag (code text primary key, meaning text) without rowid")
        rows = [(n, f"item {n}\ttab", n / 3, b"\0%d" % n if n % 7 else None) for n in range(1, 1001)]
        database.executemany("insert into item values (?, ?, ?, ?)", rows)
        database.executemany(
            "insert into tag values (?, ?)", [("b\\", "back\\slash"), ("a", None), ("ü", "line\nbreak")]
        )
    database.close()
    write_log(base / "data", 25)
    return [
        SourceInput("assets", "assets", "files", FilesConnector(FilesConfig(path=str(tree)))),
        SourceInput("shop", "database", "sqlite", SqliteConnector(SqliteConfig(path=str(base / "shop.db")))),
        SourceInput("log", "database", "eventlog", EventLogConnector(EventLogConfig(path=str(base / "data")))),
    ]


def change_sources(base: Path) -> None:
    """What the incremental sees."""
    (base / "tree" / "docs" / "later.txt").write_text("later\n")
    (base / "tree" / "none").unlink()
    with sqlite3.connect(base / "shop.db") as database:
        database.execute("update item set name = 'changed' where id % 100 = 3")
        database.execute("delete from item where id % 250 = 7")
        database.execute("insert into item values (5000, 'new', 0.5, x'00ff')")
        database.execute("delete from tag where code = 'a'")
    database.close()
    write_log(base / "data", 33)


def back_up(
    repository: Repository, inputs: list[SourceInput], number: int, parent: Manifest | None, **more: Any
) -> Manifest:
    request = BackupRequest(
        backup_id=f"bkp_golden_{number}",
        number=number,
        type="incremental" if parent else "full",
        tenant_name="Gôlden",
        created_by="golden",
        tags=("golden",),
        parent=parent,
        previous=parent.sha256 if parent else None,
        **more,
    )
    return backup_run(repository, inputs, request, NullProgress())


def describe(repository: Repository, manifest: Manifest) -> dict[str, Any]:
    """What a backup holds, as today's engine reads it: SHA-256 of every file, table and document."""
    found: dict[str, Any] = {}
    for name, view in source_views(repository, manifest).items():
        for tree in view.trees:
            for entry in tree.entries():  # type: ignore[attr-defined]
                digest = hashlib.sha256(b"".join(tree.read(entry))).hexdigest() if entry.is_file else None  # type: ignore[attr-defined]
                link = entry.target.decode() if entry.row.extra and "target" in entry.row.extra else None
                shown = [oct(entry.stat.mode), entry.mtime_ns // 10**9 if entry.path else 0, digest or link]
                found[f"{name}/{tree.name}/{entry.path.decode()}"] = shown
        for table in view.tables:
            header = "\t".join(column.name for column in table.columns).encode()
            lines = [line for batch in table.rows() for line in batch]
            if table.key.synthetic:
                lines = [line.split(b"\t", table.key.synthetic)[-1] for line in lines]
            text = b"".join(line + b"\n" for line in [header, *lines])
            found[f"{name}/{table.name}.copy"] = hashlib.sha256(text).hexdigest()
        for document in view.documents.values():
            found[f"{name}/{document.name}"] = hashlib.sha256(document.read()).hexdigest()
    return found


def make(folder: Path) -> None:
    """Write store, kit and expected.json into the new folder."""
    folder.mkdir(parents=True)
    store = LocalStore.make(LocalConfig(path=str((folder / "store").resolve())))
    keyring = Keyring.create(ROOT_KEY, tenant_id=TENANT, repository_id=REPOSITORY)
    repository = Repository.create(store, repository_id=REPOSITORY, tenant_id=TENANT, keyring=keyring, root=ROOT_KEY)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = make_sources(Path(scratch))
        first = back_up(repository, inputs, 1, None)
        change_sources(Path(scratch))
        second = back_up(repository, inputs, 2, first)
        repository.void(3, "the session is gone")
        plain = back_up(repository, inputs, 4, None, encrypt=False, compress=False)
    row = {
        "repository_id": REPOSITORY,
        "tenant_id": TENANT,
        "tenant_name": "Gôlden",
        "public_key": keyring.public_key.hex(),
    }
    (folder / "kit.json").write_bytes(kit_export(ROOT_KEY, PASSPHRASE, [row]))
    expected = {each.document["id"]: describe(repository, each) for each in (first, second, plain)}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
