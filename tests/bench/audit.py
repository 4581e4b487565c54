"""The audit log with a million entries, and the overview with a million backups, on both kinds of catalogue."""

import os
import sys
from pathlib import Path
from typing import Any

from tests.bench.measure import Run, run
from tests.bench.programs import ROOT
from tests.bench.report import PEAK, Figure, Section
from tests.services.postgres import PostgresServer

ENTRIES = 1_000_000
APPENDS = 1_000
PROCESSES = 4


def measure(place: Path, *, scale: float, rounds: int) -> Section:
    """Fill each catalogue once, then measure what readers and writers wait for."""
    size = f"{round(ENTRIES * scale):,}"
    about = (
        f"An audit log of {size} entries of 10,000 tenants, and as many backups in the catalogue. PostgreSQL syncs every "
        "commit to disk; SQLite is set up as Lastro sets it up (WAL, synced at checkpoints). A page has 100 entries; the "
        "slowest of twelve filters is shown, a text and a type that do not occur among them."
    )
    section = Section("audit", "The audit log and the overview", [about])
    server = PostgresServer.start(durable=True)
    try:
        for name, url in (("SQLite", ""), ("PostgreSQL", server.dsn(server.create_database()))):
            _catalogue(section, name, url, place / name, scale, rounds)
    finally:
        server.discard()
    return section


def _catalogue(section: Section, name: str, url: str, data: Path, scale: float, rounds: int) -> None:
    data.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LASTRO_")}
    env = {**kept, "LASTRO_DATA": str(data), "DJANGO_SETTINGS_MODULE": "config.settings"}
    if url:
        env["LASTRO_DATABASE_URL"] = url

    def manage(*words: str) -> Run:
        return run([sys.executable, "manage.py", *words], env=env, cwd=ROOT)

    def bench(*words: str) -> dict[str, Any]:
        return run([sys.executable, "-m", "tests.bench.audit_log", *words], env=env, cwd=ROOT).answer

    manage("migrate", "-v0")
    small = manage("audit", "export", "--format", "csv")
    bench("fill", str(round(ENTRIES * scale)))
    target = 1.0 if url else 2.0
    each = [(bench("one", str(APPENDS))["seconds"], bench("bare", str(APPENDS))["seconds"]) for _ in range(rounds)]
    one, bare = [[pair[at] for pair in each] for at in (0, 1)]
    section.add(Figure(f"{name}: 1,000 appends, each committed", one, target=target))
    section.add(Figure(f"{name}: the same", one, bare, "bare INSERTs, each committed"))
    tens = [bench("tens", str(APPENDS))["seconds"] for _ in range(rounds)]
    section.add(Figure(f"{name}: 1,000 appends, ten in a transaction", tens, target=target))
    several = [bench("append", str(APPENDS // PROCESSES), str(PROCESSES))["seconds"] for _ in range(rounds)]
    section.add(Figure(f"{name}: 1,000 appends from {PROCESSES} processes at once", several, target=target))
    section.add(Figure(f"{name}: slowest filtered page", [max(bench("pages").values())], target=0.1))
    section.add(Figure(f"{name}: verifying all of it", [bench("verify")["seconds"]], target=30.0))
    proof = bench("proof")
    section.add(Figure(f"{name}: inclusion proof, size", [proof["bytes"]], unit="B", target=1_024))
    section.add(Figure(f"{name}: inclusion proof, time", [proof["seconds"]]))
    large = manage("audit", "export", "--format", "csv")
    section.add(Figure(f"{name}: CSV of all of it", [large.wall_seconds]))
    grown = [max(0, PEAK(large) - PEAK(small))]
    section.add(Figure(f"{name}: memory beyond that of an empty export", grown, unit="B", target=64e6))
    bench("backups", str(round(ENTRIES * scale)))
    section.add(Figure(f"{name}: overview", [bench("overview")["seconds"]], target=0.1))
