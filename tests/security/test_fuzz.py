"""The long form of tests/server/api/test_schema_fuzz.py: every check of schemathesis, thousands of cases, keys asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tests.support.api import serving
from tests.support.keys import ADMIN_KEY, bearer
from tests.support.people import Lab, furnished

pytestmark = pytest.mark.security

# Of each operation; there are some thirty.
EXAMPLES = {GenerationMode.POSITIVE: 100, GenerationMode.NEGATIVE: 150}
OURS = 1  # the key with which everything is sent
# What a sweep may be depends on the lab: a definition that the document allows may name a class or model that is not there.
UNDECIDABLE = ("positive_data_acceptance",)


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    """One of this test's own: what is sent here changes it."""
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY, rate_per_key=0, rate_per_address=0) as api:
        yield furnished(api)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.timeout(1800)
def test_whatever_is_sent_every_check_holds(lab: Lab, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{lab.api.http.base_url}/openapi.json")
    document.config.generation.with_security_parameters = False  # made-up keys would be all that is tried
    refused = document.config.checks.negative_data_rejection
    refused.expected_statuses = [*refused.expected_statuses, "413"]  # what is wrong may also be too large
    names = [name for name in CHECKS.get_all_names() if name not in UNDECIDABLE]
    checks = CHECKS.get_by_names(names)
    cases = 0
    failures: list[Exception] = []
    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
            continue  # nothing to get wrong

        @settings(
            max_examples=EXAMPLES[mode], deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            nonlocal cases
            cases += 1
            if case.path == "/v1/events":
                # A stream that follows never ends, which is its purpose.
                case.query = {**(case.query or {}), "follow": "false"}
            if case.path == "/v1/keys/{key_id}" and (case.path_parameters or {}).get("key_id") == OURS:
                case.path_parameters["key_id"] = OURS + 1  # or nothing would be answered but 401 from here on
            case.call_and_validate(checks=checks, headers=bearer(lab.keys["admin"]), timeout=20)

        try:
            send()
        except Exception as error:  # noqa: BLE001  of all operations, so that one run tells everything
            failures.append(error)
    if failures:
        raise ExceptionGroup("what the document does not describe", failures)
    assert cases >= 1000
