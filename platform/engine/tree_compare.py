"""Compare a folder on disk with a tree of a backup: what a restore will create, replace, remove or leave alone.

Nothing is written to the folder. The same steps are counted for a preview and written down for a restore, so that
what was shown is what is done.
"""

import os
import stat as statmod
from collections import Counter
from dataclasses import dataclass, field

from engine.plans import RestoreMode
from engine.progress import Progress
from engine.tree_cursor import Stretch
from engine.tree_decide import Decisions, Step
from engine.tree_folders import Folders
from engine.tree_likeness import Likeness, kind_of, row_is_folder
from engine.tree_rules import Outcome, TreeOrder, rules_for
from engine.tree_spool import PathSpool
from engine.tree_streams import Streams
from engine.tree_tally import Comparison, Tally
from engine.tree_view import TreeView

_SAME: dict[RestoreMode, Outcome] = {"full": Outcome.BACKUP, "merge": Outcome.TENANT}
"""What is done with an entry that is as the backup has it, wherever it lies."""


@dataclass(slots=True)
class TreePlan:
    """Who gives what to the new tree, written down for staging; bounded by spools and a byte for each row."""

    take: bytearray
    """For each row of the backup whether it is staged: an Outcome; TENANT for a folder with the tenant's metadata."""
    stays: bytearray
    """For each row of the safety backup whether the very same file stays in place."""
    links: PathSpool
    """What is no folder and stays."""
    folders: PathSpool
    """Folders that keep the tenant's metadata, parents first."""
    apart: PathSpool
    """What is no part of the restore, folders with all that is in them."""
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, view: TreeView, order: TreeOrder, folder: bytes) -> "TreePlan":
        """A plan that spools into the folder."""
        saved = order.saved.entry_count if order.saved else 0
        links, folders, apart = (PathSpool(folder) for _ in range(3))
        return cls(bytearray(view.entry_count), bytearray(saved), links, folders, apart)

    def note(self, step: Step) -> None:
        """Write down who gives what at this path."""
        met, outcome = step.met, step.outcome
        if met.live is None:
            if met.left_out and met.here:
                self.apart.add(met.path)
        elif outcome is Outcome.TENANT:
            (self.folders if met.live.is_folder else self.links).add(met.path)
            if met.saved_number >= 0:
                self.stays[met.saved_number] = 1
        if met.row is not None:
            self.counts["not_taken"] += outcome is not Outcome.BACKUP
            both = outcome is Outcome.TENANT and met.live is not None and met.live.is_folder and row_is_folder(met.row)
            if outcome is Outcome.BACKUP or both:
                self.take[met.number] = outcome

    def note_same(self, stretch: Stretch, outcome: Outcome) -> None:
        """Write down a stretch of equal entries, which come from the backup or stay."""
        number, count = stretch.number, len(stretch.paths)
        if outcome is Outcome.BACKUP:
            self.take[number : number + count] = bytes([outcome]) * count
            return
        folders = [kind_of(record) == statmod.S_IFDIR for record in stretch.stats]
        for path, is_folder in zip(stretch.paths, folders, strict=True):
            (self.folders if is_folder else self.links).add(path)
        self.take[number : number + count] = bytes([outcome * is_folder for is_folder in folders])
        self.counts["not_taken"] += count
        if stretch.saved_number >= 0:
            self.stays[stretch.saved_number : stretch.saved_number + count] = bytes([1]) * count

    def close(self) -> None:
        """Forget the spooled paths."""
        for spool in (self.links, self.folders, self.apart):
            spool.close()


def compare_folder(
    view: TreeView, folder: int | None, order: TreeOrder, progress: Progress, *, plan: TreePlan | None = None
) -> Comparison:
    """Decide every path of the folder (None: there is none yet) and the view; note the decisions in the plan.

    Raises UsageError for a module that is not there, TargetError where the order cannot be done.
    """
    tally = Tally(view, order.samples)
    if folder is None and order.mode == "full" and order.left_out is None:
        return _compare_nothing(view, tally, progress, plan)
    likeness = Likeness(view, order.base, order.saved)
    rules = rules_for(order, view, likeness)
    with Folders(folder if folder is not None else -1) as folders:
        same = _SAME[order.mode] if order.unseen is None and order.mode in _SAME else None
        streams = Streams(view, folder, folders, order, progress, whole=same is not None)
        decisions = Decisions(streams.meetings(), rules, order)
        for step in decisions:
            if isinstance(step, Stretch):
                assert same is not None
                tally.note_same(step, same)
                if plan is not None:
                    plan.note_same(step, same)
                continue
            tally.note(step)
            if plan is not None:
                plan.note(step)
    return tally.comparison(decisions.withheld)


def _compare_nothing(view: TreeView, tally: Tally, progress: Progress, plan: TreePlan | None) -> Comparison:
    """The same for a full restore to where nothing is: no decision is left, and a million of them take their time."""
    number = 0
    for ref in view.refs_ahead():
        progress.check()
        rows = view.leaf(ref).rows()
        tally.note_new(rows, number)
        number += len(rows)
    if plan is not None:
        plan.take[:] = bytes([Outcome.BACKUP]) * len(plan.take)
    return tally.comparison(0)


def open_folder(path: bytes) -> int:
    """A descriptor of a folder. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
