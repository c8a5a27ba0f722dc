"""Forms of the pages: their fields as they were typed, once the caller is known and may make this change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from effillm_server.api.auth import FORM

MOST_FIELDS = 500
Fields = Mapping[str, list[str]]


async def posted(request: Request) -> Fields:
    """The fields of the form in this request's body."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != FORM:
        raise HTTPException(415, f"send Content-Type: {FORM}, found {media_type[:100]!r}")
    try:
        return parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise HTTPException(422, f"not a form of ours: at most {MOST_FIELDS} fields of UTF-8 text") from None


Posted = Annotated[Fields, Depends(posted)]


def first(fields: Fields, name: str) -> str:
    """The field's text; empty where it is missing."""
    return fields.get(name, [""])[0]
