"""Make live rows what a plan says: one transaction, by a difference, other rows untouched.

Order of things: stage the backup's rows in temporary tables, lock the tables against changes of schema
(ROW EXCLUSIVE, which every writer holds), compute the difference, decide by the mode, lock the rows that will change,
take the digest and compare it with the approved one; apply, check foreign keys, compare the result with what was
decided, move sequences forward, compare the server's count of changed rows with the plan. Then the transaction
is held open until its caller commits, with the change image at hand.

Triggers and cascades are kept quiet with `session_replication_role = replica` where the role may set it.
Elsewhere the server's own foreign keys are obeyed: children are deleted first, and when that does not
fit (a child that stays moves to another parent), everything is inserted first and deleted last.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg

from connectors._postgresql.applying import Applying
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.committing import commit, transaction_token
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, connect, errors
from connectors._postgresql.imaging import write_image
from connectors._postgresql.large_applying import check_settled
from connectors._postgresql.planning import Planned, Planning, Work
from connectors._postgresql.straight import NotStraight, refused
from connectors._postgresql.undoing import UndoPlanning
from engine.errors import TargetError, UsageError
from engine.faults import kill_point
from engine.ports import ImageSink, ImageView, PreparedRestore, RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress

ATTEMPTS_MAX = 5

Plan = Callable[[Work], Planned]


def connect_target(config: PostgresqlConfig) -> Connection:
    """Open a pinned connection to the target."""
    return connect(
        config.conninfo,
        side="target",
        connect_timeout=config.connect_timeout_seconds,
        statement_timeout=config.statement_timeout_seconds,
        lock_timeout=config.lock_timeout_seconds,
    )


def restore_in_place(
    config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Apply the backup to the live tables; wholly or not at all."""
    with prepare_in_place(config, view, request, progress) as prepared:
        prepared.commit()
        return prepared.report


@contextlib.contextmanager
def prepare_in_place(
    config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress
) -> Iterator[PreparedRestore]:
    """Apply the backup and hold the transaction open; leaving without a commit rolls it back."""
    check_same_source(config, view)
    with prepared_change(config, request, progress, lambda work: Planning(work, view).plan(), view) as prepared:
        yield prepared


@contextlib.contextmanager
def prepare_undo(
    config: PostgresqlConfig, image: ImageView, request: RestoreRequest, progress: Progress
) -> Iterator[PreparedRestore]:
    """Put back the rows of a change image and hold the transaction open."""
    with prepared_change(config, request, progress, lambda work: UndoPlanning(work, image).plan(), None) as prepared:
        yield prepared


@contextlib.contextmanager
def prepared_change(
    config: PostgresqlConfig, request: RestoreRequest, progress: Progress, plan: Plan, view: SourceView | None
) -> Iterator[PreparedRestore]:
    """Plan and apply in a transaction, again when the tenant's own writes came in between, and hold it open."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            prepared = _attempt(config, request, progress, plan, view, straight=attempt == 1)
        except NotStraight:
            continue
        except ConcurrentChange as error:
            if attempt == ATTEMPTS_MAX:
                raise TargetError(
                    f"the tenant's rows keep changing while they are restored ({error})",
                    hint="nothing was changed; stop the tenant's application during the restore, and look for triggers and rules"
                    " that rewrite rows",
                ) from None
            progress.warn("postgresql.retry", f"attempt {attempt} met concurrent writes: {error}")
            time.sleep(random.uniform(0.5, 1) * 0.2 * 2**attempt)  # noqa: S311 (spreads retries, hides nothing)
        else:
            break
    try:
        yield prepared
    finally:
        prepared.close()


def _attempt(
    config: PostgresqlConfig,
    request: RestoreRequest,
    progress: Progress,
    plan: Plan,
    view: SourceView | None,
    *,
    straight: bool,
) -> "PreparedChange":
    with contextlib.ExitStack() as stack, errors("target", config.conninfo):
        connection = stack.enter_context(contextlib.closing(connect_target(config)))
        try:
            work = Work(config, request, progress, connection, holds=True, may_go_straight=straight)
            with _straight_first(work):
                planned = plan(work)
                report = Applying(work, planned, view, lambda: connect_target(config)).run()
            prepared = PreparedChange(work, planned, report)
        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
            raise ConcurrentChange(error.diag.message_primary or "deadlock") from None
        except psycopg.errors.UniqueViolation as error:
            if request.mode == "full" and view is not None:
                raise
            # Values that were taken have been decided about: this one was taken meanwhile.
            raise ConcurrentChange(error.diag.message_primary or "a value was taken") from None
        stack.pop_all()
        return prepared


@contextlib.contextmanager
def _straight_first(work: Work) -> Iterator[None]:
    """What an attempt that loads straight cannot do, or cannot explain, is left to one that compares."""
    try:
        yield
    except Exception as error:
        if work.goes_straight and refused(error):
            raise NotStraight(str(error)) from None
        raise


class PreparedChange:
    """engine.ports.PreparedRestore: an open transaction in which everything is done and checked."""

    def __init__(self, work: Work, planned: Planned, report: RestoreReport) -> None:
        self.report = report
        self._work, self._planned = work, planned
        self.token: Mapping[str, Any] = transaction_token(work.connection)

    def image(self, sink: ImageSink) -> None:
        """Write the rows as they were before and as they are now."""
        with errors("target", self._work.config.conninfo):
            planned = self._planned
            write_image(self._work.connection, self._work.config, planned.parents_first, planned.large, sink)

    def commit(self) -> None:
        """Commit. Raises TargetError when the target is as before, CommitUnknown when nobody can tell."""
        kill_point("pg.restore.applied")
        with errors("target", self._work.config.conninfo):
            if self._planned.large is not None and self._planned.large.mark:
                check_settled(self._work.connection)
            commit(self._work.connection, lambda: connect_target(self._work.config))
        kill_point("pg.restore.committed")

    def close(self) -> None:
        """End the connection, and with it the transaction unless it was committed."""
        self._work.connection.close()


def check_same_source(config: PostgresqlConfig, view: SourceView) -> None:
    """Refuse to write one tenant's rows over another's when the settings changed since the backup."""
    for name in ("layout", "schema", "tenant_column", "tenant_value"):
        was = view.facts.get(name, "")
        now = getattr(config, name)
        if was != now:
            raise UsageError(
                f"the backup was made with {name}={was!r}, the source now says {now!r}",
                hint="restore to another target, or set the source back",
            )
    for name in ("include", "exclude", "ignored_links"):
        # A wider scope than the backup's would delete rows that were never backed up.
        now_listed = sorted(getattr(config, name))
        if name in view.facts and sorted(view.facts[name]) != now_listed:
            raise UsageError(
                f"the backup was made with {name}={sorted(view.facts[name])}, the source now says {now_listed}",
                hint="restore to another target, set the source back, or take a new backup",
            )
