"""What a command prints: an answer, an error, progress."""

import datetime
import enum
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

ERROR_CHARS_MAX = 2_000
LINE_SECONDS = 10.0
"""Without a terminal progress is one line this often."""


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset | tuple):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def to_json(value: Any) -> str:
    """JSON on one line; times as RFC 3339 in UTC, durations as seconds."""
    return json.dumps(value, default=_plain, ensure_ascii=True)


class Terminal:
    """stdout for data, stderr for people. With `json` stdout gets one object and nothing else."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._answered = False

    # The streams are looked up at each use: tests and servers replace them.
    @property
    def is_terminal(self) -> bool:
        return sys.stderr.isatty()

    def line(self, text: str = "") -> None:
        """A line of data; left out with --json."""
        if not self.json:
            _write(sys.stdout, text)

    def note(self, text: str) -> None:
        """A line for the person who watches."""
        _write(sys.stderr, _cut(text))

    def ask(self, question: str) -> str:
        """Ask on stderr, read from stdin; empty at the end of input."""
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().strip()

    def raw(self, text: str) -> None:
        """Data that is no JSON object (an export); takes the place of the answer."""
        sys.stdout.write(text)
        self._answered = True

    def answer(self, data: Mapping[str, Any], text: Sequence[str] | None) -> None:
        """Print the result, unless it was printed raw."""
        if self._answered:
            return
        if self.json:
            _write(sys.stdout, to_json(data))
            return
        for line in text if text is not None else lines_of(data):
            _write(sys.stdout, line)

    def error(self, code: str, detail: str, hint: str) -> None:
        """Say what went wrong and what to do, as text and with --json as an object too."""
        detail, hint = _cut(detail), _cut(hint)
        if self.json and not self._answered:
            _write(sys.stdout, to_json({"error": {"code": code, "detail": detail, "hint": hint}}))
        _write(sys.stderr, f"error: {detail}" + (f"\nhint: {hint}" if hint else ""))


def _cut(text: str) -> str:
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[:ERROR_CHARS_MAX]} … ({len(text)} characters)"


# What a terminal would take for an order: C0 without tab and newline, DEL, C1.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def _write(stream: TextIO, text: str) -> None:
    # Names on a file system need not be UTF-8 nor printable, and a terminal need not speak it.
    encoding = stream.encoding or "utf-8"
    stream.write(text.translate(_CONTROL).encode(encoding, "backslashreplace").decode(encoding) + "\n")


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Lay a JSON object out for people: its `data` list as a table, else one line a field, what is nested below."""
    rows = data.get("data")
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        return table(rows)
    return [line for key, value in data.items() for line in _field(_cell(key), value)]


def _field(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        inner = [line for name, each in value.items() for line in _field(_cell(name), each)]
        return [f"{key}:", *(f"  {line}" for line in inner)]
    if isinstance(value, list | tuple) and value:
        if all(isinstance(each, Mapping) for each in value):
            return [f"{key}:", *(f"  {line}" for line in table(value))]
        return [f"{key}: {', '.join(_cell(each) for each in value)}"]
    return [f"{key}: {_cell(value)}".rstrip()]


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns under their names; rows that lack a field leave it empty."""
    rows = list(rows)
    if not rows:
        return ["none"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{_cell(key)}={_cell(each)}" for key, each in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value) or "-"
    if isinstance(value, str):
        # A control character in a name must not steer the terminal.
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
    return str(_plain(value)) if not isinstance(value, int | float) else str(value)


class ProgressLines:
    """Shows progress on stderr: a bar on a terminal, otherwise one line every ten seconds."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._task: Any = None
        self._said_at = time.monotonic()

    def show(self, *, phase: str, done: int, total: int | None, unit: str) -> None:
        """`unit` is "bytes" or "items"."""
        if sys.stderr.isatty():
            self._draw(phase, done, total)
        else:
            self._say(phase, done, total, unit)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, phase: str, done: int, total: int | None, unit: str) -> None:
        if time.monotonic() - self._said_at < LINE_SECONDS:
            return
        self._said_at = time.monotonic()
        amount = size_text(done) if unit == "bytes" else f"{done}"
        whole = "" if not total else f" of {size_text(total) if unit == 'bytes' else total} ({100 * done // total} %)"
        _write(sys.stderr, f"{self._label}: {phase or 'starting'}, {amount}{whole}")

    def _draw(self, phase: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar, self._task = _rich_bar()
        self._bar.update(self._task, description=f"{self._label}: {phase}", completed=done, total=total)


def _rich_bar() -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    bar.start()
    return bar, bar.add_task("", total=None)


_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def size_text(count: int) -> str:
    """Human size in steps of 1,000: `2.5 GB`."""
    size = float(count)
    for unit in _UNITS[:-1]:
        if abs(size) < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"
