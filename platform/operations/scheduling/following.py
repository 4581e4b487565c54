"""What the end of an operation means to schedules; imported by all that runs operations, so it imports little itself."""

from operations.models import ExpectedRun, RunState


def run_ended(operation_id: str) -> None:
    """Bring the run that the operation was for to its end, and let the next begin at once; nothing for other operations."""
    if not ExpectedRun.objects.filter(operation_id=operation_id, state=RunState.RUNNING).exists():
        return
    from operations.scheduling.releasing import runs_release
    from operations.scheduling.settling import run_settle

    if run_settle(operation_id):
        runs_release()
