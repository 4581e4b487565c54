"""A staged, verified event log as the engine reads it."""

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from connectors._eventlog.capture import identity
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


class LogReader:
    """A SourceReader over a private staging folder; what it holds is exactly what was verified.

    `recheck` looks at the source again when everything was read and returns more facts.
    """

    def __init__(
        self,
        verified: Verified,
        read_at: datetime.datetime,
        extra: Mapping[str, Any],
        recheck: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        summary = verified.summary
        self.verified = verified
        self.schema_version = SCHEMA_VERSION
        self.facts: Mapping[str, Any] = {**verified.facts(), **extra}
        self.position: Mapping[str, Any] = {
            "at": instant(read_at),
            "total_events": summary["total_events"],
            "last_event_id": summary["last_event_id"],
            "last_current_hash": summary["last_current_hash"],
        }
        self._recheck = recheck
        self._staged = {each.path: identity(os.lstat(verified.root / each.path)) for each in verified.files}

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
        return self._recheck()
