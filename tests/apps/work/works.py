"""Made-up work that schedules may ask for: for as many tenants as the fact `clock.tenants` says, in stores s0 to s3."""

import os

from core.models import Fact
from operations.models import Schedule
from operations.scheduling.works import Begun, Order, Target, Work, work_register
from operations.services import operation_enqueue

LANES = 4


def _targets(schedule: Schedule) -> list[Target]:
    count = int(Fact.objects.filter(pk="clock.tenants").values_list("value", flat=True).first() or 0)
    named = schedule.selection.get("tenants")
    if named == ["broken"]:
        raise ValueError("the list of tenants cannot be read")
    slugs = named or [f"t{number:05}" for number in range(count)]
    return [Target(slug, f"s{int(slug[1:]) % LANES}") for slug in slugs]


def _begin(order: Order) -> Begun:
    if order.params.get("how") == "burst":
        raise ValueError("postgresql://me:hunter2@db/x is odd")
    if order.params.get("how") == "nothing":
        return Begun(note="nothing to do")
    if order.params.get("how") == "failover":
        _fail_over()
    held = {"folder": order.params["folder"]} if "folder" in order.params else {}
    operation = operation_enqueue(
        kind="test.work" if held else "test.quick",
        tenant=order.tenant,
        params={"full": order.full, "how": order.params.get("how", "well"), **held},
        actor=order.actor,
        reason=order.reason,
    )
    return Begun(operation.pk)


def _fail_over() -> None:
    """End every connection to the catalogue, that of whoever asks too, as a server does that goes down."""
    import psycopg

    with psycopg.connect(os.environ["LASTRO_DATABASE_URL"], autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


work_register(Work("test.clock", "made up", _begin, _targets, dict, selects=frozenset({"tenants"}), fulls=True))
