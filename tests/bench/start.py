"""What every command costs before it does anything."""

import sys
from pathlib import Path

from tests.bench.measure import run
from tests.bench.programs import ROOT, Lastro, find, plain_environment
from tests.bench.report import CPU, PEAK, WALL, Figure, Section

RUNS = 9


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section; it is small, so the scale does not matter and the rounds are a minimum."""
    lastro = Lastro(folder / "ours")
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_text("next to nothing")
    lastro.tenant("bench", kind="files", category="assets", settings={"path": folder / "tree"})
    count = max(rounds, RUNS)
    lists = [lastro.measure("tenant", "list") for _ in range(count)]
    bare = [run([sys.executable, "-c", "import django"], env=plain_environment(), cwd=ROOT) for _ in range(count)]
    section = Section("start", "Starting up")
    section.about.append(f"`tenant list --json` on a fresh catalogue, {count} runs.")
    section.add(
        Figure("a listing, wall", [WALL(one) for one in lists], [WALL(one) for one in bare], "`import django`"),
        Figure("a listing, CPU time", [CPU(one) for one in lists], [CPU(one) for one in bare], "`import django`"),
        Figure("a listing, peak memory", [PEAK(one) for one in lists], unit="B"),
    )
    empty = [lastro.backup("bench", full=True) for _ in range(count)]
    section.add(Figure("a backup of next to nothing, wall", [WALL(one) for one in empty]))
    if program := find("restic"):
        help_runs = [run([program, "version"], env=plain_environment()) for _ in range(count)]
        section.add(Figure("`restic version`, for comparison", [WALL(one) for one in help_runs]))
    return section
