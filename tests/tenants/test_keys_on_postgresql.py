"""Shredding and rotation again on a PostgreSQL catalogue, whose types and storage are other ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
CASES = (
    "test_shredding.py::test_nothing_of_the_tenant_opens_and_nobody_beside_it_notices",
    "test_key_rotation.py::test_after_a_rotation_nothing_opens_with_the_old_root_key",
)
SECONDS_MAX = 300


def test_the_catalogue_of_the_keys_may_be_postgresql(postgres_database: str) -> None:
    """Goal: no key is left in a server's tables; run what proves it with the catalogue in a real server."""
    environment = {**os.environ, "LASTRO_TEST_DATABASE_URL": postgres_database}
    for inherited in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(inherited, None)
    cases = [f"{FOLDER}/{case}" for case in CASES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *cases],
        cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stdout[-8_000:] + done.stderr[-2_000:])
