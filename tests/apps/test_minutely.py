"""What workers do once a minute."""

import pytest

from audit.models import Checkpoint, Entry
from audit.services import record
from core import clock
from operations.minutely import minute, minutely
from operations.tasks import minute as task


@pytest.mark.django_db
def test_a_worker_seals_and_verifies_the_log() -> None:
    """Goal: nobody has to think of it; let hours pass, spoil the log, let a day pass."""
    with clock.held(clock.now()) as advance:
        record("test.done", message="m", actor="ana")
        assert task() == {}
        assert Checkpoint.objects.count() == 1
        advance(clock.datetime.timedelta(hours=2))
        record("test.done", message="m", actor="ana")
        assert task() == {}
        assert Checkpoint.objects.count() == 2
        Entry.objects.filter(sequence=0).update(message="x")
        advance(clock.datetime.timedelta(days=1))
        task()
        task()
        assert Entry.objects.filter(type="audit.altered", level="error").count() == 1


@pytest.mark.django_db
def test_one_that_fails_keeps_back_none() -> None:
    """Goal: a broken part is not everybody's; register one that fails, look at the others."""
    from operations import minutely as module

    done = []

    def broken() -> None:
        raise OSError("no")

    minutely("a broken part")(broken)
    minutely("a good part")(lambda: done.append(1))
    try:
        assert minute() == {"a broken part": "OSError"}
        assert done == [1]
    finally:
        del module._works["a broken part"], module._works["a good part"]
