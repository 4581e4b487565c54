"""A staged, verified event log as the engine reads it."""

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors._eventlog.capture import Identity, identity
from connectors._eventlog.package import instant
from connectors._eventlog.verified import Verified
from engine.errors import SourceChanged
from engine.ports import DocumentPart, TablePart, TreePart
from engine.progress import Progress

TREE_NAME = "event-log"
SCHEMA_VERSION = "eventlog-1"


def warn_findings(verified: Verified, progress: Progress) -> None:
    """Warn once, naming the first bad event and its place."""
    findings = verified.findings
    if not findings:
        return
    if verified.report.valid:
        progress.warn("eventlog.snapshot_differs", f"snapshot and chain contradict each other: {findings[0]}")
        return
    more = verified.report.finding_count - 1
    rest = f" ({more} more)" if more else ""
    progress.warn("eventlog.chain_broken", f"the event log's chain is broken: {findings[0]}{rest}; it is kept as it is")


@dataclass
class LogReader:
    """A SourceReader over a private staging folder; what it holds is exactly what was verified."""

    verified: Verified
    read_at: datetime.datetime
    extra: Mapping[str, Any]
    recheck: Callable[[], Mapping[str, Any]] = dict
    """Looks at the source again when everything was read; returns more facts."""
    schema_version: str = SCHEMA_VERSION
    _staged: dict[str, Identity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in self.verified.files:
            self._staged[each.path] = identity(os.lstat(self.verified.root / each.path))

    @property
    def position(self) -> Mapping[str, Any]:
        summary = self.verified.summary
        return {
            "at": instant(self.read_at),
            "total_events": summary["total_events"],
            "last_event_id": summary["last_event_id"],
            "last_current_hash": summary["last_current_hash"],
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**self.verified.facts(), **self.extra}

    def trees(self) -> Sequence[TreePart]:
        facts = {"eventlog_summary": self.verified.summary}
        return [TreePart(name=TREE_NAME, root=os.fsencode(self.verified.root), top_modules=False, facts=facts)]

    def tables(self) -> Sequence[TablePart]:
        return []

    def documents(self) -> Sequence[DocumentPart]:
        return []

    def finish(self) -> Mapping[str, Any]:
        """Prove that the stage still is what was verified, by the times that only the kernel sets.

        Raises SourceChanged when it is not.
        """
        for path, before in self._staged.items():
            try:
                same = identity(os.lstat(self.verified.root / path)) == before
            except FileNotFoundError:
                same = False
            if not same:
                raise SourceChanged(f"the staged {path} was changed by someone", hint="who writes into TMPDIR?")
        return self.recheck()
