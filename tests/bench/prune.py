"""Many earlier backups of a tiny source: what depends on how many there are, and what must not."""

import subprocess
import sys
from pathlib import Path

from tests.bench.measure import CommandFailed, Run
from tests.bench.place import require
from tests.bench.programs import ROOT, Lastro, answer_of
from tests.bench.report import CPU, PEAK, WALL, Figure, Section, say

BACKUPS, FEW, KEPT = 10_000, 20, 60
SAME = 1.2
"""Nothing that an operator does every day may take longer than this with many earlier backups."""
MARK_SECONDS_MAX = 30.0
AGAIN_SECONDS_MAX = 1.5
MEMORY_BYTES_MAX = 250_000_000


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section."""
    count = max(FEW * 2, int(BACKUPS * scale))
    require(folder, gigabytes=2 * scale, files=int(60_000 * scale))
    section = Section("prune", "Many earlier backups")
    section.about.append(
        f"A source of four small files with {count:,} earlier backups, of which a prune keeps {KEPT} in the end; {rounds} rounds. "
        f"The peer is the same command with {FEW} earlier backups."
    )
    few, many = _installation(folder / "few", FEW), _installation(folder / "many", count)
    daily: dict[str, list[tuple[Run, Run]]] = {"an incremental": [], "backup list": [], "a restore": []}
    for number in range(rounds):
        for what, runs in daily.items():
            pair = [_once(which, what, number) for which in ((many, few) if number % 2 else (few, many))]
            runs.append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
    for what, runs in daily.items():
        ours, peer = [each[0] for each in runs], [each[1] for each in runs]
        name = f"with {FEW}"
        section.compare(f"{what}, wall", ours, peer, name=name, target=SAME, of=WALL)
        section.compare(f"{what}, peak memory", ours, peer, name=name, target=SAME, of=PEAK, unit="B")
    dry = many.measure("backup", "prune", "bench", "--dry-run")
    _many(many, "end", KEPT)
    ending, again = many.measure("backup", "prune", "bench"), many.measure("backup", "prune", "bench")
    kept = answer_of(again)["forgotten"]
    assert not kept
    section.add(
        Figure(f"prune of {count:,} kept backups, dry run", [WALL(dry)], target=MARK_SECONDS_MAX),
        Figure("the same, CPU time", [CPU(dry)]),
        Figure("the same, peak memory", [PEAK(dry)], unit="B", target=MEMORY_BYTES_MAX),
        Figure(f"prune that ends {len(answer_of(ending)['forgotten']):,} of them", [WALL(ending)]),
        Figure("the same, peak memory", [PEAK(ending)], unit="B", target=MEMORY_BYTES_MAX),
        Figure("the prune after it", [WALL(again)], target=AGAIN_SECONDS_MAX),
        Figure("the same, peak memory", [PEAK(again)], unit="B"),
    )
    return section


def _installation(folder: Path, count: int) -> Lastro:
    lastro = Lastro(folder)
    tree = folder.with_name(f"{folder.name}-tree")
    tree.mkdir()
    for number in range(4):
        (tree / f"file {number}").write_text(f"next to nothing {number}")
    lastro.tenant("bench", kind="files", category="assets", settings={"path": tree})
    answer_of(lastro.backup("bench", full=True))
    say(f"prune: making {count:,} backups")
    _many(lastro, "fill", count)
    return lastro


def _many(lastro: Lastro, verb: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.many", verb, "bench", str(count)],
        env=lastro.env, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise CommandFailed(f"{verb} {count}: {done.stderr[-1500:]}")


def _once(lastro: Lastro, what: str, number: int) -> Run:
    if what == "an incremental":
        run = lastro.backup("bench", full=False)
    elif what == "backup list":
        run = lastro.measure("backup", "list", "bench", "--limit", "20")
    else:
        newest = lastro.measure("backup", "list", "bench", "--limit", "1").answer["data"][0]["id"]
        target = lastro.folder.with_name(f"{lastro.folder.name}-out-{number}")
        run = lastro.restore(newest, "bench", f"path={target}")
    answer_of(run)
    return run
