"""What the code reads, kills and links is documented, and what is documented exists."""

import ast
import re
from collections import Counter
from pathlib import Path

from tests.architecture.source import ROOT, code, files, none, shown, strings, tree
from tests.bench.__main__ import SECTIONS

SETTING = re.compile(r"\bLASTRO_[A-Z][A-Z0-9_]*[A-Z0-9]\b(?!_)")


def _kill_points() -> Counter[str]:
    """Every label that a kill_point() call names."""
    labels: Counter[str] = Counter()
    for path in code():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "kill_point":
                argument = node.args[0]
                plain = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                assert plain, (
                    f"{shown(path)}:{node.lineno}: a kill point's label is written out, so that it can be found"
                )
                labels[ast.literal_eval(argument)] += 1
    return labels


def _rows(page: str) -> set[str]:
    """The code in the first cell of every table row of a page."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return {found[1] for line in lines if (found := re.match(r"\|\s*`([^`]+)`", line))}


def test_kill_points_are_documented_and_unique() -> None:
    """Goal: every point can be named by a test and says what must hold; compare the code with docs/faults.md."""
    labels = _kill_points()
    documented = {row for row in _rows("faults.md") if re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_-]+)+", row)}
    none([label for label, count in labels.items() if count > 1], "a label names one place: rename all but one")
    none(set(labels) - documented, "add a row to docs/faults.md: label, where, what holds after a kill")
    none(documented - set(labels), "docs/faults.md names points that the code has not")


def _settings_in(path: Path) -> set[str]:
    found = {name for node in strings(path) for name in SETTING.findall(str(node.value))}
    return {name.removesuffix("_FILE") for name in found}


def test_settings_are_documented() -> None:
    """Goal: no hidden switch; compare every LASTRO_… name in the code with docs/settings.md."""
    read = {name for path in code() for name in _settings_in(path)}
    documented = set(SETTING.findall((ROOT / "docs" / "settings.md").read_text()))
    none(read - documented, "describe these in docs/settings.md")
    stale = {name for name in _rows("settings.md") if SETTING.fullmatch(name)} - read
    none(stale, "docs/settings.md describes settings that nothing reads")


def test_test_settings_are_documented() -> None:
    """Goal: every switch of the test run is known; compare tests/, Makefile and CI with the documents."""
    texts = [path.read_text() for path in [*files("tests"), ROOT / "Makefile", ROOT / ".ci" / "run"]]
    read = {name.removesuffix("_FILE") for text in texts for name in SETTING.findall(text)}
    pages = "".join(path.read_text() for path in files("docs", suffix=".md"))
    advice = "describe these in docs/testing.md, as LASTRO_TEST_… (tests/settings.py clears all others)"
    none(read - set(SETTING.findall(pages)), advice)


def test_links_lead_somewhere() -> None:
    """Goal: the documents can be followed; look up every relative link of every page."""
    links = [
        (page, target)
        for page in [ROOT / "README.md", *files("docs", suffix=".md")]
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not target.startswith("mailto:")
    ]
    dead = [f"{shown(page)}: {target}" for page, target in links if not (page.parent / target).exists()]
    none(dead, "these links lead nowhere")


def test_nothing_names_this_machine() -> None:
    """Goal: the project can be built anywhere; look for registry addresses and for paths of a developer's machine."""
    registry = re.compile(r"ind[e]x-url|https?://\S+/simple\b|\"resolve[d]\":\s*\"http")
    home = re.compile(re.escape(f"{ROOT}/"))
    named = [
        f"{shown(path)}:{number}"
        for suffix in (".py", ".toml", ".lock", ".md", ".html", "Makefile", "run", "make-venv", "install-postgres")
        for path in files(".", suffix=suffix)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if registry.search(line) or home.search(line)
    ]
    none(named, "take out what only this machine has")


def test_the_lock_is_plain() -> None:
    """Goal: the lock works with any registry; every line is a pinned name, without address or hash."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z,]+\])?==[0-9][A-Za-z0-9.+!]*( *;.+)?")
    assert [line for line in lines if line and not line.startswith("#") and not pinned.fullmatch(line)] == []


def test_shell_scripts_ask_nobody() -> None:
    """Goal: CI has no keyboard; every apt-get reads from nowhere."""
    asking = [
        f"{shown(path)}:{number}"
        for path in [ROOT / ".ci" / "run", *(ROOT / "tests" / "services").glob("*-*")]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"^[^#\"]*\bapt-get (update|install)", line) and "</dev/null" not in line
    ]
    none(asking, "end these with </dev/null")


def test_every_section_of_the_benchmarks_has_its_place() -> None:
    """Goal: half an hour of measuring is not thrown away; look for the marks between which each section is written."""
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    homeless = [
        name
        for name in SECTIONS
        if not re.search(f"<!-- {name}: generated -->.*?<!-- {name}: end -->", page, re.DOTALL)
    ]
    none(homeless, "give each its two marks in docs/benchmarks.md")
