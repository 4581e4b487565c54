"""Whether a source without change images still is what a restore made of it.

Three backups tell: what was there before the restore, what is there now, and what was restored. Every path that differs
from before must be as the restored backup has it; anything else was done by somebody since, and an undo would lose it.
Nothing of the target is read for this, as both sides were backed up anyway, and equal parts of the trees are skipped.
"""

import heapq
from collections.abc import Iterator, Sequence
from operator import itemgetter

from engine.errors import StalePlan
from engine.ports import SourceView
from engine.tree_diff import tree_diff
from engine.tree_format import ROOT_MODULE, show_path, sort_key
from engine.tree_view import TreeView


def unchanged_since(
    *, before: SourceView, now: SourceView | None, backup: SourceView, modules: Sequence[str], undoes: str
) -> None:
    """Raise StalePlan when somebody changed something of this source since the restore `undoes`."""
    if now is None:
        raise StalePlan("what is there now could not be saved; nothing was changed", hint=_look(undoes))
    for tree in before.trees:
        sides = [_tree(view, tree.name) for view in (now, backup)]
        if not isinstance(tree, TreeView) or None in sides:
            continue
        touched = _touched(tree, *(side for side in sides if side is not None))
        # The names stay out of the message: it lies in the catalogue in clear, and the plan shows them.
        if any(_chosen(path, tree, modules) for path in touched):
            raise StalePlan(
                f"files of source {before.name} were changed since the restore; nothing was changed", hint=_look(undoes)
            )


def _look(undoes: str) -> str:
    return f"see what an undo would do now: restore undo {undoes} --plan"


def _tree(view: SourceView, name: str) -> TreeView | None:
    return next((tree for tree in view.trees if tree.name == name and isinstance(tree, TreeView)), None)


def _touched(before: TreeView, now: TreeView, backup: TreeView) -> Iterator[bytes]:
    """Paths that are neither as before nor as the backup has them."""
    since = ((sort_key(each.path), 0, each.path) for each in tree_diff(before, now))
    beside = ((sort_key(each.path), 1, each.path) for each in tree_diff(now, backup))
    last = b"\0"
    for _, side, path in heapq.merge(since, beside, key=itemgetter(0, 1)):
        if side == 0:
            last = path
        elif path == last:
            yield path


def _chosen(path: bytes, tree: TreeView, modules: Sequence[str]) -> bool:
    if not modules or not tree.node["top_modules"]:
        return True
    top, below, _ = path.partition(b"/")
    return show_path(top) in modules or (not below and ROOT_MODULE.decode() in modules)
