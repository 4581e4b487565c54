"""Sizes, names, docstrings and leftovers: the rules of the house that a linter does not know."""

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import PURE_FOLDERS, ROOT, Function, code, files, functions, none, shown, tree

FILE_LINES_MAX = 600
FILE_LINES_AIM = 400
FUNCTION_LINES_MAX = 70
MODULE_LINES_TINY = 20
BANNED_NAMES = {"util", "utils", "helper", "helpers", "misc", "common", "manager", "managers"}
LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def test_files_are_short() -> None:
    """Goal: a file is read in one sitting; count the lines of each, tests included."""
    lines = {path: path.read_bytes().count(b"\n") for path in [*code(), *files("tests", "docs")]}
    long = {shown(path): count for path, count in lines.items() if count > FILE_LINES_AIM}
    if long:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(long.items(), key=lambda item: -item[1]))
        warnings.warn(f"files over {FILE_LINES_AIM} lines: {listed}", stacklevel=1)
    none([name for name, count in long.items() if count > FILE_LINES_MAX], "split these files")


def test_functions_are_short() -> None:
    """Goal: a function is seen at once; count the lines of each, its decorators left out."""
    long = {
        f"{shown(path)}:{node.lineno} {node.name}": length
        for path in code()
        for node in functions(path)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    none(long, "split these functions")


def test_no_module_is_a_drawer() -> None:
    """Goal: every module is named for what it does; look for the names of drawers, tests included."""
    drawers = [
        shown(path)
        for path in [*code(), *files("tests")]
        if BANNED_NAMES & {part.strip("_") for part in path.relative_to(ROOT).with_suffix("").parts}
    ]
    none(drawers, "name these for what is in them")


def test_nothing_is_left_for_later() -> None:
    """Goal: what is committed is finished; look for the marks of the unfinished."""
    left = [
        f"{shown(path)}:{number}: {line.strip()}"
        for path in [
            *code(),
            *files("docs"),
            *files("templates", suffix=".html"),
            ROOT / "Makefile",
            ROOT / ".ci" / "run",
        ]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if LEFTOVERS.search(line)
    ]
    none(left, "finish these, or say in an issue why not")


# ---------------------------------------------------------------- docstrings


def _inherited_names() -> set[str]:
    """Methods whose meaning stands in a Protocol of the engine's ports."""
    names: set[str] = set()
    for name in ("ports", "progress", "adapters"):
        for node in ast.walk(tree(ROOT / "platform" / "engine" / f"{name}.py")):
            if isinstance(node, ast.ClassDef):
                names |= {child.name for child in node.body if isinstance(child, Function)}
    return names


def _undocumented(body: list[ast.stmt], inherited: set[str], *, in_class: str = "") -> Iterator[tuple[int, str]]:
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{in_class}{node.name}"
        excused = bool(in_class) and node.name in inherited
        if not excused and not ast.get_docstring(node) and not _is_plain(node):
            yield node.lineno, name
        if isinstance(node, ast.ClassDef) and not _is_protocol(node):
            yield from _undocumented(node.body, inherited, in_class=f"{node.name}.")


def _is_protocol(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.dump(base) for base in node.bases)


def _is_plain(node: Function | ast.ClassDef) -> bool:
    """Errors of the documented tree, values whose fields speak, protocols' methods, properties of a few lines."""
    if isinstance(node, ast.ClassDef):
        is_error = any(isinstance(base, ast.Name) and base.id.endswith(("Error", "Denied")) for base in node.bases)
        is_value = all(isinstance(child, ast.AnnAssign | ast.Assign | ast.Expr) for child in node.body)
        return is_error or is_value or _is_protocol(node)
    decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(decorators & {"property", "cached_property", "setter", "overload"})


def _documented_modules() -> list[Path]:
    """Modules with a public face; a folder with an underscore is the inside of the module beside it."""
    services = [path for path in code() if path.stem == "services" or "services" in path.parts]
    inside = {path for path in files(*PURE_FOLDERS) if any(part.startswith("_") for part in path.parts[:-1])}
    return [*(path for path in files(*PURE_FOLDERS) if path not in inside), *services]


def test_public_names_say_what_they_do() -> None:
    """Goal: engine, connectors, stores and services can be used without reading them; look for missing docstrings."""
    inherited = _inherited_names()
    missing = [
        f"{shown(path)}:{line} {name}"
        for path in _documented_modules()
        for line, name in _undocumented(tree(path).body, inherited)
    ]
    none(missing, "say in one line what these do, as a command")


def test_modules_say_what_they_are() -> None:
    """Goal: the first line of every module orients its reader; look for missing ones (the tiniest excepted)."""
    missing = [
        shown(path)
        for path in code()
        if path.read_bytes().count(b"\n") > MODULE_LINES_TINY and not ast.get_docstring(tree(path))
    ]
    none(missing, "open these modules with a docstring")


def test_tests_open_with_their_goal() -> None:
    """Goal: a failing test says what promise is broken; look for tests without a first line."""
    missing = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path in files("tests")
        for node in functions(path)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    none(missing, "open these tests with one line: goal and method")
