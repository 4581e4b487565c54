"""`python -m tests.bench [SCENARIO…] [--size 2G] [--rounds 3] [--report FILE]`: run scenarios, print medians and bounds."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.bench.scenario import OURS, Sample, Scenario, judged, known, medians

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Bytes of a text like 500M."""
    return int(float(text[:-1]) * UNITS[text[-1].upper()]) if text[-1].upper() in UNITS else int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(known())}; all by default")
    parser.add_argument("--size", type=size, default=size("512M"), help="bytes of data, e.g. 2G (default 512M)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each step runs; medians are reported")
    parser.add_argument("--place", type=Path, help="folder for data and repositories (default: a temporary one)")
    parser.add_argument("--report", type=Path, help="append the tables to this Markdown file")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser.parse_args()


def measure(scenario: Scenario, *, place: Path, size_bytes: int, rounds: int) -> list[Sample]:
    """Run the rounds of one scenario; what a round leaves is removed before the next."""
    data = place / scenario.name
    data.mkdir(parents=True)
    scenario.prepare(data, size_bytes)
    kept = set(data.iterdir())
    samples: list[Sample] = []
    for number in range(rounds):
        for sample in scenario.round(data, number):
            samples.append(sample)
            print(
                f"  round {number + 1}: {sample.step} {sample.who} {sample.metric} {sample.value:.3f}", file=sys.stderr
            )
        for left in set(data.iterdir()) - kept:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.rmtree(data)
    return samples


def shown(metric: str, value: float) -> str:
    """A figure in the unit of its metric."""
    return f"{value / (1 << 20):.1f} MiB" if metric.endswith("_bytes") else f"{value:.2f} s"


def table(scenario: Scenario, found: Mapping[tuple[str, str, str], float]) -> str:
    """The scenario's medians and bounds in Markdown."""
    lines = [
        f"## {scenario.name}: {scenario.about}",
        "",
        "| step | metric | who | median | ours to it |",
        "|---|---|---|---|---|",
    ]
    for (step, metric, who), value in found.items():
        ours = found.get((step, metric, OURS))
        ratio = f"{ours / value:.2f}x" if ours and value and who != OURS else ""
        lines.append(f"| {step} | {metric} | {who} | {shown(metric, value)} | {ratio} |")
    lines += ["", "| bound | found | holds |", "|---|---|---|"]
    for bound, value, holds in judged(scenario.bounds, found):
        limit = f"{bound.ratio}x of {bound.peer}" if bound.peer else shown(bound.metric, bound.most)
        figure = f"{value:.2f}x" if bound.peer else shown(bound.metric, value)
        lines.append(f"| {bound.step} {bound.metric} <= {limit} | {figure} | {'yes' if holds else '**no**'} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run what was asked for; 1 when a bound does not hold."""
    asked = arguments()
    chosen = {name: kind for name, kind in known().items() if not asked.scenarios or name in asked.scenarios}
    unknown = set(asked.scenarios) - set(chosen)
    if unknown:
        print(f"unknown scenarios: {', '.join(sorted(unknown))}; known: {', '.join(known())}", file=sys.stderr)
        return 2
    place = Path(tempfile.mkdtemp(prefix="lastro-bench-", dir=asked.place))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    texts, every, broken = [f"Measured on {machine}; {asked.rounds} rounds, {asked.size >> 20} MiB.\n"], {}, False
    try:
        for name, kind in chosen.items():
            scenario = kind()
            why_not = scenario.missing()
            if why_not:
                texts.append(f"## {name}: left out: {why_not}\n")
                continue
            samples = measure(scenario, place=place, size_bytes=asked.size, rounds=asked.rounds)
            found = medians(samples)
            every[name] = [[sample.step, sample.who, sample.metric, sample.value] for sample in samples]
            broken = broken or not all(holds for _, _, holds in judged(scenario.bounds, found))
            texts.append(table(scenario, found))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(texts))
    if asked.report:
        with asked.report.open("a") as report:
            report.write("\n".join(texts))
    if asked.json:
        asked.json.write_text(json.dumps(every, indent=1))
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
