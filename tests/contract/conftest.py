"""Where the contract suite finds a place for every kind of store: the table in tests/services/kinds.py.

A kind that the registry knows and the table does not is a failing test, not a silent gap.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest

from engine.ports import Store
from stores import load_all
from stores._faulty import FaultyStore
from stores._retry import RetryStore
from tests.services.kinds import StoreValues, store_made

Place = Callable[[], Store]
"""Opens one more store on the same place, as another process would."""


WRAPPERS: dict[str, Callable[[Store], Store]] = {
    "": lambda store: store,
    "retry-": RetryStore,
    "faulty-": FaultyStore,
}


def kinds() -> list[str]:
    """Every kind of store that the registry knows."""
    return [adapter.kind for adapter in load_all()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        # Wrappers must keep the contract too; over one kind is enough.
        names = kinds() + [f"{prefix}local" for prefix in WRAPPERS if prefix]
        metafunc.parametrize("place", names, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, store_values: StoreValues) -> Iterator[Place]:
    """Open a store there as often as wanted; all are closed at the end."""
    wrapper, _, kind = request.param.rpartition("-")
    wrap = WRAPPERS[f"{wrapper}-" if wrapper else ""]
    opened: list[Store] = []
    values = store_values(kind)

    def open_one() -> Store:
        opened.append(wrap(store_made(kind, values)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(place: Place) -> Store:
    return place()


@pytest.fixture
def fresh_keys() -> Iterator[str]:
    """Keys that no test has used."""
    return (f"data/{number:04x}" for number in itertools.count())
