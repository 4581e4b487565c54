"""Fingerprints of a tenant's data taken without the engine: what the demo compares is not what it tests."""

import hashlib
import os
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path

from tenants.demo.content import DemoTenant

Fingerprint = Mapping[str, str]
"""One line for each row and each path: what it is -> what it holds."""


def fingerprint(tenant: DemoTenant) -> dict[str, str]:
    """Every row, every definition and every path of the tenant."""
    return {
        **_database(tenant.database),
        **_tree("assets", tenant.assets),
        **_tree("configurations", tenant.configurations),
    }


def differences(want: Fingerprint, got: Fingerprint) -> list[str]:
    """Names of what differs, sorted."""
    return sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))


def _database(path: Path) -> dict[str, str]:
    lines: dict[str, str] = {}
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.text_factory = bytes
        defined = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
        for kind, name, sql in defined:
            lines[f"database {kind.decode()} {name.decode()}"] = repr(sql)
        for kind, name, _ in defined:
            if kind == b"table" and not name.startswith(b"sqlite_"):
                table = name.decode()
                # The type beside the value: 1, 1.0 and '1' are three different things in SQLite.
                for row in connection.execute(f'SELECT rowid, * FROM "{table}"'):  # noqa: S608 - our own tables
                    lines[f"database row {table} {row[0]}"] = repr([(type(value).__name__, value) for value in row])
    finally:
        connection.close()
    return lines


def _tree(label: str, top: Path) -> dict[str, str]:
    lines = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            lines[f"{label} {path.relative_to(top)}"] = _entry(path)
    return lines


def _entry(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link {os.readlink(path)}"
    facts = f"{stat.S_IFMT(status.st_mode):o} {stat.S_IMODE(status.st_mode):o} {status.st_uid} {status.st_gid}"
    if stat.S_ISDIR(status.st_mode):
        return facts
    return f"{facts} {status.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
