"""The OpenAPI document: every route has examples, and every one of them works on a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from effillm_server import credentials, expand
from effillm_server.api import access_examples, examples
from effillm_server.catalog import load
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.ledger import keys, queue
from effillm_server.ledger.queue import NewSweep
from tests.support.api import Api, add_device, finish, lease, measured, serving

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def lab(database_url: str) -> Iterator[Api]:
    """The lab that the examples speak of: their sweep, one job measured and one of its other batch size, their device, and two keys."""
    definition = SweepDefinition.model_validate(examples.DEFINITION)
    catalog = load()
    planned = expand.expand(definition, catalog.models, catalog.hardware)
    with serving(database_url) as api:
        with api.engine.begin() as c:
            queue.enqueue(c, NewSweep(examples.SWEEP_ID, definition), planned)
            for text in (credentials.new_key(), access_examples.API_KEY):
                keys.create_key(c, "ada", ("submit",), credentials.digest(text), credentials.prefix(text))
        add_device(api.engine)
        for job_id in (examples.JOB_ID, examples.JOB_ID + 1):
            held = lease(api.engine)
            assert held.job_id == job_id
            finish(api.engine, held, measured(held))
        yield api


def document(api: Api) -> dict[str, Any]:
    return dict(api.http.get("/openapi.json").json())


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in described["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what it refers to at hand for jsonschema."""
    return {"components": described["components"], "allOf": [schema]}


def example_of(described: dict[str, Any], holder: dict[str, Any]) -> Any:
    """The example beside a schema, or inside it, or that of the items of its page."""
    if "example" in holder:
        return holder["example"]
    schema = holder["schema"]
    while "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "examples" in schema:
        return schema["examples"][0]
    if "items" in schema.get("properties", {}):
        return {"items": [example_of(described, {"schema": schema["properties"]["items"]["items"]})], "next": None}
    raise AssertionError(f"no example in {holder}")


def successes(operation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (media, holder)
        for status, answer in operation["responses"].items()
        if status.startswith("2")
        for media, holder in answer["content"].items()
    ]


def test_every_route_has_examples_that_agree_with_its_schemas(api: Api) -> None:
    described = document(api)
    for method, path, operation in operations(described):
        assert operation["summary"], (method, path)
        holders = successes(operation) + list(operation.get("requestBody", {}).get("content", {}).items())
        assert holders, (method, path)
        for media, holder in holders:
            example = example_of(described, holder)
            if "json" in media:
                jsonschema.validate(example, resolved(described, holder["schema"]))
        for parameter in operation.get("parameters", []):
            if parameter["required"]:
                assert parameter["schema"]["examples"] or parameter["example"], (method, path)


def test_every_route_describes_its_problems(api: Api) -> None:
    for method, path, operation in operations(document(api)):
        for status in ("422", "500", "503"):
            content = operation["responses"][status]["content"]
            assert list(content) == ["application/problem+json"], (method, path, status)


def sent(api: Api, method: str, path: str, operation: dict[str, Any], body: tuple[str, Any] | None) -> httpx.Response:
    parameters = operation.get("parameters", [])
    values = {p["name"]: p["schema"]["examples"][0] for p in parameters if p["in"] == "path"}
    query = {p["name"]: p["schema"]["examples"][0] for p in parameters if p["in"] == "query" and p["required"]}
    query |= {"follow": "false"} if path == "/v1/events" else {}
    headers: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    if body is not None:
        media, example = body
        arguments = {"json": example} if media == "application/json" else {"content": example.encode()}
        headers["Content-Type"] = media
    api.http.cookies.clear()  # whoever is signed in by one example asks the next without its token
    address = re.sub(r"{(\w+)}", lambda match: str(values[match[1]]), path)
    return api.http.request(method, address, params=query, headers=headers, **arguments)


def test_every_example_works_and_is_answered_as_described(lab: Api) -> None:
    described = document(lab)
    requests = 0
    # Reading first: what the examples change is looked at before it is cancelled.
    for method, path, operation in sorted(operations(described), key=lambda o: (o[0] != "get", "cancel" in o[1], o[1])):
        bodies = list(operation.get("requestBody", {}).get("content", {}).items())
        for media, holder in bodies or [(None, {})]:
            answer = sent(lab, method, path, operation, (media, example_of(described, holder)) if media else None)
            assert answer.is_success, (method, path, answer.text)
            found = answer.headers["content-type"].partition(";")[0]
            content = operation["responses"][str(answer.status_code)]["content"]
            schema = next(holder["schema"] for media, holder in content.items() if media.partition(";")[0] == found)
            if found == "application/json":
                jsonschema.validate(answer.json(), resolved(described, schema))
            requests += 1
    assert requests >= 20


def test_the_definition_in_yaml_is_the_one_in_json(api: Api) -> None:
    from effillm_server.contract.parse import parse_definition

    assert parse_definition(examples.DEFINITION_YAML) == SweepDefinition.model_validate(examples.DEFINITION)
