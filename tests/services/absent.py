"""What a test does whose server is not there: it is skipped, and under CI it fails."""

import os
from typing import NoReturn

import pytest


def absent(program: str, *, remedy: str = "run `make services`") -> NoReturn:
    """End the test: skipped on a developer's machine, failed under CI=true."""
    message = f"no {program}: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
