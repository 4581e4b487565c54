"""Decide a whole tree: path by path after the rules, and so that the result is a tree again.

A path alone may be decided against what lies below it: a folder goes, but a file in it stays; a file comes back
where a folder stands that still holds something; a file comes back below what is a file by now. Such decisions wait
for the end of the subtree, which follows in the order of the tree, so that nothing is held in memory but one
pending decision for each level of folders.
"""

import enum
import stat as statmod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from engine.errors import TargetError
from engine.tree_cursor import Stretch
from engine.tree_format import show_path
from engine.tree_likeness import Live, kind_of, row_is_folder
from engine.tree_rules import Change, Meeting, Outcome, Rules, TreeOrder, Verdict


class Step(NamedTuple):
    """What is done at a path, final."""

    met: Meeting
    outcome: Outcome
    change: Change
    conflict: bool = False
    because: str = ""


class _Waits(enum.Enum):
    GOES = enum.auto()
    """A folder of the tenant that goes unless something in it stays."""
    REPLACED = enum.auto()
    """A folder of the tenant in whose place a file of the backup comes unless something in it stays."""
    ALONG = enum.auto()
    """A folder that stays away unless something in it comes back."""
    FILE = enum.auto()
    """A file of the tenant that stays where the backup has a folder: nothing comes back below it."""
    LEFT_OUT = enum.auto()
    UNSEEN = enum.auto()


class _Pending:
    __slots__ = ("open", "prefix", "step", "waits")

    def __init__(self, step: Step, waits: _Waits) -> None:
        self.prefix, self.step, self.waits = step.met.path + b"/", step, waits
        self.open = waits in (_Waits.GOES, _Waits.REPLACED, _Waits.ALONG)


class Decisions:
    """Iterate once over the steps, in an order that is the same for the same trees.

    A stretch of equal entries needs no decision and passes through. A folder that goes follows what lies in it; every other folder comes first.
    Raises TargetError when a full or selective restore would have to remove what it may not.
    """

    def __init__(self, meetings: Iterable[Meeting | Stretch], rules: Rules, order: TreeOrder) -> None:
        self._meetings, self._rules, self._order = meetings, rules, order
        self._stack: list[_Pending] = []
        self.withheld = 0
        """Paths of the backup that are left alone because today's backups leave them out."""

    def __iter__(self) -> Iterator[Step | Stretch]:
        stack = self._stack
        for met in self._meetings:
            if isinstance(met, Stretch):  # The backup has every folder above it, so that none of them waits.
                while stack:
                    yield from _close(stack.pop())
                yield met
                continue
            while stack and not met.path.startswith(stack[-1].prefix):
                yield from _close(stack.pop())
            yield from self._step(met)
        while stack:
            yield from _close(stack.pop())

    def _step(self, met: Meeting) -> Iterator[Step]:
        above = self._stack[-1].waits if self._stack else None
        if met.left_out or above is _Waits.LEFT_OUT:
            yield from self._apart(met, above, _Waits.LEFT_OUT)
            return
        if above is _Waits.UNSEEN or self._is_unseen(met.live):
            yield from self._apart(met, above, _Waits.UNSEEN)
            return
        if met.live is not None and kind_of(met.live.record) == statmod.S_IFSOCK:
            if self._rules.keeps_sockets(met.path):
                yield from self._lasting(Step(met, Outcome.TENANT, "quiet"))
                return
            met = met._replace(live=None, here=False)
        step = Step(met, *self._verdict(met))
        waits = _waits(step)
        if waits is not None:
            self._stack.append(_Pending(step, waits))
        if waits is None or waits is _Waits.FILE:
            yield from [step] if step.outcome is Outcome.NONE else self._lasting(step)

    def _is_unseen(self, live: Live | None) -> bool:
        unseen = self._order.unseen
        return live is not None and unseen is not None and unseen(live.path, live.is_folder)

    def _apart(self, met: Meeting, above: _Waits | None, waits: _Waits) -> Iterator[Step]:
        """What is no part of the restore, with all below it."""
        self.withheld += met.row is not None
        step = Step(met, Outcome.TENANT if met.here else Outcome.NONE, "quiet")
        if met.here:
            yield from self._lasting(step)
        if above is not waits:
            self._stack.append(_Pending(step, waits))

    def _verdict(self, met: Meeting) -> Verdict:
        verdict = self._rules.verdict(met)
        if verdict.outcome is Outcome.BACKUP and met.live is None:
            blocked = next((each for each in self._stack if each.waits is _Waits.FILE), None)
            if blocked is not None:
                because = f"{show_path(blocked.prefix[:-1])} is a file now"
                return Verdict(Outcome.NONE, "kept", verdict.conflict, because)
        return verdict

    def _lasting(self, step: Step) -> Iterator[Step]:
        """Something stays or comes back: settle the folders above it first."""
        for pending in self._stack:
            if pending.open:
                pending.open = False
                yield self._outlived(pending, step)
        yield step

    def _outlived(self, pending: _Pending, by: Step) -> Step:
        met, _, _, conflict, _ = pending.step
        if pending.waits is _Waits.ALONG:
            because = f"{show_path(by.met.path)} comes back"
            return Step(met, Outcome.BACKUP, "insert", conflict, because)
        if pending.waits is _Waits.GOES:
            return Step(met, Outcome.TENANT, "quiet")
        if self._rules.refuses:
            raise TargetError(
                f"{show_path(by.met.path)} is not part of the backup and cannot be kept: "
                f"{show_path(met.path)} is a file in the backup",
                hint="move it away, or restore to another folder with --target path=DIR",
            )
        return Step(met, Outcome.TENANT, "kept", True, f"it is a folder, and {show_path(by.met.path)} in it stays")


def _waits(step: Step) -> _Waits | None:
    live, row = step.met.live, step.met.row
    if live is None:
        return _Waits.ALONG if row_is_folder(row) and step.outcome is Outcome.NONE else None
    if live.is_folder:
        if step.outcome is Outcome.NONE:
            return _Waits.GOES
        if step.outcome is Outcome.BACKUP and not row_is_folder(row):
            return _Waits.REPLACED
        return None
    return _Waits.FILE if step.outcome is Outcome.TENANT and row_is_folder(row) else None


def _close(pending: _Pending) -> Iterator[Step]:
    if pending.open:
        yield pending.step
