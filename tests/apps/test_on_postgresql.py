"""The same tests on a PostgreSQL catalogue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "test_core.py", "test_operations.py", "test_dispatch.py", "test_audit.py", "test_audit_proofs.py", "test_access.py", "../tenants/test_figures.py",
)  # fmt: skip
SECONDS_MAX = 300


def test_the_catalogue_may_be_postgresql(postgres_database: str) -> None:
    """Goal: nothing depends on SQLite; run this folder's tests again with their catalogue in a real server."""
    environment = {**os.environ, "LASTRO_TEST_DATABASE_URL": postgres_database}
    for inherited in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(inherited, None)
    paths = [str((Path(__file__).parent / name).resolve()) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *paths],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stdout[-8_000:] + done.stderr[-2_000:])
