"""Runs the commands of docs/incident.md and knows what they print; `python -m tests.e2e.incident` writes it into the page."""

import re
import shlex
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.program import ROOT, Program

PAGE = ROOT / "docs" / "incident.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_ID = re.compile(r"\b(?:bkp|pln|rst|opr)_[0-9a-z]{26}\b")
_VARYING = (
    (re.compile(r"\b[0-9a-f]{64}\b|(?<=^log: )[0-9a-f]{16}$", flags=re.MULTILINE), "DIGEST"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z| UTC)?"), "TIME"),
    (re.compile(r"\b\d+ ms\b|\babout \d+ seconds?\b|\b\d+ bytes\b"), "FIGURE"),
    (re.compile(r"\b[\d.]+ [kKMGT]?B\b"), "SIZE"),
    (re.compile(r"^ *\d+(?=  TIME)", flags=re.MULTILINE), "NUMBER"),
    (re.compile(r"\bcli:\S+"), "WHO"),
    (re.compile(r"^(entries|duration_ms): \d+$", flags=re.MULTILINE), "FIGURE"),
    (re.compile(r"(?<=report: )\S*/"), ""),
    (re.compile(r" {2,}"), "  "),
)


class Walk:
    """One walk through the page, in a data folder of its own."""

    def __init__(self, top: Path) -> None:
        self.program = Program(top / "data")
        self.top = top
        self.names: dict[str, str] = {}
        """The page's ids, or its {words}, and what stands for them in this walk."""

    def run(self, command: str) -> str:
        """What the command prints, on both streams."""
        for name, value in self.names.items():
            command = command.replace(name, value)
        words = shlex.split(command.replace("$LASTRO_DATA", str(self.program.data)))
        if words[0] == "sqlite3":
            with sqlite3.connect(words[1]) as connection:
                return "".join(f"{'|'.join(map(str, row))}\n" for row in connection.execute(words[2]))
        assert words[0] == "lastro", f"the page has a command that its test does not know: {command}"
        argv = self.program.argv(*words[1:])
        done = subprocess.run(
            argv, cwd=self.top, env=self.program.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def match(self, expected: str, found: str) -> None:
        """Learn which id of this walk stands for which of the page."""
        for theirs, ours in zip(_ID.findall(expected), _ID.findall(found), strict=False):
            self.names.setdefault(theirs, ours)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Every command of the page with the output that stands below it."""
    for block in _BLOCK.findall(text):
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = piece.partition("\n")
            yield command, output


def settled(text: str) -> str:
    """The text without what differs from walk to walk."""
    names: dict[str, str] = {}
    text = _ID.sub(lambda found: names.setdefault(found[0], f"{found[0][:3]}-{len(names)}"), text)
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def prepared(top: Path) -> Walk:
    """A walk whose demo tenants are made."""
    walk = Walk(top)
    walk.program("demo", "--no-serve")
    return walk


def write() -> None:
    """Put the outputs of a walk into the page; ids become those of this walk."""
    with tempfile.TemporaryDirectory(prefix="lastro-incident-") as folder:
        walk, ids = prepared(Path(folder)), list[str]()

        def filled(block: re.Match[str]) -> str:
            return "```console\n" + "".join(_step(walk, ids, *step, folder) for step in commands(block[0])) + "```"

        PAGE.write_text(_BLOCK.sub(filled, PAGE.read_text()))


def _step(walk: Walk, ids: list[str], command: str, output: str, folder: str) -> str:
    # Words in braces stand for an id of their sort until the page was written once.
    for word, prefix, which in (("{backup}", "bkp_", 0), ("{plan}", "pln_", -1), ("{restore}", "rst_", -1)):
        if word in command:
            walk.names[word] = [each for each in ids if each.startswith(prefix)][which]
    found = walk.run(command)
    walk.match(output, found)
    for name, value in walk.names.items():
        command = command.replace(name, value)
    ids += [each for each in _ID.findall(found) if each not in ids]
    return f"$ {command}\n{found.replace(f'{folder}/', '')}"


if __name__ == "__main__":
    write()
