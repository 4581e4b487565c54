"""The only places where the state of a backup, a restore or a plan changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.transitions import transition, transition_many
from tenants.models import Backup, BackupState, Drill, DrillState, PlanState, Restore, RestorePlan, RestoreState

_BACKUP: Mapping[str, frozenset[str]] = {
    BackupState.RUNNING: frozenset({BackupState.SUCCEEDED, BackupState.WARNED, BackupState.FAILED}),
    # A backup given up for lost whose manifest is found committed in the store exists after all.
    BackupState.FAILED: frozenset({BackupState.SUCCEEDED, BackupState.WARNED}),
    BackupState.SUCCEEDED: frozenset({BackupState.EXPIRED, BackupState.DELETED}),
    BackupState.WARNED: frozenset({BackupState.EXPIRED, BackupState.DELETED}),
    # Taken back from the trash. What left the trash stays ended: callers ask for `trashed_at`.
    BackupState.EXPIRED: frozenset({BackupState.SUCCEEDED, BackupState.WARNED}),
    BackupState.DELETED: frozenset({BackupState.SUCCEEDED, BackupState.WARNED}),
}

_ENDS = frozenset({RestoreState.FAILED, RestoreState.CANCELLED})
_RESTORE: Mapping[str, frozenset[str]] = {
    RestoreState.PLANNED: frozenset({RestoreState.APPROVED}) | _ENDS,
    RestoreState.APPROVED: frozenset({RestoreState.STAGING}) | _ENDS,
    RestoreState.STAGING: frozenset({RestoreState.APPLYING}) | _ENDS,
    RestoreState.APPLYING: frozenset({RestoreState.CHECKING}) | _ENDS,
    RestoreState.CHECKING: frozenset({RestoreState.SUCCEEDED}) | _ENDS,
    RestoreState.SUCCEEDED: frozenset({RestoreState.UNDONE}),
    # Run again under the same id after a crash: staging clears what the killed run left. One that changed some of
    # its sources can be undone as well.
    RestoreState.FAILED: frozenset({RestoreState.APPROVED, RestoreState.UNDONE}),
    RestoreState.CANCELLED: frozenset(),
    RestoreState.UNDONE: frozenset(),
}

_PLAN: Mapping[str, frozenset[str]] = {
    PlanState.MAKING: frozenset({PlanState.READY, PlanState.FAILED}),
    PlanState.READY: frozenset({PlanState.USED}),
    # Given back when its restore never ran or changed nothing.
    PlanState.USED: frozenset({PlanState.READY}),
    PlanState.FAILED: frozenset({PlanState.MAKING}),
}

_DRILL: Mapping[str, frozenset[str]] = {
    DrillState.RUNNING: frozenset({DrillState.PASSED, DrillState.FAILED}),
    DrillState.PASSED: frozenset(),
    DrillState.FAILED: frozenset(),
}


def drill_transition(drill: Drill, *, to: DrillState, actor: str = "", reason: str = "", **fields: Any) -> None:
    """End a drill; StateConflict when it has ended already."""
    transition(drill, to=to, allowed=_DRILL, actor=actor, reason=reason, **fields)


def backup_transition(backup: Backup, *, to: BackupState, actor: str = "", reason: str = "", **fields: Any) -> None:
    """Move a backup on; StateConflict when it is no longer where the caller saw it."""
    transition(backup, to=to, allowed=_BACKUP, actor=actor, reason=reason, **fields)


def backups_transition(ids: Sequence[str], *, to: BackupState, actor: str, reason: str, **fields: Any) -> list[str]:
    """Move many backups on; the ids of those that were still where they may be moved from."""
    return transition_many(Backup, ids, to=to, allowed=_BACKUP, actor=actor, reason=reason, **fields)


def restore_transition(restore: Restore, *, to: RestoreState, actor: str = "", reason: str = "", **fields: Any) -> None:
    """Move a restore on; StateConflict when it is no longer where the caller saw it."""
    transition(restore, to=to, allowed=_RESTORE, actor=actor, reason=reason, **fields)


def plan_transition(plan: RestorePlan, *, to: PlanState, actor: str = "", reason: str = "", **fields: Any) -> None:
    """Move a plan on; StateConflict when it is no longer where the caller saw it."""
    transition(plan, to=to, allowed=_PLAN, actor=actor, reason=reason, **fields)


def backup_open_states() -> tuple[BackupState, ...]:
    """States in which a session may still be at work."""
    return (BackupState.RUNNING,)


def restore_open_states() -> tuple[RestoreState, ...]:
    """States in which a restore may still be at work."""
    return (
        RestoreState.PLANNED,
        RestoreState.APPROVED,
        RestoreState.STAGING,
        RestoreState.APPLYING,
        RestoreState.CHECKING,
    )
