"""A short run of schemathesis over the whole document: no failure of the server, no answer it does not describe."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.api import Api, add_device, finish, lease, measured

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 20}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_sent_the_answer_is_one_that_the_document_describes(api: Api, mode: GenerationMode) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    document = schemathesis.openapi.from_url(f"{api.http.base_url}/openapi.json")
    document.config.generation.with_security_parameters = False  # made-up keys would be all that is tried
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 18
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
            continue  # nothing to get wrong

        @settings(
            max_examples=EXAMPLES[mode], deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            if case.path == "/v1/events":
                # A stream that follows never ends, which is its purpose.
                case.query = {**(case.query or {}), "follow": "false"}
            case.call_and_validate(checks=CHECKS, timeout=120)

        send()
