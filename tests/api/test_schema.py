"""The document says what is, and what is keeps to it."""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from api.resources.anything import schema
from config.wsgi import application
from tests.api import openapi
from tests.api.conftest import Desk
from tests.conftest import scale

CASES = max(200, 2 * int(os.environ.get("LASTRO_TEST_HISTORIES", "100"))) if scale() == 1 else 20_000
QUIET = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
]


def test_the_committed_document_is_the_present_one() -> None:
    """Goal: no address changes unseen; compare (`python -m tests.api.openapi` writes it anew)."""
    assert openapi.COMMITTED.read_text(encoding="utf-8") == openapi.text(schema())


@pytest.mark.seeded
def test_no_answer_is_outside_the_document(desk: Desk) -> None:
    """Goal: no 5xx and no answer of another shape, whatever is asked; 2,000 cases of every sort, good and bad."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    restore = desk.house.restore(backup)
    known = {"slug": tenant.slug, "backup_id": backup.pk, "restore_id": restore.pk, "name": "default"}
    headers = desk.asker("admin").headers
    document = schemathesis.openapi.from_dict(schema())
    document.app = application
    operations = [each.ok() for each in document.get_all_operations()]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    most = -(-CASES // (len(operations) * len(modes)))
    asked = sum(ask_often(operation, mode, most, known, headers) for operation in operations for mode in modes)
    assert asked >= CASES // 2


def ask_often(operation: Any, mode: GenerationMode, most: int, known: dict[str, str], headers: dict[str, str]) -> int:
    """Ask one operation up to so many times; half of the time for things that are there. How often it was asked."""
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    @settings(max_examples=most, deadline=None, suppress_health_check=QUIET, phases=[Phase.generate], database=None)
    def ask(case: Any, real: bool) -> None:
        nonlocal asked
        if real and case.path_parameters:
            case.path_parameters = {key: known.get(key, value) for key, value in case.path_parameters.items()}
        kept = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        case.headers = {**kept, **headers}
        response = case.call()
        asked += 1
        assert response.status_code < 500, (case.as_curl_command(), response.content)
        case.operation.validate_response(response)

    ask()
    return asked
