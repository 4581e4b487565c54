"""Made-up tenants: a SQLite database, assets and configurations each, the same on every run."""

import json
import random
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

USERS, ROOMS, RESERVATIONS = 2_000, 80, 12_000
ASSETS, ASSET_FOLDERS = 240, 12
LARGE_BYTES = 3_000_000

_SCHEMA = """
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, note TEXT);
CREATE TABLE rooms (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL NOT NULL);
CREATE TABLE reservations (
  id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, room_id INTEGER NOT NULL REFERENCES rooms,
  nights INTEGER NOT NULL, paid NUMERIC, extra TEXT
);
CREATE INDEX reservations_user ON reservations (user_id);
CREATE VIEW revenue AS SELECT room_id, sum(paid) AS paid FROM reservations GROUP BY room_id;
"""


@dataclass(frozen=True)
class DemoTenant:
    """Where one made-up tenant's data lies."""

    slug: str
    name: str
    criticality: str
    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "data" / "hotel.sqlite3"

    @property
    def assets(self) -> Path:
        return self.folder / "assets"

    @property
    def configurations(self) -> Path:
        return self.folder / "configurations"


def demo_tenants(folder: Path) -> tuple[DemoTenant, ...]:
    """The three of them."""
    return (
        DemoTenant("aurora", "Hotel Aurora", "critical", folder / "aurora"),
        DemoTenant("boreal", "Pousada Boreal", "important", folder / "boreal"),
        DemoTenant("cobre", "Casa de Cobre", "normal", folder / "cobre"),
    )


def make(tenant: DemoTenant) -> None:
    """Write the tenant's data anew; what an earlier run left there goes first."""
    rng = random.Random(tenant.slug)  # noqa: S311 - made-up data wants to be the same every time
    shutil.rmtree(tenant.folder, ignore_errors=True)
    for folder in (tenant.database.parent, tenant.assets, tenant.configurations):
        folder.mkdir(parents=True, mode=0o755)
    _database(tenant.database, rng)
    _assets(tenant.assets, rng)
    _configurations(tenant, rng)


def change(tenant: DemoTenant) -> None:
    """A day's work: some rows and files change, some are new, some go."""
    rng = random.Random(f"{tenant.slug} day two")  # noqa: S311 - as above
    connection = sqlite3.connect(tenant.database)
    with connection:
        for _ in range(60):
            row = rng.randrange(1, RESERVATIONS + 1)
            connection.execute("UPDATE reservations SET nights = nights + 1 WHERE id = ?", (row,))
        connection.executemany(
            "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?)",
            [_reservation(RESERVATIONS + n, rng) for n in range(1, 41)],
        )
        connection.execute("DELETE FROM reservations WHERE id BETWEEN 500 AND 510")
    connection.close()
    (tenant.assets / "folder-00" / "new-arrival.bin").write_bytes(rng.randbytes(40_000))
    (tenant.assets / "folder-01" / "file-001.bin").unlink(missing_ok=True)
    with open(tenant.assets / "film.bin", "r+b") as handle:
        handle.seek(LARGE_BYTES // 2)
        handle.write(b"a new scene")
    (tenant.configurations / "features.json").write_text(json.dumps({"breakfast": True, "late_checkout": True}))


def damage(tenant: DemoTenant) -> dict[str, int]:
    """What one bad deployment does: rows deleted and changed, files lost and overwritten; says how much."""
    connection = sqlite3.connect(tenant.database)
    with connection:
        deleted = connection.execute("DELETE FROM reservations WHERE id % 3 = 0").rowcount
        deleted += connection.execute("DELETE FROM rooms WHERE id > 70").rowcount
        changed = connection.execute("UPDATE users SET email = NULL, note = 'lost' WHERE id % 2 = 0").rowcount
        changed += connection.execute("INSERT INTO rooms VALUES (9999, 'stray', 0)").rowcount
    connection.close()
    lost = _lose_files(tenant)
    (tenant.configurations / "settings.ini").write_text("[hotel]\nname = overwritten\n")
    (tenant.assets / "stray.tmp").write_bytes(b"this was never part of it")
    return {"rows_deleted": deleted, "rows_changed": changed, "files_lost": lost, "files_changed": 2}


def _lose_files(tenant: DemoTenant) -> int:
    lost = 0
    for folder in ("folder-02", "folder-03"):
        lost += sum(1 for path in (tenant.assets / folder).iterdir() if path.is_file())
        shutil.rmtree(tenant.assets / folder)
    with open(tenant.assets / "film.bin", "r+b") as handle:
        handle.truncate(1_000)
    return lost


def _database(path: Path, rng: random.Random) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        connection.executescript(_SCHEMA)
        connection.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?)",
            [
                (n, f"Guest {n} Çã\t{n}", f"g{n}@example.org", rng.choice([None, "", "vip", "x" * 60]))
                for n in range(1, USERS + 1)
            ],
        )
        connection.executemany(
            "INSERT INTO rooms VALUES (?, ?, ?)", [(n, f"Room {n}", 40 + n / 3) for n in range(1, ROOMS + 1)]
        )
        connection.executemany(
            "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?)",
            [_reservation(n, rng) for n in range(1, RESERVATIONS + 1)],
        )
    connection.close()


def _reservation(number: int, rng: random.Random) -> tuple[object, ...]:
    extra = rng.choice([None, "", "late", json.dumps({"bed": rng.randrange(9), "ref": f"{rng.getrandbits(64):x}"})])
    return (number, rng.randrange(1, USERS + 1), rng.randrange(1, 71), rng.randrange(1, 15), rng.random() * 900, extra)


def _assets(folder: Path, rng: random.Random) -> None:
    for number in range(ASSETS):
        path = folder / f"folder-{number % ASSET_FOLDERS:02d}" / f"file-{number:03d}.bin"
        path.parent.mkdir(exist_ok=True)
        # Half noise, half repeats: like pictures and pages.
        path.write_bytes(rng.randbytes(rng.choice([0, 200, 4_000, 30_000])) + b"lorem ipsum " * rng.randrange(600))
    (folder / "film.bin").write_bytes(rng.randbytes(LARGE_BYTES))
    (folder / "cover.bin").symlink_to("film.bin")


def _configurations(tenant: DemoTenant, rng: random.Random) -> None:
    (tenant.configurations / "settings.ini").write_text(f"[hotel]\nname = {tenant.name}\nrooms = {ROOMS}\n")
    (tenant.configurations / "features.json").write_text(json.dumps({"breakfast": True}))
    (tenant.configurations / "locale").mkdir()
    for language in ("en", "pt-BR"):
        words = {f"word-{n}": f"{rng.getrandbits(40):x}" for n in range(50)}
        (tenant.configurations / "locale" / f"{language}.json").write_text(json.dumps(words, indent=1))
