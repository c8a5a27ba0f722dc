"""The sweep definition in a request's body, by its content type."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from effillm_server.contract.parse import JSON_TYPES, YAML_TYPES, parse_definition
from effillm_server.contract.sweep import SweepDefinition


async def raw_body(request: Request) -> bytes:
    """The body as it came; its size is limited before any route runs."""
    return await request.body()


def submitted(request: Request, body: Annotated[bytes, Depends(raw_body)]) -> SweepDefinition:
    """The definition in the body. Raises BadInput that names what cannot be accepted, 415 for other content types."""
    content_type = request.headers.get("content-type")
    media_type = (content_type or YAML_TYPES[0]).partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES + YAML_TYPES:
        raise HTTPException(415, f"send Content-Type: application/yaml or application/json, found {media_type[:100]!r}")
    return parse_definition(body, content_type)
