"""The planner over ten thousand tenants, on both kinds of catalogue: how long a tick takes in every situation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.programs import ROOT, plain_environment
from tests.bench.report import Figure, Section, say
from tests.bench.server import serving

TENANTS = 10_000
TICK_SECONDS_MAX = 1.0


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section: each round is an installation of its own."""
    tenants = int(TENANTS * scale)
    section = Section("schedules", "Planning for many tenants")
    section.about.append(
        f"{tenants:,} tenants with three sources each; databases every four hours, assets daily, configurations weekly, all with "
        f"a jitter of 15 minutes. A tick settles, plans, gives up and releases (32 runs at once); {rounds} rounds. The clock is "
        "held, so that the hour before midnight and an outage of three days come at once."
    )
    with serving(folder) as server:
        for name in ("SQLite", "PostgreSQL"):
            found = []
            for number in range(rounds):
                url = server.dsn(server.create_database()) if name == "PostgreSQL" else ""
                say(f"schedules: round {number + 1} on {name}")
                found.append(_round(folder / f"{name}-{number}", url, tenants))
            _figures(section, name, found)
    return section


def _figures(section: Section, name: str, found: list[dict[str, Any]]) -> None:
    for situation, ticks in found[0]["ticks"].items():
        values = [tick["s"] for one in found for tick in one["ticks"][situation]]
        rows = max(tick["planned"] + tick["missed"] + tick["released"] for tick in ticks)
        what = f"{name}: {situation}" + (f" ({rows:,} rows)" if rows else "")
        section.add(Figure(what, values, target=TICK_SECONDS_MAX))
        if name == "SQLite":  # The database runs within the process.
            used = [tick["cpu_s"] for one in found for tick in one["ticks"][situation]]
            section.add(Figure(f"{what}, CPU of the worst", [max(used)], target=TICK_SECONDS_MAX))
    section.add(
        Figure(
            f"{name}: what is breached now, of {found[0]['sources']:,} sources", [one["breached_s"] for one in found]
        )
    )


def _round(data: Path, url: str, tenants: int) -> dict[str, Any]:
    environment = {
        **plain_environment(),
        "LASTRO_DATA": str(data),
        "LASTRO_DATABASE_URL": url,
        "PATH": os.environ["PATH"],
    }
    for argv in (["manage.py", "migrate", "-v0", "--skip-checks"], ["-m", "tests.bench.ticking", str(tenants)]):
        done = subprocess.run(
            [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2_000:]
    return dict(json.loads(done.stdout))
