"""A restore in place over several sources: prepare all, keep the images, then commit one after the other.

The rows of RestoreSource are the journal. Before the first commit an error leaves every target as it was. After it the
restore goes forward where it can, and else takes back what was committed. A source whose last answer was lost is
settled by its token; nothing is guessed.
"""

import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engine.errors import CommitUnknown, DamageError, LastroError, SessionFenced, StalePlan, TargetError
from engine.faults import kill_point
from engine.images import ImageWriter
from engine.plans import Preview
from engine.ports import Connector, PreparedRestore, RestoreReport, RestoreRequest, SourceView
from engine.repository import Repository
from operations.context import OperationContext
from tenants import reading, wiring
from tenants.models import Restore, RestoreSource, RestoreSourceState, Source
from tenants.selectors import source_get
from tenants.services.plans import plan_command
from tenants.services.restore_recording import checks_json, journal_read, journal_write, restore_source_put

SETTLE_SECONDS = (0.2, 1.0, 3.0)
"""How long to wait before asking again how a commit ended."""


class RestoreIncomplete(TargetError):
    """Some targets hold the new data and some do not; the message names them."""

    code = "restore.incomplete"


class RestoreUnproven(DamageError):
    """What a restore made is not what it should be; `checks` are all that are known, as JSON."""

    code = "restore.checks_failed"

    def __init__(self, checks: Sequence[Mapping[str, Any]], *, hint: str) -> None:
        first = next(check for check in checks if not check["passed"])
        said = first["detail"] or first["actual"]
        super().__init__(f"source {first['source']}: {first['name']} did not pass: {said}", hint=hint)
        self.checks = list(checks)


class Course(Protocol):
    """What is done to each source: a restore from a backup's view, or an undo from images."""

    def request(self, row: RestoreSource) -> RestoreRequest: ...

    def prepare(
        self, connector: Connector, row: RestoreSource, request: RestoreRequest
    ) -> AbstractContextManager[PreparedRestore]: ...

    def preview(self, connector: Connector, row: RestoreSource, request: RestoreRequest) -> Preview: ...


@dataclass
class Part:
    """One source that is ready to be committed."""

    row: RestoreSource
    connector: Connector
    prepared: PreparedRestore
    held: contextlib.ExitStack
    """Closing it undoes what is not committed."""


@dataclass
class Saga:
    """One attempt at a restore in place."""

    context: OperationContext
    restore: Restore
    repository: Repository
    course: Course

    def settle(self) -> None:
        """Find out how the commits of an earlier attempt ended. Raises RestoreIncomplete when one cannot be told."""
        for row in self._rows(RestoreSourceState.APPLYING, RestoreSourceState.UNKNOWN):
            journal = journal_read(self.repository.keyring, row)
            back = journal.get("back")
            outcome = self._settled(self._connector(row), back or journal.get("token"), waits=())
            if outcome is None:
                outcome = self._compared(row, journal) if back is None else None
            if outcome is None:
                raise RestoreIncomplete(
                    f"nobody can tell yet whether source {row.name} was changed",
                    hint="look at it; a new plan compares it with the backup whatever it holds:"
                    f" {plan_command(self.restore)}",
                )
            # `back` was the commit that took the restore back.
            is_new = outcome if back is None else not outcome
            if back is not None and outcome:
                journal_write(self.repository.keyring, row, {})
            restore_source_put(self.context, row, RestoreSourceState.NEW if is_new else RestoreSourceState.OLD)

    def run(self, digests: Mapping[str, str]) -> None:
        """Change every source that is still as before; `digests` binds sources to what was approved.

        Afterwards each of them holds the new data. Raises RestoreIncomplete when that could be reached for some only.
        """
        rows = self._rows(RestoreSourceState.OLD)
        committed = bool(self._rows(RestoreSourceState.NEW))
        with contextlib.ExitStack() as stack:
            try:
                parts = [self._ready(stack, row, digests.get(row.name, "")) for row in rows]
            except SessionFenced:
                raise
            except LastroError as error:
                if committed and not error.retryable:
                    stack.close()
                    self._take_back(error)
                raise
            kill_point("restore.prepared")
            # What has no image is compared with its safety backup at the very end and may still refuse: it goes first,
            # while nothing has been changed.
            parts.sort(key=lambda part: bool(part.row.image))
            for part in parts:
                if not committed:
                    self.context.check()
                self._commit(part, stack, committed=committed)
                committed = True

    # ------------------------------------------------ one source

    def _rows(self, *states: RestoreSourceState) -> list[RestoreSource]:
        return list(self.restore.sources.filter(state__in=states).order_by("name"))

    def _source(self, row: RestoreSource) -> Source:
        return source_get(self.restore.tenant, row.name)

    def _connector(self, row: RestoreSource) -> Connector:
        return wiring.connector_at(self._source(row), self.restore)

    def _ready(self, stack: contextlib.ExitStack, row: RestoreSource, digest: str) -> Part:
        """Prepare one source, keep its image, and put into the journal what settles it later."""
        self.context.check()
        self.context.phase(f"prepare {row.name}")
        connector = self._connector(row)
        request = replace(self.course.request(row), digest=digest)
        held = stack.enter_context(contextlib.ExitStack())
        try:
            prepared = held.enter_context(self.course.prepare(connector, row, request))
        except StalePlan as error:
            # Rows have no name by which an operator would know where to look.
            if f"source {row.name}" not in error.message:
                error.message = f"source {row.name}: {error.message}"
            raise
        self._judge(row, prepared.report)
        self.context.phase(f"keep image {row.name}")
        row.image = self._keep_image(row, prepared)
        journal = {"token": dict(prepared.token), "digest": prepared.report.digest}
        journal_write(self.repository.keyring, row, journal)
        restore_source_put(self.context, row, RestoreSourceState.OLD)
        return Part(row, connector, prepared, held)

    def _judge(self, row: RestoreSource, report: RestoreReport) -> None:
        """Checks that do not pass stop the restore while nothing is changed yet."""
        if self.restore.validate_after and not all(check.passed for check in report.checks):
            raise RestoreUnproven(
                checks_json(row.name, report.checks), hint="nothing was changed; --no-validate takes it as it is"
            )

    def _keep_image(self, row: RestoreSource, prepared: PreparedRestore) -> str:
        # A name of its own for every attempt: a killed one may have left a part under its name.
        sink = ImageWriter(self.repository, f"{self.restore.pk}.{row.name}.{secrets.token_hex(4)}")
        prepared.image(sink)
        if sink.is_empty:
            return ""
        sink.close()
        kill_point("restore.image_stored")
        return sink.image

    def _commit(self, part: Part, stack: contextlib.ExitStack, *, committed: bool) -> None:
        row = part.row
        self.context.phase(f"apply {row.name}")
        restore_source_put(self.context, row, RestoreSourceState.APPLYING)
        kill_point("restore.before_source")
        try:
            self._commit_known(part)
        except RestoreIncomplete:
            raise
        except LastroError as error:
            # The port's promise: a commit that raises has left its target as it was.
            restore_source_put(self.context, row, RestoreSourceState.OLD, error=error)
            part.held.close()
            if not committed:
                raise
            part = self._forward(part, stack, error)
        kill_point("restore.source_applied")
        restore_source_put(self.context, row, RestoreSourceState.NEW, report=part.prepared.report)
        kill_point("restore.source_recorded")
        for warning in part.prepared.report.warnings:
            self.context.warn("restore.warning", f"source {row.name}: {warning}")

    def _commit_known(self, part: Part) -> None:
        """Commit, and when the answer is lost find out; RestoreIncomplete when nobody can tell."""
        try:
            part.prepared.commit()
        except CommitUnknown as error:
            outcome = self._settled(part.connector, part.prepared.token, waits=SETTLE_SECONDS)
            if outcome is None:
                restore_source_put(self.context, part.row, RestoreSourceState.UNKNOWN, error=error)
                raise RestoreIncomplete(
                    f"source {part.row.name}: {error.message}",
                    hint=f"when it can be reached again: operation retry {self.context.operation.pk}",
                ) from error
            if not outcome:
                raise

    def _forward(self, part: Part, stack: contextlib.ExitStack, error: LastroError) -> Part:
        """Others have been committed: try once more with the same changes, else take the others back."""
        row, digest = part.row, part.prepared.report.digest
        try:
            again = self._ready(stack, row, digest)
            restore_source_put(self.context, row, RestoreSourceState.APPLYING)
            self._commit_known(again)
        except (SessionFenced, RestoreIncomplete):
            raise
        except LastroError:
            restore_source_put(self.context, row, RestoreSourceState.OLD, error=error)
            stack.close()
            self._take_back(error)
            raise error from None
        return again

    # ------------------------------------------------ taking back

    def _take_back(self, error: LastroError) -> None:
        """Make every committed source what it was before; RestoreIncomplete when one cannot be."""
        for row in self._rows(RestoreSourceState.NEW):
            self.context.phase(f"take back {row.name}")
            try:
                self._take_back_one(row)
            except SessionFenced:
                raise
            except LastroError as refused:
                raise RestoreIncomplete(
                    f"{error.message}; and source {row.name} could not be taken back: {refused.message}",
                    hint=f"operation retry {self.context.operation.pk} goes forward again; "
                    f"restore undo {self.restore.pk} --plan shows what taking back would do",
                ) from error

    def _take_back_one(self, row: RestoreSource) -> None:
        connector = self._connector(row)
        request = RestoreRequest(label=self.restore.pk, overwrite=True)
        if row.image:
            held = connector.prepare_undo(reading.image_of(self.repository, row), request, self.context)
        else:
            held = connector.prepare(saved_view(self.repository, row), request, self.context)
        with held as prepared:
            journal = {**journal_read(self.repository.keyring, row), "back": dict(prepared.token)}
            journal_write(self.repository.keyring, row, journal)
            restore_source_put(self.context, row, RestoreSourceState.APPLYING)
            kill_point("restore.before_taking_back")
            try:
                prepared.commit()
            except CommitUnknown as error:
                outcome = self._settled(connector, prepared.token, waits=SETTLE_SECONDS)
                if outcome is None:
                    restore_source_put(self.context, row, RestoreSourceState.UNKNOWN, error=error)
                if not outcome:
                    raise
            except LastroError:
                restore_source_put(self.context, row, RestoreSourceState.NEW)
                raise
        kill_point("restore.taken_back")
        row.report = {}
        journal_write(self.repository.keyring, row, {})
        restore_source_put(self.context, row, RestoreSourceState.OLD)

    # ------------------------------------------------ settling

    @staticmethod
    def _settled(connector: Connector, token: Mapping[str, Any] | None, *, waits: Sequence[float]) -> bool | None:
        if token is None:
            return False  # Killed before anything was prepared.
        for wait in (0.0, *waits):
            time.sleep(wait)
            with contextlib.suppress(LastroError):
                outcome = connector.settle(token)
                if outcome is not None:
                    return outcome
        return None

    def _compared(self, row: RestoreSource, journal: Mapping[str, Any]) -> bool | None:
        """Nobody remembers the commit: see what the restore would do now."""
        request = replace(self.course.request(row), digest="")
        preview = self.course.preview(self._connector(row), row, request)
        if preview.digest == journal["digest"]:
            return False
        counts = [(table.insert, table.update, table.delete) for table in preview.tables]
        if preview.files is not None:
            counts.append((preview.files.created, preview.files.replaced, preview.files.removed))
        return True if not any(map(any, counts)) else None


def saved_view(repository: Repository, row: RestoreSource) -> SourceView:
    """The source as its safety backup has it. Raises TargetError when nothing was saved."""
    if row.saved is None:
        raise TargetError(
            f"of source {row.name} nothing was saved: it could not be read before the restore",
            hint="restore another backup of it",
        )
    return reading.views_of(repository, row.saved)[row.name]
