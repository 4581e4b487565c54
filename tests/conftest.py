"""What every test may use: seeds that repeat a failure, counts that a soak raises, and real servers."""

import os
import random
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pytest_django.plugin import DjangoDbBlocker

from tests.services.absent import absent
from tests.services.kinds import KINDS, StoreValues
from tests.services.moto import Moto, moto
from tests.services.postgres import PostgresServer, servers_for_session
from tests.services.seaweed import Seaweed, seaweed

SEED_VARIABLE = "LASTRO_TEST_SEED"
SCALE_VARIABLE = "LASTRO_TEST_SCALE"

settings.register_profile(
    "lastro", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("lastro")


def pytest_configure(config: pytest.Config) -> None:
    """Draw one seed for the whole run; xdist's workers inherit it through the environment."""
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(10**9)))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"seed: {os.environ[SEED_VARIABLE]} (repeat with {SEED_VARIABLE}), scale: {scale()}"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the seed with a failure; under CI a test of a service that did not run is a failure."""
    report = yield
    served = "postgres" in item.keywords and "LASTRO_TEST_POSTGRES_DSN" not in os.environ
    if report.skipped and served and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under CI: {report.longrepr}"
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"{SEED_VARIABLE}={os.environ[SEED_VARIABLE]}"))
    return report


def scale() -> int:
    """How many times as long a soak runs."""
    return max(1, int(os.environ.get(SCALE_VARIABLE, "1")))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number of this test's own, the same whenever the run's seed and the test's name are the same."""
    return zlib.crc32(f"{os.environ[SEED_VARIABLE]}:{request.node.nodeid}".encode())


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def rounds() -> "Rounds":
    """`rounds(100)`: 100 in `make test`, as many times more as LASTRO_TEST_SCALE says in a soak."""
    return Rounds()


class Rounds:
    def __call__(self, base: int) -> range:
        return range(base * scale())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `postgres_each` runs once for every major version that Lastro works with."""
    if "postgres_each" in metafunc.fixturenames:
        majors = servers_for_session().majors
        metafunc.parametrize("postgres_each", majors, indirect=True, ids=[f"pg{major}" for major in majors])


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    """A throw-away PostgreSQL of the oldest major with its clients, one per worker; started when first asked for."""
    return servers_for_session().get()


@pytest.fixture
def postgres_each(request: pytest.FixtureRequest) -> PostgresServer:
    return servers_for_session().get(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a server carries its mark, so that `-m "not postgres"` leaves it out."""
    for item in items:
        if {"postgres", "postgres_each", "postgres_database"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.postgres)


@pytest.fixture
def postgres_database(postgres: PostgresServer) -> Iterator[str]:
    """The DSN of an empty database, dropped afterwards."""
    name = postgres.create_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


@pytest.fixture
def store_values(tmp_path: Path) -> StoreValues:
    """`store_values("s3")`: the settings (`store add --kind s3 --set …`) of a new empty place, its real server started."""
    return lambda kind: KINDS[kind](tmp_path)


@pytest.fixture(scope="session")
def s3_server() -> Seaweed:
    """A SeaweedFS that all processes of the run share: `values()`, `values(LOCKED, lock_mode=…)`, `bucket(…)`, `deny(…)`."""
    server = seaweed()
    if server is None:
        absent("SeaweedFS", remedy="install the project's test extra")
    return server


@pytest.fixture
def s3_store_values(s3_server: Seaweed) -> dict[str, str]:
    """The settings of an s3 store in a new empty place."""
    return s3_server.values()


@pytest.fixture(scope="session")
def moto_server() -> Moto:
    """S3 and KMS of moto, shared like the SeaweedFS; it accepts any secret."""
    return moto()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Make the test catalogue without triggers on its rows: a test that commits empties all tables."""
    from django.db import connection

    from audit import triggers
    from tenants.figures import counting
    from tenants.figures import triggers as figures

    with django_db_blocker.unblock():
        counting.KEPT = False
        triggers.drop(connection)
        figures.drop(connection)


def pytest_sessionfinish() -> None:
    """Stop the servers while the process is still whole; exit handlers may not run in a worker."""
    servers_for_session().discard()
