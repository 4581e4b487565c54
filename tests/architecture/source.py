"""Reads the code as text and trees, for the tests that hold the house's rules."""

import ast
import functools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("platform", "tenants", "releases")
PURE_FOLDERS = ("platform/engine", "platform/connectors", "platform/stores")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def files(*folders: str, suffix: str = ".py") -> tuple[Path, ...]:
    """Files that are or will be committed, below the given folders; generated ones are ignored by git."""
    said = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = sorted({name for name in said.split("\0") if name.endswith(suffix)})
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


def code() -> list[Path]:
    """Our own modules, without tests and without generated migrations."""
    return [path for path in files(*CODE_FOLDERS, "manage.py") if "migrations" not in path.parts]


@functools.cache
def tree(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_bytes(), filename=str(path))


def shown(path: Path) -> str:
    """The path as a message names it."""
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function):
            yield node


def strings(path: Path) -> Iterator[ast.Constant]:
    """Every string constant of a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


def none(items: Iterable[object], advice: str) -> None:
    """Fail with every item on a line of its own."""
    listed = sorted(map(str, items))
    assert not listed, f"{advice}:\n  " + "\n  ".join(listed)
