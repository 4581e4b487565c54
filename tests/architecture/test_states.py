"""States change in one way only."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import code, shown, tree

WRITES = {"update", "bulk_update", "update_or_create"}


def _imported(path: Path, module: str) -> set[str]:
    """Names that the file imports from modules whose last part is `module`."""
    return {
        name.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == module
        for name in node.names
    }


def _state_machines() -> set[str]:
    """The models whose states a transitions.py moves."""
    files = [path for path in code() if path.name == "transitions.py" and "core" not in path.parts]
    return {name for path in files for name in _imported(path, "models") if not name.endswith("State")}


def _written(path: Path, machines: set[str]) -> Iterator[int]:
    """Lines of `Model.objects….update(state=…)`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
            roots = {name.id for name in ast.walk(node.func) if isinstance(name, ast.Name)}
            if roots & machines and any(keyword.arg == "state" for keyword in node.keywords):
                yield node.lineno


def test_only_transitions_call_transition() -> None:
    """Goal: the rules of a state machine stand in one file; look for imports of transition() elsewhere."""
    strays = [
        shown(path)
        for path in code()
        if path.name != "transitions.py" and "transition" in _imported(path, "transitions")
    ]
    assert not strays, "call transition() from a file named transitions.py"


def test_no_update_goes_past_the_transitions() -> None:
    """Goal: no state is set without its check and its history; look for updates of `state` on such models."""
    machines = _state_machines()
    assert {"Operation", "Backup", "Restore"} <= machines
    written = [f"{shown(path)}:{line}" for path in code() for line in _written(path, machines)]
    assert not written, "change the state by a transition"
