"""A live log and a backed-up one: which events each has that the other lacks, and what a restore does about it.

A log only ever grows at its end and is pruned at its beginning. So two logs either tell one history, of which each
may have lost a part, or they fork; a merge brings back what is lost and refuses a fork.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from connectors._eventlog.capture import Identity, identity, list_segments
from connectors._eventlog.chain import ChainReport, ChainVerifier
from connectors._eventlog.extract import log_entries
from connectors._eventlog.segment import (
    LOG_FOLDER,
    SNAPSHOT_NAME,
    SegmentMalformed,
    SegmentName,
    read_events,
    segment_name,
)
from connectors._eventlog.verified import Verified, file_blocks, verify_folder
from engine.errors import SourceChanged, TargetError
from engine.plans import ChangeDigest, PathSample, RestoreMode
from engine.ports import FileChange
from engine.progress import Progress
from engine.tree_tally import moment
from engine.tree_view import Entry, TreeView

READ_TRIES = 3
TAKE_ALL_HINT = "policy take_backup replaces the whole log by the backup's, as a full restore does"
_CHANGES = ("delete", "update", "insert")


@dataclass(frozen=True, slots=True)
class LiveLog:
    """The log at the target as it was read."""

    root: Path
    verified: Verified
    identities: Mapping[str, Identity]
    strangers: tuple[str, ...]
    """Names in the log folder that belong to no log."""

    @property
    def sums(self) -> dict[str, str]:
        return {each.path: each.sha256 for each in self.verified.files}


@dataclass(slots=True)
class LogPlan:
    """Which files the new log takes from the backup and which from the live log."""

    live: LiveLog
    entries: Mapping[str, Entry]
    """The backup's files by path."""
    take: set[str] = field(default_factory=set)
    keep: set[str] = field(default_factory=set)
    whole: bool = True
    """The new log is the backup's, and must be what its facts say."""
    common_events: int = 0
    """Events that both have."""
    backup_events: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    """Summary of the new log."""
    warnings: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        return bool(self._changed())

    def _changed(self) -> dict[str, str]:
        """What is done to each path, in the order of paths."""
        sums, changed = self.live.sums, {}
        for path in sorted(sums.keys() | self.take):
            if path in self.take:
                if path not in sums:
                    changed[path] = "insert"
                elif sums[path] != self.entries[path].row.sum.hex():
                    changed[path] = "update"
            elif path not in self.keep:
                changed[path] = "delete"
        return changed

    def changes(self) -> FileChange:
        """Files, among them the snapshot, by what is done with them."""
        changed, sums = self._changed(), self.live.sums
        counts = {name: sum(each == name for each in changed.values()) for name in _CHANGES}
        different = {p for p in self.keep if p not in self.entries or self.entries[p].row.sum.hex() != sums.get(p)}
        unchanged = len((self.take | self.keep) - changed.keys() - different)
        return FileChange(
            created=counts["insert"],
            replaced=counts["update"],
            removed=counts["delete"],
            unchanged=unchanged,
            kept=len(different),
        )

    def digest(self) -> str:
        """engine.plans.ChangeDigest over what is done."""
        digest, sums = ChangeDigest(), self.live.sums
        digest.section(LOG_FOLDER)
        for path, change in self._changed().items():
            after = self.entries[path].row.sum.hex() if path in self.take else ""
            digest.lines([f"{change}\t{path}\t{sums.get(path, '')}\t{after}".encode()])
        return digest.hexdigest()

    def samples(self, count: int) -> tuple[PathSample, ...]:
        """The first few files that change, removals first."""
        changed = sorted(self._changed().items(), key=lambda each: (_CHANGES.index(each[1]), each[0]))
        return tuple(self._sample(path, change) for path, change in changed[:count])

    def _sample(self, path: str, change: str) -> PathSample:
        seen, entry = self.live.identities.get(path), self.entries.get(path) if path in self.take else None
        return PathSample(
            change,  # type: ignore[arg-type]
            path,
            size_before=seen[2] if seen else None,
            size_after=entry.stat.size if entry else None,
            modified_before=moment(seen[3]) if seen else None,
            modified_after=moment(entry.mtime_ns) if entry else None,
        )

    def facts(self) -> dict[str, Any]:
        """What people ask about a log: events that come and go, its ends before and after, segments."""
        before, after = self.live.verified.summary, self.result
        return {
            "events_added": after["total_events"] - self._staying(),
            "events_removed": before["total_events"] - self._staying(),
            "events_before": before["total_events"],
            "events_after": after["total_events"],
            "first_event_id_before": before["first_event_id"],
            "last_event_id_before": before["last_event_id"],
            "first_event_id": after["first_event_id"],
            "last_event_id": after["last_event_id"],
            "segments_before": before["total_segments"],
            "segments": after["total_segments"],
        }

    def _staying(self) -> int:
        """Events of the live log that are in the new one."""
        return self.common_events if self.whole else int(self.live.verified.summary["total_events"])


# ---------------------------------------------------------------- reading the live log


def read_live(root: Path, progress: Progress) -> LiveLog:
    """Verify the log at the target; again when it is written to meanwhile. Raises SourceError and its children."""
    for attempt in range(READ_TRIES):
        seen = identities(root / LOG_FOLDER, root / SNAPSHOT_NAME)
        segments, strangers = list_segments(root / LOG_FOLDER)
        try:
            live = LiveLog(root, verify_folder(root, segments, progress), seen, tuple(strangers))
        except FileNotFoundError:
            continue
        last = attempt == READ_TRIES - 1
        if last or identities(root / LOG_FOLDER, root / SNAPSHOT_NAME) == seen:
            return live
    raise SourceChanged(f"segments of {root} keep vanishing", hint="is the log being reset?")


def identities(log: Path, snapshot: Path) -> dict[str, Identity]:
    """What tells the log's files apart from any other and from their own later states."""
    found = {}
    paths = [(name.path, log / name.name) for name in list_segments(log)[0]]
    for path, place in [*paths, (SNAPSHOT_NAME, snapshot)]:
        try:
            info = os.lstat(place)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode):
            found[path] = identity(info)
    return found


# ---------------------------------------------------------------- deciding


def plan_log(
    tree: TreeView, facts: Mapping[str, Any], live: LiveLog, mode: RestoreMode, progress: Progress, *, all_of_it: bool
) -> LogPlan:
    """Decide what is done. `all_of_it` makes a merge a full restore, and a selection one of the log.

    Raises TargetError when a merge would have to join two histories, naming the first event in which they differ.
    """
    plan = LogPlan(live, log_entries(tree), backup_events=int(facts["eventlog_summary"]["total_events"]))
    if mode == "selective" and not all_of_it:
        plan.keep, plan.whole, plan.result = set(live.sums), False, live.verified.summary
    elif mode == "merge" and not all_of_it:
        _merge(plan, tree, facts, progress)
    else:
        plan.take, plan.result = set(plan.entries), dict(facts["eventlog_summary"])
        plan.common_events = _common_events(plan, tree)
        if mode == "merge" and plan.differs:
            plan.warnings.append("policy take_backup replaces the whole log by the backup's")
    return plan


def _common_events(plan: LogPlan, tree: TreeView) -> int:
    """Events with which both logs begin in each segment that both have."""
    total, sums = 0, plan.live.sums
    for path, count in plan.live.verified.counts.items():
        entry = plan.entries.get(path)
        if entry is not None and path in sums:
            same = sums[path] == entry.row.sum.hex()
            total += count if same else _relation(plan.live.root / path, tree, entry).common
    return total


@dataclass(frozen=True, slots=True)
class _Relation:
    """How the events of one segment stand to those of the other log's segment of that name."""

    common: int
    live_more: bool
    backup_more: bool
    live_broken: bool
    backup_broken: bool
    fork: str | None
    """The first event that differs."""


class _Events:
    """Events of one segment one by one, as far as it is readable."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.broken = False

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in read_events(self._blocks):
                yield from batch
        except SegmentMalformed:
            self.broken = True


def _relation(path: Path, tree: TreeView, entry: Entry) -> _Relation:
    live, backup = _Events(file_blocks(path)), _Events(bytes(piece) for piece in tree.read(entry))
    mine, its = iter(live), iter(backup)
    end = object()
    common = 0
    while True:
        one, other = next(mine, end), next(its, end)
        if one is end or other is end:
            return _Relation(common, one is not end, other is not end, live.broken, backup.broken, None)
        if one != other:
            return _Relation(common, True, True, live.broken, backup.broken, _name(one, other))
        common += 1


def _name(one: Any, other: Any) -> str:
    for event in (one, other):
        if isinstance(event, dict) and isinstance(event.get("id"), str):
            return str(event["id"])
    return json.dumps(one)[:80]


def _merge(plan: LogPlan, tree: TreeView, facts: Mapping[str, Any], progress: Progress) -> None:
    """Bring back what the live log lacks; what it has stays."""
    live, sums = plan.live, plan.live.sums
    plan.whole = False
    numbers = {name.number: name.path for name in map(_segment, sums) if name}
    for path, entry in plan.entries.items():
        name = _segment(path)
        if name is None:
            continue
        mine = numbers.get(name.number)
        if mine is None:
            plan.take.add(path)
        elif sums[mine] == entry.row.sum.hex():
            plan.common_events += live.verified.counts.get(mine, 0)
        else:
            _merge_segment(plan, tree, path, mine)
    plan.keep = {path for path in sums if _segment(path)} - plan.take
    report = _chain_of(plan, tree, progress) if plan.take else live.verified.report
    _require_one_history(plan, facts, report)
    _merge_snapshot(plan, report)
    plan.result = report.summary(snapshot_exists=SNAPSHOT_NAME in plan.take | plan.keep)


def _segment(path: str) -> SegmentName | None:
    return segment_name(path.removeprefix(LOG_FOLDER + "/")) if path != SNAPSHOT_NAME else None


def _merge_segment(plan: LogPlan, tree: TreeView, path: str, mine: str) -> None:
    relation = _relation(plan.live.root / mine, tree, plan.entries[path])
    if relation.fork is not None:
        raise _forked(relation.fork, path)
    plan.common_events += relation.common
    damaged = relation.live_broken and not relation.backup_broken and not relation.live_more
    if path == mine and (damaged or (relation.backup_more and not relation.live_more)):
        plan.take.add(path)


def _forked(event_id: str | None, path: str) -> TargetError:
    return TargetError(
        f"the live log and the backup's are two histories: they differ first at event {event_id} in {path}",
        hint=TAKE_ALL_HINT,
    )


def _chain_of(plan: LogPlan, tree: TreeView, progress: Progress) -> ChainReport:
    """Verify the log as it would be, each segment read where it comes from."""
    verifier = ChainVerifier()
    for name in sorted(filter(None, map(_segment, plan.take | plan.keep))):
        progress.check()
        if name.path in plan.take:
            verifier.segment(name, (bytes(piece) for piece in tree.read(plan.entries[name.path])))
        else:
            verifier.segment(name, file_blocks(plan.live.root / name.path))
    return verifier.report()


def _require_one_history(plan: LogPlan, facts: Mapping[str, Any], report: ChainReport) -> None:
    """What is wrong with the merged chain must have been wrong before; else the two never belonged together."""
    known = {_place(each.as_json()) for each in plan.live.verified.report.findings}
    known |= {_place(each) for each in facts.get("findings", ())}
    fresh = next((each for each in report.findings if _place(each.as_json()) not in known), None)
    if fresh is not None and plan.take:
        raise _forked(fresh.event_id, fresh.file)
    if report.findings:
        plan.warnings.append(f"the log is broken and stays so: {report.findings[0]}")


def _place(finding: Mapping[str, Any]) -> tuple[Any, ...]:
    return finding["reason"], finding["event_id"], finding["file"], finding["index"]


def _merge_snapshot(plan: LogPlan, report: ChainReport) -> None:
    """The snapshot of whoever has the newest event; it names the end of the chain."""
    live, mine = plan.live.verified, SNAPSHOT_NAME in plan.live.sums
    end, own = report.last, live.report.last
    newest_is_ours = end is None or (own is not None and own.current_hash == end.current_hash)
    stays = mine and newest_is_ours and live.snapshot_state != "malformed"
    if SNAPSHOT_NAME in plan.entries and not stays:
        plan.take.add(SNAPSHOT_NAME)
    elif mine:
        plan.keep.add(SNAPSHOT_NAME)
