"""A million small files of which none has changed: against restic, and within a fixed amount of memory."""

from pathlib import Path

from tests.bench import corpus
from tests.bench.measure import Run
from tests.bench.place import require
from tests.bench.programs import Lastro, Restic, answer_of, find, version
from tests.bench.report import CPU, PEAK, Figure, Section, say

FILES = 1_000_000
SEED = 7
TIME_TARGET = 0.5
MEMORY_BYTES_MAX = 400_000_000


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section; the first backup of each is measured once, since it takes long."""
    files = int(FILES * scale)
    require(folder, gigabytes=10 * scale, files=files)
    say(f"million: making {files:,} small files")
    tree = corpus.make_small(folder / "tree", files=files, seed=SEED)
    program = find("restic")
    section = Section("million", "Very many small files")
    section.about.append(
        f"{tree.files:,} text files of 200 B to 2 KB ({tree.bytes / 1e9:.2f} GB), {rounds} rounds without a change; "
        f"restic {version(program) if program else 'is not installed'}."
    )
    lastro = Lastro(folder / "ours")
    lastro.tenant("bench", kind="files", category="assets", settings={"path": tree.path})
    restic = Restic(program, folder / "peer") if program else None
    first = [_ours(lastro, full=True)]
    first_peer = [restic.measure("backup", tree.path)] if restic else []
    section.compare("first backup", first, first_peer, name="restic")
    unchanged: list[Run] = []
    unchanged_peer: list[Run] = []
    for number in range(rounds):
        if restic and number % 2:
            unchanged_peer.append(restic.measure("backup", tree.path))
        unchanged.append(_ours(lastro, full=False))
        if restic and number % 2 == 0:
            unchanged_peer.append(restic.measure("backup", tree.path))
    section.compare("no change", unchanged, unchanged_peer, name="restic", target=TIME_TARGET)
    section.add(
        Figure("peak memory, first backup", [PEAK(run) for run in first], unit="B", target=MEMORY_BYTES_MAX),
        Figure("peak memory, no change", [PEAK(run) for run in unchanged], unit="B", target=MEMORY_BYTES_MAX),
    )
    for title, of, unit in (("peak memory", PEAK, "B"), ("CPU time", CPU, "s")):
        section.compare(f"{title}, first backup, for comparison", first, first_peer, name="restic", of=of, unit=unit)
        section.compare(
            f"{title}, no change, for comparison", unchanged, unchanged_peer, name="restic", of=of, unit=unit
        )
    sizes = [float(lastro.repository_bytes())], [float(restic.repository_bytes())] if restic else []
    section.add(Figure("repository", sizes[0], sizes[1], "restic", "B"))
    return section


def _ours(lastro: Lastro, *, full: bool) -> Run:
    run = lastro.backup("bench", full=full)
    answer_of(run)
    say(f"  ours {'first backup' if full else 'no change'}: {run.wall_seconds:.2f} s, {run.peak_bytes >> 20} MiB")
    return run
