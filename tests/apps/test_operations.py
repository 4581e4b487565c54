"""Operations within one process: queueing, claiming, ending, reaping, retrying."""

import datetime
import importlib
from pathlib import Path

import pytest
from django.db import transaction

import tenants.handlers
from audit.models import Entry
from core import clock
from core.errors import Busy, Conflict, Exit, NotFound, meaning
from core.models import Fact, StateChange
from engine.errors import LastroError, SessionFenced, UsageError
from operations import leases, services
from operations.context import WARNINGS_MAX, OperationContext
from operations.dispatch import operation_pick
from operations.handlers import handler_get, kinds
from operations.models import Lease, Operation
from operations.running import operation_run
from operations.selectors import operation_list
from tests.apps.work import handlers  # noqa: F401 - registers the made-up kinds

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)


def _ask(kind: str = "test.quick", *, tenant: str = "aurora", here: bool = False, **params: str) -> Operation:
    return services.operation_enqueue(
        kind=kind, tenant=tenant, params=params, actor="ana", here=here, subject_id="bkp_1"
    )


def test_only_a_committed_operation_is_handed_out() -> None:
    """Goal: no task for a row that does not exist; roll a request back, then commit one."""
    with transaction.atomic():
        _ask()
        transaction.set_rollback(True)
    assert (Operation.objects.count(), operation_pick("host:1/"), Entry.objects.count()) == (0, None, 0)
    operation = _ask()
    assert operation_pick("host:1/") == operation
    assert operation_pick("host:2/") is None, "handed out once"


def test_an_unknown_kind_is_refused() -> None:
    """Goal: a typing error is not queued for ever; ask for a kind that nobody registered."""
    with pytest.raises(UsageError, match=r"unknown kind of operation 'test\.nothing'"):
        _ask("test.nothing")


def test_every_kind_is_found_where_it_is_listed() -> None:
    """Goal: a kind's module is found without importing all. Method: import each handlers module, compare with the list."""
    folder = Path(tenants.handlers.__file__).parent
    modules = sorted(each.stem for each in folder.glob("*.py") if "@register(" in each.read_text())
    for module in modules:
        importlib.import_module(f"tenants.handlers.{module}")
    home = "tenants.handlers."
    runs = {kind: handler_get(kind).run.__module__ for kind in kinds()}
    found = {kind: name.removeprefix(home) for kind, name in runs.items() if name.startswith(home)}
    assert found == tenants.handlers.MODULES


def test_a_run_ends_with_its_result_and_its_history() -> None:
    """Goal: what happened can be read; run one and read row, history, lease and audit log."""
    operation = operation_run(_ask().pk)
    assert (operation.state, operation.result, operation.error) == ("succeeded", {"how": "well", "phases_ms": {}}, None)
    assert operation.started_at is not None and operation.finished_at is not None
    steps = StateChange.objects.filter(subject_id=operation.pk).values_list("from_state", "to_state")
    assert list(steps) == [("queued", "running"), ("running", "succeeded")]
    assert Lease.objects.get().holder == ""
    assert list(Entry.objects.values_list("type", flat=True)) == ["operation.requested", "operation.succeeded"]


def test_a_task_may_come_twice() -> None:
    """Goal: a repeated task changes nothing; run the same id again."""
    first = operation_run(_ask().pk)
    again = operation_run(first.pk)
    assert (again.state, again.token, again.finished_at) == ("succeeded", first.token, first.finished_at)
    assert StateChange.objects.filter(subject_id=first.pk).count() == 2


def test_a_worker_leaves_a_here_operation_alone() -> None:
    """Goal: what runs in a command is not run by a worker too; give its id to a worker."""
    operation = _ask(here=True)
    assert operation_pick("host:1/") is None
    assert operation_run(operation.pk).state == "queued"
    assert operation_run(operation.pk, here=True).state == "succeeded"


@pytest.mark.parametrize(
    ("how", "state", "code"),
    [
        ("warn", "warned", None),
        ("fail", "failed", "store.unreachable"),
        ("burst", "failed", "internal.error"),
        ("stop", "cancelled", "operation.cancelled"),
    ],
)
def test_every_end_is_recorded(how: str, state: str, code: str | None) -> None:
    """Goal: each way to end has its state and frees the tenant; run work that ends so, then work that ends well."""
    operation = operation_run(_ask(how=how).pk)
    assert (operation.state, (operation.error or {}).get("code")) == (state, code)
    assert operation_run(_ask().pk).state == "succeeded"


def test_an_unforeseen_error_shows_no_secret(settings: object) -> None:
    """Goal: a password in a foreign exception reaches neither row nor log; raise one and read both."""
    operation = operation_run(_ask(how="burst").pk)
    assert "hunter2" not in operation.error["detail"]
    reference = operation.error["hint"].split()[-1]
    log = (settings.LASTRO_DATA / "log" / "lastro.log").read_text()  # type: ignore[attr-defined]
    assert reference in log
    assert "Traceback" in log
    assert "hunter2" not in log


def test_an_interrupted_process_says_so() -> None:
    """Goal: a second Ctrl-C still leaves a record; raise KeyboardInterrupt in the work."""
    operation = _ask(how="interrupt")
    with pytest.raises(KeyboardInterrupt):
        operation_run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "failed"
    assert "interrupted" in operation.error["detail"]
    assert Lease.objects.get().holder == ""


def test_warnings_are_bounded() -> None:
    """Goal: a million warnings make no huge row; warn more often than is kept."""
    operation = operation_run(_ask(how="many").pk)
    assert len(operation.warnings) == WARNINGS_MAX + 1
    assert operation.warnings[-1]["message"] == "and 500 more"


def _running(tenant: str = "aurora") -> Operation:
    """An operation as a worker that has just died leaves it."""
    operation = _ask(tenant=tenant)
    now = clock.catalogue_now()
    with transaction.atomic():
        token = leases.lease_take(operation.resource, holder=operation.pk)
    Operation.objects.filter(pk=operation.pk).update(state="running", heartbeat_at=now, started_at=now, token=token)
    operation.refresh_from_db()
    return operation


def test_a_worker_puts_off_what_must_wait() -> None:
    """Goal: a busy tenant keeps its operations in the queue; claim a second one, end the first, see it handed out."""
    first, second = _running(), _ask()
    assert operation_run(second.pk).state == "queued"
    assert operation_pick("host:1/") is None
    services.operation_cancel(first.pk, actor="ana")
    with clock.held(clock.now() + leases.lease_duration() + SECOND):
        assert services.operations_reap() == [first.pk]
    assert operation_pick("host:1/") == second, "handed out as its tenant became free"
    assert operation_run(second.pk).state == "succeeded"


def test_here_refuses_when_busy() -> None:
    """Goal: a command does not wait in silence; claim with `here` while another operation holds the tenant."""
    first, second = _running(), _ask(here=True)
    with pytest.raises(Busy, match=first.pk) as caught:
        operation_run(second.pk, here=True)
    assert caught.value.operation == first.pk
    second.refresh_from_db()
    assert (second.state, second.error["code"]) == ("failed", "operation.busy")
    assert Fact.objects.filter(pk=f"dropped:{second.pk}").exists(), "those who wait for it were told"


def test_silence_for_two_heartbeats_is_death() -> None:
    """Goal: exactly the silent are reaped, once; hold the clock before and behind the limit."""
    with clock.held(NOON) as advance:
        operation, other = _running(), _running("boreal")
        advance(leases.lease_duration())
        Operation.objects.filter(pk=other.pk).update(heartbeat_at=clock.now())
        assert services.operations_reap() == []
        advance(SECOND)
        assert services.operations_reap() == [operation.pk]
        assert services.operations_reap() == []
    operation.refresh_from_db()
    assert (operation.state, operation.error["code"], operation.error["retryable"]) == ("lost", "operation.lost", True)
    assert Lease.objects.get(pk="tenant:aurora").holder == ""
    assert Fact.objects.filter(name__startswith="lost:").count() == 1


def test_a_command_that_died_before_its_run_is_reaped() -> None:
    """Goal: nothing stays queued for a process that is gone; ask with `here` and never run it."""
    with clock.held(NOON) as advance:
        operation = _ask(here=True)
        advance(leases.lease_duration() + SECOND)
        assert services.operations_reap() == [operation.pk]
    assert Fact.objects.filter(pk=f"dropped:{operation.pk}").exists()


def test_a_lost_lease_stops_the_work() -> None:
    """Goal: a fenced worker records nothing; let the lease pass to another, then ask as the first one's context."""
    context = OperationContext(_running())
    context.check()
    with transaction.atomic():
        context.fence()
    with clock.held(clock.now() + leases.lease_duration() + SECOND), transaction.atomic():
        token = leases.lease_take("tenant:aurora", holder="opr_other")
    assert token == context.token + 1
    with pytest.raises(SessionFenced), transaction.atomic():
        context.fence()
    assert not leases.lease_renew("tenant:aurora", holder=context.operation.pk, token=context.token)


def test_tokens_only_grow() -> None:
    """Goal: a fencing token is never given twice; take and release many times, by different holders."""
    tokens = []
    for number in range(20):
        with transaction.atomic():
            tokens.append(leases.lease_take("tenant:aurora", holder=f"opr_{number}"))
        leases.lease_release("tenant:aurora", holder=f"opr_{number}")
        leases.lease_release("tenant:aurora", holder="opr_stranger")
    assert tokens == list(range(1, 21))


def test_a_stranger_cannot_release() -> None:
    """Goal: only the holder frees a lease; release it in another name."""
    operation = _running()
    leases.lease_release(operation.resource, holder="opr_stranger")
    assert Lease.objects.get().holder == operation.pk


def test_a_queued_operation_is_dropped() -> None:
    """Goal: what has not begun ends at once; cancel it, twice, and hand its task to a worker."""
    operation = services.operation_cancel(_ask().pk, actor="ana", reason="enough")
    assert operation.state == "cancelled"
    assert Fact.objects.filter(pk=f"dropped:{operation.pk}").exists()
    with pytest.raises(Conflict):
        services.operation_cancel(operation.pk, actor="ana")
    assert operation_run(operation.pk).state == "cancelled"


def test_what_cannot_be_stopped_says_so() -> None:
    """Goal: no false promise; cancel work that was declared unstoppable while it runs."""
    operation = _ask("test.stubborn")
    Operation.objects.filter(pk=operation.pk).update(state="running", heartbeat_at=clock.catalogue_now())
    with pytest.raises(Conflict, match="cannot be stopped"):
        services.operation_cancel(operation.pk, actor="ana")


def test_a_retry_is_a_new_operation() -> None:
    """Goal: history is kept; retry a failed one, and try to retry one that succeeded."""
    failed = operation_run(_ask(how="fail").pk)
    again = services.operation_retry(failed.pk, actor="ben")
    assert (again.state, again.attempt, again.retry_of, again.params) == ("queued", 2, failed.pk, {"how": "fail"})
    assert again.subject_id == "bkp_1+", "the kind may give the new one a subject of its own"
    failed.refresh_from_db()
    assert failed.state == "failed"
    with pytest.raises(Conflict):
        services.operation_retry(operation_run(_ask().pk).pk, actor="ben")


def test_an_unknown_operation_is_not_found() -> None:
    """Goal: a wrong id is said to be one; use it everywhere."""
    for use in (
        lambda: operation_run("opr_none"),
        lambda: services.operation_cancel("opr_none", actor="ana"),
        lambda: services.operation_retry("opr_none", actor="ana"),
    ):
        with pytest.raises(NotFound):
            use()


def test_lists_page_without_gaps() -> None:
    """Goal: all operations once, newest first, while new ones arrive; read pages of two."""
    made = [_ask().pk for _ in range(5)]
    first = operation_list(limit=2)
    _ask()
    rest = operation_list(before=first[-1].pk, limit=10)
    assert [row.pk for row in (*first, *rest)] == made[::-1]
    for wrong in ({"tenant": "boreal"}, {"kind": "nothing"}, {"tenant": "aurora", "before": "opr_0"}):
        with pytest.raises(LastroError) as refused:
            operation_list(**wrong)
        assert meaning(refused.value).exit == Exit.NOT_FOUND
    assert operation_list(states=("queued",), kind="test.quick", limit=1)[0].tenant == "aurora"
