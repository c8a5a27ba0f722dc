"""Keyset pages: an opaque cursor that remembers the last key, and the Link header that carries it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from effillm_server.errors import BadInput

Limit = Annotated[int, Query(ge=1, le=1000, description="entries on a page", examples=[100])]
Cursor = Annotated[
    str | None,
    Query(max_length=200, description="`next` of the page before; none: the first page"),
]


def encode(kind: str, key: str | int) -> str:
    """Cursor behind `key` in a list of `kind`."""
    text = json.dumps([kind, key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_int(kind: str, cursor: str | None, first: int) -> int:
    """The key inside `cursor`, or `first` without one. Raises BadInput when it is not a cursor of such a list."""
    key = _decode(kind, cursor)
    if key is None:
        return first
    if isinstance(key, bool) or not isinstance(key, int) or not -1 <= key < 2**63:
        raise _not_a_cursor(cursor)
    return key


def decode_text(kind: str, cursor: str | None) -> str | None:
    """The key inside `cursor`, None without one. Raises BadInput when it is not a cursor of such a list."""
    key = _decode(kind, cursor)
    if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
        raise _not_a_cursor(cursor)
    return key


def link(request: Request, response: Response, cursor: str | None) -> None:
    """Put the address of the next page into the Link header."""
    if cursor is None:
        return
    parameters = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    query = urlencode([*parameters, ("after", cursor)])
    response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'


def _decode(kind: str, cursor: str | None) -> object:
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found_kind, key = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise _not_a_cursor(cursor) from None
    if found_kind != kind or key is None:
        raise _not_a_cursor(cursor)
    return key


def _not_a_cursor(cursor: str | None) -> BadInput:
    return BadInput(f"after={cursor!r} is not `next` of a page of this list; leave it out to start over", field="after")
