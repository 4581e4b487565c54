"""Two gigabytes of real files: back up, back up again, restore, verify, change, back up; against restic.

Every round starts with empty repositories. The two programs take turns step by step and change who goes first, on
the same tree with a warm page cache; the restored tree is compared with the source once.
"""

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.bench import corpus
from tests.bench.measure import CommandFailed, Run
from tests.bench.place import remove, require
from tests.bench.programs import Lastro, Restic, answer_of, find, version
from tests.bench.report import CPU, DURABLE, PEAK, Figure, Section, say

BYTES = 2_000_000_000
SEED = 20261122
STEPS = ("first backup", "no change", "restore", "full verify", "after mutation")
TARGETS = {"first backup": 0.55, "no change": 0.5, "after mutation": 0.5, "restore": 0.6, "full verify": 0.5}
MEMORY_TARGET, SIZE_TARGET, CPU_TARGET = 1.1, 1.0, 0.6

Side = dict[str, list[Run]]


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section; a missing restic leaves the peer's column empty."""
    require(folder, gigabytes=9 * scale)
    say(f"files: copying {BYTES * scale / 1e9:.2f} GB of this machine's files")
    tree = corpus.copy_real(folder / "tree", bytes_wanted=int(BYTES * scale), seed=SEED)
    corpus.warm(tree)
    program = find("restic")
    section = Section("files", "Files")
    section.about.append(
        f"{tree.files:,} files of {tree.bytes / 1e9:.2f} GB from /usr, 2 % of them mutated between the rounds' last two "
        f"backups, {rounds} rounds; restic {version(program) if program else 'is not installed'}."
    )
    ours: Side = defaultdict(list)
    peer: Side = defaultdict(list)
    sizes = [_round(folder, tree, program, ours, peer, number) for number in range(rounds)]
    _report(section, ours, peer, sizes)
    return section


def _round(
    folder: Path, tree: corpus.Tree, program: str | None, ours: Side, peer: Side, number: int
) -> tuple[int, int, int, int]:
    """One round; returns the repositories' sizes after the first backup and after the mutation."""
    steps: list[_Ours | _Peer] = [_Ours(folder / "ours", tree)]
    sides = [ours]
    if program:
        steps.append(_Peer(program, folder / "peer", tree))
        sides.append(peer)
    after: dict[str, list[int]] = {}
    for step in STEPS:
        if step == "after mutation":
            corpus.mutate(tree, seed=SEED + number)
            corpus.warm(tree)
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            run = steps[index].steps[step]()
            sides[index][step].append(run)
            say(f"  {number + 1}: {step}: {steps[index].name} {run.wall_seconds:.2f} s, {run.peak_bytes >> 20} MiB")
            if step == "restore":
                if number == 0 and index == 0:
                    compare_trees(tree.path, steps[index].restored)
                remove(folder / "restored")
        after[step] = [each.repository_bytes() for each in steps] + [0]
    for each in steps:
        each.discard()
    first, last = after["first backup"], after["after mutation"]
    return first[0], first[1], last[0] - first[0], last[1] - first[1]


class _Ours(Lastro):
    """Our steps."""

    def __init__(self, folder: Path, tree: corpus.Tree) -> None:
        super().__init__(folder)
        self.tenant("bench", kind="files", category="assets", settings={"path": tree.path})
        self.restored = folder.parent / "restored"
        self.newest = ""
        self.steps: dict[str, Callable[[], Run]] = {
            "first backup": lambda: self._backup(full=True),
            "no change": lambda: self._backup(full=False),
            "after mutation": lambda: self._backup(full=False),
            "restore": lambda: self.restore(self.newest, "bench", f"path={self.restored}"),
            "full verify": lambda: self.verify(self.newest),
        }

    def _backup(self, *, full: bool) -> Run:
        run = self.backup("bench", full=full)
        self.newest = str(answer_of(run)["id"])
        return run


class _Peer(Restic):
    """The peer's steps."""

    def __init__(self, program: str, folder: Path, tree: corpus.Tree) -> None:
        super().__init__(program, folder)
        self.restored = folder.parent / "restored"
        self.steps: dict[str, Callable[[], Run]] = {
            **{
                step: lambda: self.measure("backup", tree.path)
                for step in TARGETS
                if step not in ("restore", "full verify")
            },
            "restore": lambda: self.measure("restore", "latest", "--target", self.restored),
            "full verify": lambda: self.measure("check", "--read-data"),
        }


def compare_trees(source: Path, restored: Path) -> None:
    """Read both trees; raises CommandFailed when a file is missing, left over or different."""
    names = [
        {os.path.relpath(os.path.join(top, name), base) for top, _, files in os.walk(base) for name in files}
        for base in (source, restored)
    ]
    if names[0] != names[1]:
        raise CommandFailed(f"the restored tree has other files: {sorted(names[0] ^ names[1])[:3]}")
    _, differing, unread = filecmp.cmpfiles(source, restored, list(names[0]), shallow=False)
    if differing or unread:
        raise CommandFailed(f"the restored tree differs: {[*differing, *unread][:3]}")


def _report(section: Section, ours: Side, peer: Side, sizes: list[tuple[int, int, int, int]]) -> None:
    for step in STEPS:
        section.compare(step, ours[step], peer[step], name="restic", target=TARGETS[step])
    for title, of, unit, target, gather in (
        ("peak memory, largest of the five", PEAK, "B", MEMORY_TARGET, max),
        ("CPU time, sum of the five", CPU, "s", CPU_TARGET, sum),
    ):
        values = [
            [gather(of(side[step][index]) for step in STEPS) for index in range(len(side[STEPS[0]]))]
            for side in (ours, peer)
        ]
        section.add(Figure(title, values[0], values[1], "restic", unit, target))
    has_peer = any(peer.values())
    section.add(
        Figure("repository after the first backup", [size[0] for size in sizes],
               [size[1] for size in sizes] if has_peer else [], "restic", "B", SIZE_TARGET),
        Figure("repository grown by the mutation", [size[2] for size in sizes],
               [size[3] for size in sizes] if has_peer else [], "restic", "B"),
    )  # fmt: skip
    section.compare("restore, until all of it is on disk", ours["restore"], peer["restore"], name="restic", of=DURABLE)
    for step in STEPS:
        section.compare(f"peak memory, {step}", ours[step], peer[step], name="restic", of=PEAK, unit="B")
        section.compare(f"CPU time, {step}", ours[step], peer[step], name="restic", of=CPU)
