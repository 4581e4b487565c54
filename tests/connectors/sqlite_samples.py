"""SQLite files with awkward content, backed up through a real repository: what the SQLite tests share."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from connectors._sqlite.catalog import quote
from connectors.sqlite import SqliteConfig, SqliteConnector
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.keys import Keyring, RootKey
from engine.manifest import Manifest
from engine.ports import RestoreReport, RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.views import StoredSource, source_views
from stores.local import LocalConfig, LocalStore

AWKWARD = [
    None,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    0.1,
    -0.0,
    1e-320,
    1.7976931348623157e308,
    float("inf"),
    float("-inf"),
    "",
    "plain",
    "tab\tnewline\nreturn\rback\\slash",
    "nul\0inside",
    "'quoted\"",
    "\\N",
    "é漢\U0001f600",
    b"",
    b"\x00\xff\t\n",
    b"text as blob",
]


def run(path: Path | str, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def query(path: Path | str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytearray
        rows = connection.execute(sql).fetchall()
    return [tuple(repr(value) if isinstance(value, float) else value for value in row) for row in rows]


def everything(path: Path | str, *, rowids: bool = True) -> dict[str, Any]:
    """Every row of every table with its storage classes and rowid, and every definition.

    Without `rowids` those are left out that no column shows: in tables which tenants share, SQLite gives them out again.
    """
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        plain = {
            row[1]: bool(row[4]) for row in connection.execute("PRAGMA table_list") if row[2] in ("table", "shadow")
        }
    found: dict[str, Any] = {
        "definitions": sorted(query(path, "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    }
    for name in names:
        if name in plain:
            rowid = "" if plain[name] or not rowids else "rowid, "
            found[name] = sorted(query(path, f"SELECT {rowid}* FROM main.{quote(name)}"), key=repr)
    return found


def fill(db: sqlite3.Connection) -> None:
    """Awkward values into one table of each sort: plain, counted, keyless, named, pairs, mixed."""
    db.executemany("INSERT INTO plain(v, w) VALUES (?, ?)", [(value, f"w{at}") for at, value in enumerate(AWKWARD)])
    db.execute("INSERT INTO plain(v) VALUES (CAST(x'ff80' AS TEXT))")
    db.executemany("INSERT INTO counted(v) VALUES (?)", [(f"c{at}",) for at in range(50)])
    db.executemany("INSERT INTO keyless VALUES (?, ?)", [(value, 1) for value in AWKWARD * 2])
    db.executemany("INSERT INTO named VALUES (?, ?)", [(f"n{at}", bytes([at])) for at in range(90)])
    db.executemany("INSERT INTO pairs VALUES (?, ?, ?)", [(f"a\t{at % 7}", at, at / 3) for at in range(90)])
    db.executemany("INSERT INTO mixed VALUES (?, 1)", [(v,) for v in AWKWARD if v is not None and repr(v) != "-0.0"])


class Bench:
    """A repository in a folder, and backups of one SQLite source into it."""

    def __init__(self, folder: Path) -> None:
        root = RootKey.generate()
        self.folder = folder
        self.repository = Repository.create(
            LocalStore.make(LocalConfig(path=str(folder / "store"))),
            repository_id="rep_sqlite",
            tenant_id="ten_sqlite",
            keyring=Keyring.create(root, tenant_id="ten_sqlite", repository_id="rep_sqlite"),
            root=root,
            cache=folder / "cache",
        )
        self.number = 0
        self.parent: Manifest | None = None

    def backup(self, connector: SqliteConnector, *, full: bool = False) -> Manifest:
        self.number += 1
        request = BackupRequest(
            backup_id=f"bkp_{self.number}",
            number=self.number,
            type="full" if full or self.parent is None else "incremental",
            tenant_name="T",
            created_by="test",
            parent=self.parent,
        )
        inputs = [SourceInput("main", "database", "sqlite", connector)]
        self.parent = backup_run(self.repository, inputs, request, NullProgress())
        return self.parent

    def view(self, manifest: Manifest) -> StoredSource:
        return source_views(self.repository, manifest)["main"]

    def restore(
        self,
        connector: SqliteConnector,
        manifest: Manifest,
        *,
        target: Mapping[str, str] | None = None,
        overwrite: bool = False,
        prove: bool = False,
    ) -> RestoreReport:
        request = RestoreRequest(label="rst_1", in_place=target is None, overwrite=overwrite, prove=prove)
        aimed = connector.at(target) if target else connector
        return aimed.restore(self.view(manifest), request, NullProgress())


def database(path: Path | str) -> SqliteConnector:
    return SqliteConnector(SqliteConfig(path=str(path), busy_seconds=2))


def tenant(path: Path | str, value: str, column: str = "tenant_id") -> SqliteConnector:
    return SqliteConnector(
        SqliteConfig(path=str(path), layout="rows", tenant_column=column, tenant_value=value, busy_seconds=2)
    )
