"""What is done for all tenants costs a fixed number of queries for each, what is listed the same for any number."""

import shutil
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tenants.models import Copy
from tenants.selectors import tenant_get
from tenants.services.adopting import store_adopt
from tenants.services.copies import copy_add, copy_run_start
from tenants.services.keys import keys_settle
from tenants.services.stores import store_add, store_get
from tests.tenants.conftest import ACTOR, House
from tests.tenants.test_promoting import Run, run  # noqa: F401 - a fixture

LISTS = (
    ("tenant", "list"),
    ("copy", "status"),
    ("copy", "status", "--short"),
    ("copy", "list", "t0"),
    ("store", "list"),
    ("store", "show", "second"),
    ("doctor", "run"),
    ("key", "list"),
    ("backup", "list", "t0"),
)
COPY_QUERIES_MAX = 90
ADOPT_QUERIES_MAX = 150


def _counted(work: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as caught:
        work()
    return len(caught)


def _grow(house: House, first: int, last: int) -> None:
    for number in range(first, last):
        tenant = house.tenant(f"t{number}")
        house.files(tenant)
        house.backup(tenant)
        copy_add(tenant, store_get("second"), actor=ACTOR, afterwards=False)
        keys_settle(tenant)


@pytest.fixture
def grown(house: House) -> House:
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    _grow(house, 0, 2)
    return house


def test_lists_cost_the_same_for_any_number_of_tenants(grown: House, run: Run) -> None:  # noqa: F811
    """Goal: no query per row anywhere that an operator looks; count at two tenants and at six."""

    def costs() -> dict[str, int]:
        for verb in LISTS:
            run(*verb)  # What is made on first use is made.
        return {" ".join(verb): _counted(lambda verb=verb: run(*verb)) for verb in LISTS}  # type: ignore[misc]

    few = costs()
    _grow(grown, 2, 6)
    many = costs()
    assert many == few, {name: (few[name], many[name]) for name in few if few[name] != many[name]}


def test_work_on_all_tenants_is_linear(grown: House) -> None:
    """Goal: ten thousand tenants cost ten thousand times one; count the queries of a copy's run, and of taking up all tenants
    whose primary is gone, at two tenants and at six."""
    _grow(grown, 2, 6)

    def copied(slug: str) -> int:
        copy = Copy.objects.get(tenant__slug=slug, store__name="second")
        operation = copy_run_start(copy, actor=ACTOR, here=True)
        return _counted(lambda: grown.run(operation))

    costs = [copied(f"t{number}") for number in range(6)]
    assert max(costs[1:]) - min(costs[1:]) <= 2 and max(costs) <= COPY_QUERIES_MAX, costs
    shutil.move(grown.data / "store", grown.data / "away")
    moved = _counted(lambda: store_adopt("second", kind="", values={}, actor=ACTOR))
    assert moved <= 6 * ADOPT_QUERIES_MAX, f"{moved} queries for six tenants"
    assert {tenant_get(f"t{number}").store.name for number in range(6)} == {"second"}
    assert grown.backup(tenant_get("t3")).state == "succeeded"
