"""What the OpenAPI document says beside the routes themselves: problems, raw bodies, examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from effillm_server.api import examples
from effillm_server.contract.parse import JSON_TYPES, YAML_TYPES
from effillm_server.api.problems import MEDIA_TYPE, NAMES, Problem
from effillm_server.contract.sweep import SweepDefinition

# What the doors in front of the routes and a database that is away can answer to any request.
EVERYWHERE = (401, 403, 408, 413, 415, 421, 422, 500, 503)
WORDS = {
    401: "the caller is not known",
    403: "a page of another site asked for a change",
    404: "nothing has this id",
    408: "the body did not arrive in time",
    409: "the request contradicts what is stored",
    413: "the body is too large",
    415: "the body's type or encoding is not accepted",
    421: "the Host header names another server",
    422: "the input cannot be accepted; field, value and what is allowed are named",
    500: "the server failed; its log has the reason under the request id",
    503: "something this server needs does not answer now",
}

DEFINITION_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{
                media: {
                    "schema": {"$ref": "#/components/schemas/SweepDefinition"},
                    "example": examples.DEFINITION,
                }
                for media in JSON_TYPES
            },
            YAML_TYPES[0]: {
                "schema": {"$ref": "#/components/schemas/SweepDefinition"},
                "example": examples.DEFINITION_YAML,
            },
        },
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of a route: those of every route and `statuses`."""
    return {status: _problem(status) for status in sorted({*EVERYWHERE, *statuses})}


def raw(media_type: str, example: Any, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """An answer that is not JSON from a view."""
    content = {media_type: {"schema": schema or {"type": "string"}, "example": example}}
    return {"description": description, "content": content}


def install(app: FastAPI) -> None:
    """Serve an OpenAPI document that has the definition's schema and no trace of FastAPI's own error models."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(original())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(SweepDefinition, "validation"), (Problem, "serialization")], ref_template="#/components/schemas/{model}"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _problem(status: int) -> dict[str, Any]:
    example = {
        "type": f"urn:effillm:{NAMES[status]}",
        "title": NAMES[status].replace("-", " ").capitalize(),
        "status": status,
        "detail": WORDS[status],
        "request_id": "5f0c1d2e3a4b5c6d",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": WORDS[status], "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}


