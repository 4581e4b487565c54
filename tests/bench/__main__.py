"""`python -m tests.bench [SECTION…]`: measure speed and size against peers; asserts nothing.

A run of everything at full scale takes about half an hour, 12 GB of disk, and writes docs/benchmarks.md. A
smaller scale is for trying things out and only prints.
"""

import argparse
import importlib
import os
import sys
import time

from tests.bench import report
from tests.bench.measure import CommandFailed
from tests.bench.place import TooLittleRoom, describe, remove, scratch

SECTIONS = (
    "start",
    "objects",
    "files",
    "million",
    "postgres",
    "history",
    "prune",
    "restores",
    "remote",
    "copies",
    "store",
    "schedules",
    "audit",
)
SCALE_VARIABLE = "LASTRO_BENCH_SCALE"


def main() -> int:
    """Measure the chosen sections; 1 when one could not be measured, 0 otherwise, whatever the figures are."""
    options = _options()
    folder = scratch()
    busy = report.load()
    report.say(busy)
    report.say(f"{folder}: {describe(folder)}; {report.machine()}")
    failed = []
    for name in options.sections or SECTIONS:
        begun = time.monotonic()
        place = folder / name
        place.mkdir()
        try:
            section = importlib.import_module(f"tests.bench.{name}").measure(
                place, scale=options.scale, rounds=options.rounds
            )
        except (CommandFailed, TooLittleRoom) as error:
            failed.append(name)
            report.say(f"{name}: not measured: {error}")
            continue
        finally:
            remove(place)
        text = section.text(scale=options.scale, disk=describe(folder), busy=busy)
        print(text, flush=True)
        if options.write:
            report.write(section, text)
        report.say(f"{name}: {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument(
        "--scale", type=float, default=float(os.environ.get(SCALE_VARIABLE) or 1), help="a fraction of the full sizes"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each pair is measured")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, help="write docs/benchmarks.md (the default at scale 1)"
    )
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if not 0 < options.scale <= 1 or options.rounds < 1:
        parser.error("the scale lies between 0 and 1, and there is at least one round")
    if options.write is None:
        options.write = options.scale == 1
    return options


if __name__ == "__main__":
    sys.exit(main())
