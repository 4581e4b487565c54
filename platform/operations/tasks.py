"""What django-q2 calls."""

from operations.history import history_forget
from operations.services import operation_run, operations_reap


def run(operation_id: str) -> str:
    """Run the operation if it is still queued; returns its state."""
    return operation_run(operation_id).state


def history() -> dict[str, int]:
    """Forget what is past its term."""
    return history_forget(actor="system:history")


def reap() -> int:
    """Find lost operations; returns how many there were."""
    return len(operations_reap())


def tick() -> str:
    """Plan and release, unless somebody just did."""
    from operations.scheduling.ticking import scheduler_tick_due

    ticked = scheduler_tick_due()
    return str(ticked) if ticked else "somebody just did"


def minute() -> dict[str, str]:
    """Do what is done once a minute; what of it failed."""
    from operations.minutely import minute as all_of_it

    return all_of_it()
