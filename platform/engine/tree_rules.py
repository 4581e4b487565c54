"""What a restore does about one path of a tree, by its mode: take the backup's, keep the tenant's, or have neither.

These rules look at one path at a time; engine.tree_decide makes the results fit together as folders and files.
"""

import enum
import stat as statmod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, NamedTuple, Protocol

from engine.errors import NameUnknown
from engine.plans import Policy, RestoreMode
from engine.tree_format import OTHERS_MODULE, ROOT_MODULE, STAT, Row, Stat, show_path
from engine.tree_likeness import Likeness, Live, row_is_folder, rows_alike
from engine.tree_scan import Exclude
from engine.tree_view import TreeView

CLOSE_NAMES_MAX = 3
Change = Literal["insert", "update", "delete", "kept", "unchanged", "quiet"]
"""`quiet`: not counted, because it is none of this restore's business."""


class Outcome(enum.IntEnum):
    """Whose entry a path has afterwards."""

    NONE = 0
    BACKUP = 1
    TENANT = 2


@dataclass(frozen=True, slots=True)
class TreeOrder:
    """What a restore is to do with a tree; see engine.ports.RestoreRequest for modules, policies and digest.

    `left_out` are paths that today's backups do not hold: they are no part of any restore in place and stay
    whatever they are. `unseen` are paths that this backup did not look at: what the target has of them stays.
    """

    mode: RestoreMode = "full"
    modules: tuple[str, ...] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    base: TreeView | None = None
    saved: TreeView | None = None
    left_out: Exclude | None = None
    unseen: Exclude | None = None
    digest: str = ""
    samples: int = 20


class Meeting(NamedTuple):
    """One path as the target, the backup, the base and the safety backup have it; None where they do not."""

    path: bytes
    live: Live | None
    row: Row | None = None
    number: int = -1
    """Of the row among the backup's, -1 without one."""
    base: Row | None = None
    saved_number: int = -1
    """Of the row among the safety backup's, -1 without one."""
    left_out: bool = False
    """It is no part of the restore, nor is what lies below it; then `live` is None and `here` says whether it exists."""
    here: bool = False


class Verdict(NamedTuple):
    """What happens at a path, were it alone."""

    outcome: Outcome
    change: Change
    conflict: bool = False
    because: str = ""


class Rules(Protocol):
    refuses: bool
    """True when nothing that stays may stop a backup's file: then the restore is refused."""

    def verdict(self, met: Meeting) -> Verdict:
        """Decide the path as if it were alone."""
        ...

    def keeps_sockets(self, path: bytes) -> bool:
        """Whether a socket there, which no backup holds, is kept."""
        ...


def rules_for(order: TreeOrder, view: TreeView, likeness: Likeness) -> Rules:
    """Raises NameUnknown for a module that the backup does not hold."""
    if order.mode == "full":
        return Full(likeness)
    if order.mode == "selective":
        return Selective(likeness, Chosen(view, order.modules, order.base))
    return Merge(likeness, order.policies, _listed(view), three_way=order.base is not None)


def _listed(view: TreeView) -> frozenset[str]:
    """Modules that the manifest names; beyond a thousand they are one, OTHERS_MODULE."""
    return frozenset(str(module["name"]) for module in view.node["modules"])


# ---------------------------------------------------------------- full and selective


class Full:
    """The target becomes what the backup holds."""

    refuses = True

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness

    def verdict(self, met: Meeting) -> Verdict:
        """Take the backup's, and nothing where it has nothing."""
        if met.row is None:
            return Verdict(Outcome.NONE, "delete" if met.live else "quiet")
        if met.live is None:
            return Verdict(Outcome.BACKUP, "insert")
        same = self._likeness.live_is(met.live, met.row, with_time=True)
        return Verdict(Outcome.BACKUP, "unchanged" if same else "update")

    def keeps_sockets(self, path: bytes) -> bool:
        """Keep none."""
        return False


class Chosen:
    """The modules of a selection, by the names that the manifest lists.

    A module that only `base` holds was nothing when the view was taken, and becomes nothing again: so a selective restore that
    brought a folder back is undone.
    """

    def __init__(self, view: TreeView, modules: tuple[str, ...], base: TreeView | None = None) -> None:
        self._view, self._chosen = view, set(modules)
        self._named = _listed(view)
        self._known: dict[bytes, bool] = {}
        once = Chosen(base, ()) if base is not None else None
        for name in modules:
            if not (self._holds(name) or (once is not None and once._holds(name))):
                close = get_close_matches(name, self._named, CLOSE_NAMES_MAX)
                hint = f"near it: {', '.join(close)}" if close else f"the backup has {_some(self._named)}"
                raise NameUnknown(f"the backup of {view.name} has no module {name!r}", hint=hint)

    def _holds(self, name: str) -> bool:
        """Beyond a thousand, folders are not listed one by one."""
        if name in self._named:
            return True
        entry = self._view.find(name.encode()) if name and "/" not in name else None
        return entry is not None and statmod.S_ISDIR(entry.stat.mode)

    def __contains__(self, module: bytes) -> bool:
        known = self._known.get(module)
        if known is None:
            name = show_path(module)
            known = name in self._chosen
            if not known and name not in self._named and show_path(OTHERS_MODULE) in self._chosen:
                known = self._view.find(module) is not None
            self._known[module] = known
        return known


class Selective:
    """The chosen top-level folders, and `.` for what lies beside them, become what the backup holds."""

    refuses = True

    def __init__(self, likeness: Likeness, chosen: Chosen) -> None:
        self._full, self._chosen = Full(likeness), chosen

    def verdict(self, met: Meeting) -> Verdict:
        """Take the backup's in what was chosen, and keep the tenant's elsewhere."""
        live_folder, row_folder = met.live is not None and met.live.is_folder, row_is_folder(met.row)
        top = met.path.partition(b"/")[0]
        if b"/" not in met.path and met.live and met.row and live_folder != row_folder:
            return self._clash(met, top, row_folder=row_folder)
        own = top if top and (b"/" in met.path or live_folder or row_folder) else ROOT_MODULE
        if own in self._chosen or (not met.path and met.live is None):
            return self._full.verdict(met)
        return Verdict(Outcome.TENANT if met.live else Outcome.NONE, "quiet")

    def _clash(self, met: Meeting, top: bytes, *, row_folder: bool) -> Verdict:
        if row_folder and top in self._chosen:
            return Verdict(Outcome.BACKUP, "update", because="a file stands where a chosen folder was")
        if ROOT_MODULE not in self._chosen:
            return Verdict(Outcome.TENANT, "quiet")
        if row_folder:
            return Verdict(Outcome.NONE, "delete", because="the backup has a folder there, which was not chosen")
        return Verdict(
            Outcome.TENANT, "kept", because="it is a folder now, which was not chosen; a full restore replaces it"
        )

    def keeps_sockets(self, path: bytes) -> bool:
        """Keep those outside the selection."""
        top, slash, _ = path.partition(b"/")
        return (top if slash else ROOT_MODULE) not in self._chosen


def _some(names: frozenset[str]) -> str:
    listed = sorted(names)[:10]
    return ", ".join(listed) + (" …" if len(names) > len(listed) else "")


# ---------------------------------------------------------------- merging


class Merge:
    """Nothing that only the tenant has is lost; see engine.plans.Policy."""

    refuses = False

    def __init__(
        self, likeness: Likeness, policies: Mapping[str, Policy], listed: frozenset[str], *, three_way: bool
    ) -> None:
        self._likeness, self._policies, self._listed = likeness, policies, listed
        self._decide: Callable[[Meeting], Verdict] = self._three_ways if three_way else self._two_ways
        self._by_module: dict[bytes, Policy] = {}

    def keeps_sockets(self, path: bytes) -> bool:
        """Keep all."""
        return True

    def verdict(self, met: Meeting) -> Verdict:
        """Follow the policy of the path's module."""
        if not met.path and met.live is None:
            return Verdict(Outcome.BACKUP, "insert")
        return self._decide(met)

    def _policy(self, met: Meeting) -> Policy:
        top, slash, _ = met.path.partition(b"/")
        folder = slash or (met.live is not None and met.live.is_folder) or row_is_folder(met.row)
        module = top if top and (folder or row_is_folder(met.base)) else ROOT_MODULE
        policy = self._by_module.get(module)
        if policy is None:
            name = show_path(module)
            others = None if name in self._listed else self._policies.get(show_path(OTHERS_MODULE))
            policy = self._by_module[module] = self._policies.get(name) or others or "only_missing"
        return policy

    # ------------------------------------------------------------ without a base

    def _two_ways(self, met: Meeting) -> Verdict:
        live, row = met.live, met.row
        if row is None:
            return Verdict(Outcome.TENANT, "kept")
        if live is None:
            return Verdict(Outcome.BACKUP, "insert")
        if self._likeness.live_is(live, row, with_time=False):
            return Verdict(Outcome.TENANT, "unchanged")
        return self._preferred(self._policy(met), live, row)

    def _preferred(self, policy: Policy, live: Live, row: Row, *, conflict: bool = False) -> Verdict:
        """Both exist and differ."""
        if live.is_folder and not row_is_folder(row):
            return Verdict(Outcome.TENANT, "kept", conflict, "it is a folder now, and what it holds stays")
        if policy == "only_missing":
            because = "it is a file now, so that what the backup has below it cannot come back"
            return Verdict(Outcome.TENANT, "kept", conflict, because if row_is_folder(row) else "")
        if policy == "take_backup":
            return Verdict(Outcome.BACKUP, "update", conflict)
        if row_is_folder(row):  # A folder's time says when a name in it changed, not when it did.
            because = (
                "" if live.is_folder else "it is a file now, so that what the backup has below it cannot come back"
            )
            return Verdict(Outcome.TENANT, "kept", conflict, because)
        if Stat._make(STAT.unpack(row.stat)).mtime_ns > live.stat.mtime_ns:
            return Verdict(Outcome.BACKUP, "update", conflict)
        return Verdict(Outcome.TENANT, "kept", conflict)

    # ------------------------------------------------------------ with a base

    def _three_ways(self, met: Meeting) -> Verdict:
        live, row, base = met.live, met.row, met.base
        backup_changed = not rows_alike(row, base)
        live_changed = (live is None) != (base is None)
        if live is not None and base is not None:
            live_changed = not self._likeness.live_is(live, base, with_time=False)
        if not backup_changed:
            if live is None:
                return Verdict(Outcome.NONE, "kept" if row else "quiet")
            return Verdict(Outcome.TENANT, "kept" if live_changed else "unchanged")
        if not live_changed:
            return self._backups(met)
        if live is None:
            return self._deleted_here(met) if row else Verdict(Outcome.NONE, "quiet")
        if row is None:
            return self._deleted_there(met)
        if self._likeness.live_is(live, row, with_time=False):
            return Verdict(Outcome.TENANT, "unchanged")
        return self._preferred(self._policy(met), live, row, conflict=True)

    def _backups(self, met: Meeting, *, conflict: bool = False) -> Verdict:
        """The backup's side, deletions too."""
        if met.row is None:
            return Verdict(Outcome.NONE, "delete", conflict)
        return Verdict(Outcome.BACKUP, "update" if met.live else "insert", conflict)

    def _deleted_here(self, met: Meeting) -> Verdict:
        """The tenant deleted what the backup's side changed: it comes back under every policy."""
        return Verdict(Outcome.BACKUP, "insert", conflict=True, because="deleted here, changed in the backup")

    def _deleted_there(self, met: Meeting) -> Verdict:
        """The backup's side deleted what the tenant changed."""
        if self._policy(met) == "take_backup":
            return Verdict(Outcome.NONE, "delete", conflict=True, because="changed here, deleted in the backup")
        return Verdict(Outcome.TENANT, "kept", conflict=True, because="changed here, deleted in the backup")
