"""What a restore in place or an undo would do: planned in a transaction that is rolled back, in one snapshot.

Nothing is locked that writers feel (ACCESS SHARE), and nothing is written but temporary tables.
"""

import contextlib
from collections.abc import Callable, Sequence

from connectors._postgresql import large_objects
from connectors._postgresql.changes import ConcurrentChange
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, errors, value
from connectors._postgresql.drifting import find_drift
from connectors._postgresql.inplace import Plan, check_same_source, connect_target
from connectors._postgresql.large_comparing import take_large_samples
from connectors._postgresql.planning import Planned, Planning, Work
from connectors._postgresql.sampling import take_samples
from connectors._postgresql.undoing import UndoPlanning
from engine.errors import TargetError
from engine.plans import Drift, Preview
from engine.ports import ImageView, RestoreRequest, SourceView
from engine.progress import Progress

ATTEMPTS_MAX = 3

_STAGED = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::int8 FROM pg_class
 WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r' AND relname ~ '^lastro_'
"""


def preview_in_place(
    config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress
) -> Preview:
    """Say what `restore_in_place` would do now."""
    check_same_source(config, view)

    def drift(connection: Connection, planned: Planned) -> Sequence[Drift]:
        return find_drift(connection, view, planned)

    return _preview(config, request, progress, lambda work: Planning(work, view).plan(), drift)


def preview_undo(config: PostgresqlConfig, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
    """Say what an undo would do now; rows that changed since the restore are conflicts."""
    return _preview(config, request, progress, lambda work: UndoPlanning(work, image).plan(), lambda *_: ())


def _preview(
    config: PostgresqlConfig,
    request: RestoreRequest,
    progress: Progress,
    plan: Plan,
    drift: Callable[[Connection, Planned], Sequence[Drift]],
) -> Preview:
    for attempt in range(1, ATTEMPTS_MAX + 1):
        with errors("target", config.conninfo), contextlib.closing(connect_target(config)) as connection:
            work = Work(config, request, progress, connection, holds=False)
            try:
                planned = plan(work)
                return _describe(work, planned, drift(connection, planned))
            except ConcurrentChange as error:
                if attempt == ATTEMPTS_MAX:
                    raise TargetError(
                        f"the target keeps changing while it is looked at ({error})",
                        hint="try again after the migration",
                    ) from None
    raise AssertionError("the loop either returns or raises")


def _describe(work: Work, planned: Planned, drift: Sequence[Drift]) -> Preview:
    sided = planned.undo or work.request.mode == "merge"
    changes = {difference.change.name: difference.change for difference in planned.differences}
    samples = {
        difference.change.name: found
        for difference in planned.differences
        if (found := take_samples(work.connection, difference, limit=work.request.samples, sided=sided))
    }
    if planned.large is not None:
        found = take_large_samples(work.connection, limit=work.request.samples, undo=planned.undo)
        samples |= {large_objects.MODULE: found} if found else {}
    return Preview(
        digest=planned.digest,
        tables=(*(changes[name] for name in sorted(changes)), *planned.large_changes),
        samples=samples,
        drift=tuple(drift),
        dependencies=tuple(planned.dependencies),
        warnings=tuple(work.warnings),
        staged_bytes=int(value(work.connection, _STAGED)),
        facts={"clocks": dict(planned.clocks)},
    )
