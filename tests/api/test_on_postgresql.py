"""What attackers try, on a PostgreSQL catalogue: other locks, other ideas of what a text may hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = ("test_attacks.py", "test_at_once.py")
SECONDS_MAX = 300


def test_attacks_fail_on_postgresql_too(postgres_database: str) -> None:
    """Goal: nothing of it depends on SQLite; run those tests again with their catalogue in a real server."""
    environment = {**os.environ, "LASTRO_TEST_DATABASE_URL": postgres_database}
    for inherited in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(inherited, None)
    paths = [str(HERE / name) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *paths],
        cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stdout[-8_000:] + done.stderr[-2_000:])
