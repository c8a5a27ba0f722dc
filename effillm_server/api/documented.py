"""What the OpenAPI document says beside the routes themselves: problems, raw bodies, examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from effillm_server.api import access_views, examples, insight_views, views
from effillm_server.api.auth import COOKIE, CSRF_HEADER
from effillm_server.api.problems import MEDIA_TYPE, NAMES, Problem
from effillm_server.contract.parse import JSON_TYPES, YAML_TYPES
from effillm_server.contract.schema import schemas

# What the doors in front of the routes and a database that is away can answer to any request.
EVERYWHERE = (401, 403, 408, 413, 415, 421, 422, 429, 500, 503)
WORDS = {
    401: "the caller is not known",
    403: "the caller may not do this, or a page of another site asked for it",
    404: "nothing has this id",
    408: "the body did not arrive in time",
    409: "the request contradicts what is stored",
    413: "the body is too large",
    415: "the body's type or encoding is not accepted",
    421: "the Host header names another server",
    422: "the input cannot be accepted; field, value and what is allowed are named",
    429: "too many requests; Retry-After says when to go on",
    500: "the server failed; its log has the reason under the request id",
    503: "something this server needs does not answer now",
}

# How one shows who one is. A server on loopback may ask for neither.
SCHEMES: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "an API key, eff_…"},
    "session": {
        "type": "apiKey", "in": "cookie", "name": COOKIE,
        "description": f"a signed-in browser; changes carry the header {CSRF_HEADER} too",
    },
}  # fmt: skip
NEEDS_NOTHING = {("/healthz", "get"), ("/readyz", "get"), ("/v1/session", "post")}

DEFINITION_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{
                media: {
                    "schema": {"$ref": "#/components/schemas/Submission"},
                    "example": examples.DEFINITION,
                }
                for media in JSON_TYPES
            },
            YAML_TYPES[0]: {
                "schema": {"$ref": "#/components/schemas/Submission"},
                "example": examples.DEFINITION_YAML,
            },
        },
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of a route: those of every route and `statuses`."""
    return {status: _problem(status) for status in sorted({*EVERYWHERE, *statuses})}


def with_header(name: str, description: str) -> dict[str, Any]:
    """An answer's description of a header of its own, to be merged into the route's."""
    return {"headers": {name: {"description": description, "schema": {"type": "string"}}}}


LINKED: dict[int | str, dict[str, Any]] = {200: with_header("Link", 'address of the next page, rel="next"')}


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
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components["Problem"] = Problem.model_json_schema(mode="serialization")
    submission = _renamed(schemas()["sweep-definition"])
    components |= {f"Submission{name}": schema for name, schema in submission.pop("$defs").items()}
    components["Submission"] = {key: value for key, value in submission.items() if not key.startswith("$")}
    # FastAPI drops null from everything it writes, from examples too.
    for view in (*vars(views).values(), *vars(insight_views).values(), *vars(access_views).values()):
        if isinstance(view, type) and issubclass(view, BaseModel) and view.__name__ in components:
            extra = view.model_config.get("json_schema_extra")
            components[view.__name__] |= extra if isinstance(extra, dict) else {}
    document["components"]["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for path, method in NEEDS_NOTHING:
        document["paths"][path][method]["security"] = []
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    return document


def _renamed(schema: Any) -> Any:
    """`schema` with its references pointing to where they stand in this document.

    What is submitted has short forms that what is answered has not, so the two have schemas of their own.
    """
    if isinstance(schema, list):
        return [_renamed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.replace("#/$defs/", "#/components/schemas/Submission") if key == "$ref" else _renamed(value)
        for key, value in schema.items()
    }


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
