"""Problem documents (RFC 9457): every error answer of the API, with a request id and never a stack or SQL."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import psycopg2.errors
import sqlalchemy
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from effillm_server.errors import BadInput, Conflict, EffillmError, NotFound, Unavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
LONGEST_VALUE = 100
log = logging.getLogger("effillm.api")

# Names of our own: the standard library's phrases change between Python versions.
NAMES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "request-timeout",
    409: "conflict",
    413: "content-too-large",
    415: "unsupported-media-type",
    421: "misdirected-request",
    422: "bad-input",
    429: "too-many-requests",
    500: "internal-error",
    503: "unavailable",
}
STATUS_OF: dict[type[EffillmError], int] = {BadInput: 422, NotFound: 404, Conflict: 409, Unavailable: 503}


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str = Field(description="stable name of the kind of problem", examples=["urn:effillm:not-found"])
    title: str = Field(description="the status in words", examples=["Not Found"])
    status: int = Field(description="the HTTP status", examples=[404])
    detail: str = Field(
        description="what was expected, what was found, what to do", examples=["no sweep has the id 's3kq7w2m'"]
    )
    request_id: str = Field(description="names this request in the server's log", examples=["5f0c1d2e3a4b5c6d"])
    field: str | None = Field(None, description="the first field that cannot be accepted", examples=["hardware"])


def respond(
    request_id: str,
    status: int,
    detail: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The problem document as an answer."""
    name = NAMES.get(status, "error")
    problem = Problem(
        type=f"urn:effillm:{name}",
        title=name.replace("-", " ").capitalize(),
        status=status,
        detail=detail,
        request_id=request_id,
        field=field,
    )
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of the routes end in a problem document."""
    app.add_exception_handler(EffillmError, _on_own)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(sqlalchemy.exc.OperationalError, _on_database)
    app.add_exception_handler(sqlalchemy.exc.InterfaceError, _on_database)
    app.add_exception_handler(sqlalchemy.exc.TimeoutError, _on_database)


def request_id(request: Request) -> str:
    """The id that the outermost middleware gave this request."""
    return str(getattr(request.state, "request_id", "none"))


def _on_own(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), 500)
    field = error.field if isinstance(error, BadInput) else None
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return respond(request_id(request), status, str(error), field=field, headers=headers)


def _on_validation(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    found = [(_place(problem["loc"]), problem) for problem in error.errors()]
    lines = [f"{place}: {problem['msg']}, found {_shown(problem.get('input'))}" for place, problem in found]
    return _on_own(request, BadInput("; ".join(lines), field=found[0][0]))


def _on_http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.BAD_REQUEST:
        # FastAPI's answer to a body that is not even text; one that is no JSON is a validation error already.
        return _on_own(
            request,
            BadInput(
                "the body is not JSON: it has bytes that are no UTF-8, or is nested too deeply; send JSON text",
                field="body",
            ),
        )
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"nothing is served at {request.url.path}; GET /openapi.json lists every route"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not served at {request.url.path}; the Allow header lists what is"
    return respond(request_id(request), error.status_code, detail, headers=error.headers)


def _on_database(request: Request, error: Exception) -> JSONResponse:
    log.error("database_unavailable", extra={"request_id": request_id(request), "error": type(error).__name__})
    log.debug("database_error", exc_info=error)
    said = "the database does not answer now; try again"
    if isinstance(getattr(error, "orig", None), psycopg2.errors.DiskFull):
        said = "there is no room left on the disk of the database; make some and try again"
    return _on_own(request, Unavailable(f"{said}: under the same Idempotency-Key nothing is stored twice"))


def _place(location: Sequence[str | int]) -> str:
    """`limit` for ("query", "limit"): which part of the request it stood in is clear from the name."""
    return ".".join(str(part) for part in location[1:]) or str(location[0])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
