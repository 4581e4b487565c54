"""Figures as rows of a table: printed while they come, and written into docs/benchmarks.md by whole sections."""

import datetime
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.measure import Run
from tests.bench.programs import ROOT, source_state

PAGE = ROOT / "docs" / "benchmarks.md"
LOAD_QUIET_MAX = 0.7
HEAD = "| what | ours | peer | ratio, median [min–max] | target | met |\n|---|---|---|---|---|---|"

WALL: Callable[[Run], float] = lambda one: one.wall_seconds  # noqa: E731 - names for fields
CPU: Callable[[Run], float] = lambda one: one.cpu_seconds  # noqa: E731
PEAK: Callable[[Run], float] = lambda one: one.peak_bytes  # noqa: E731
DURABLE: Callable[[Run], float] = lambda one: one.durable_seconds  # noqa: E731
READ: Callable[[Run], float] = lambda one: one.read_bytes  # noqa: E731


@dataclass(frozen=True)
class Figure:
    """One measured thing: values of ours, and of the peer from the same rounds in the same order.

    Without a peer the target is a bound on ours, in the figure's unit. `worst` judges by the largest ratio
    instead of the median. No values at all: the peer, named, is not installed.
    """

    what: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    peer_name: str = ""
    unit: str = "s"
    target: float | None = None
    worst: bool = False

    @property
    def ratios(self) -> list[float]:
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True) if peer] if self.peer else []

    @property
    def judged(self) -> float | None:
        """The value that the target bounds."""
        values = self.ratios if self.peer_name else self.ours
        return (max(values) if self.worst else median(values)) if values else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing to judge."""
        return None if self.target is None or self.judged is None else self.judged <= self.target

    def cells(self) -> list[str]:
        """The row of the table."""
        ratios = self.ratios
        shown = f"{_ratio(median(ratios))} [{_ratio(min(ratios))}–{_ratio(max(ratios))}]" if ratios else ""
        peer = f"{amount(self.peer, self.unit)} {self.peer_name}" if self.peer else self.peer_name
        if self.peer_name and not ratios:
            shown = f"{self.peer_name} is not installed"
        met = {True: "yes", False: "**no**", None: "" if self.target is None else "not measured"}[self.met]
        return [self.what, amount(self.ours, self.unit), peer, shown, self._bound(), met]

    def _bound(self) -> str:
        if self.target is None:
            return ""
        if self.peer_name:
            text = f"≤ {self.target:g}x"
            return f"{text} at worst" if self.worst else text
        return f"≤ {amount([self.target], self.unit)}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def amount(values: Sequence[float], unit: str) -> str:
    """The median in a readable form."""
    if not values:
        return ""
    value = median(values)
    if unit == "s":
        return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"
    if unit == "":
        return f"{value:,.0f}"
    if value < 1e6:
        return f"{value / 1e3:.0f} kB"
    return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


@dataclass
class Section:
    """A part of the report with the circumstances that make its figures readable."""

    name: str
    title: str
    about: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def add(self, *figures: Figure) -> None:
        """Take figures in and print them."""
        for figure in figures:
            self.figures.append(figure)
            say(" | ".join(cell for cell in figure.cells() if cell))

    def compare(
        self, what: str, ours: Sequence[Run], peer: Sequence[Run], *, name: str,
        of: Callable[[Run], float] = WALL, unit: str = "s", target: float | None = None,
    ) -> None:  # fmt: skip
        """Take in one aspect of runs that took turns."""
        if peer:
            self.add(Figure(what, [of(run) for run in ours], [of(run) for run in peer], name, unit, target))
        else:
            self.add(Figure(what, [of(run) for run in ours], [], name, unit, target))

    def text(self, *, scale: float, disk: str = "", busy: str = "") -> str:
        """The section as Markdown."""
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        lines = [f"## {self.title}", "", *self.about, *([busy] if busy else []), "", HEAD]
        lines += [f"| {' | '.join(figure.cells())} |" for figure in self.figures]
        shrunk = "" if scale == 1 else f", scale {scale:g} (figures hold for scale 1 only)"
        lines += [
            "",
            f"{when}, commit {source_state()}{shrunk}; {machine()}; {disk}.",
            f"Repeat: `python -m tests.bench {self.name}`.",
        ]
        return "\n".join(lines)


def load() -> str:
    """A warning when something else keeps the processors busy; "" when the machine is quiet."""
    busy = os.getloadavg()[0]
    return f"**Something else was running: load {busy:.1f} when it began.**" if busy > LOAD_QUIET_MAX else ""


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """Processor, memory and system in one line."""
    about = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").exists() else ""
    model = found[1].strip() if (found := re.search(r"model name\s*:\s*(.+)", about)) else os.uname().machine
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}, Python {python}"


def write(section: Section, written: str, *, page: Path = PAGE) -> None:
    """Put a section's text into its place in the page; the rest of the page stays."""
    text = page.read_text()
    begin, end = f"<!-- {section.name}: generated -->", f"<!-- {section.name}: end -->"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"{page.name} has no place for the section {section.name}: {begin} … {end}")
    block = f"{begin}\n{written}\n{end}"
    page.write_text(place.sub(lambda _: block, text))
