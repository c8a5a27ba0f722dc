"""Signing a browser in with a key or a link that works once, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import sessions
from effillm_server.api.auth import Authenticated
from effillm_server.web.access import Posted, first
from effillm_server.web.templating import page

HOME = "/sweeps"
router = APIRouter(tags=["page-sign-in"], include_in_schema=False)

To = Annotated[str, Query(max_length=2000)]


@router.get("/login")
def asked(request: Request, to: To = HOME, token: Annotated[str | None, Query(max_length=200)] = None) -> Response:
    """The form for a key; with the token of a link, signed in at once."""
    if token is None:
        return _form(request, to)
    answer = RedirectResponse(HOME, 303)
    try:
        sessions.sign_in_by_link(request, answer, token)
    except HTTPException as refused:
        return _form(request, to, str(refused.detail), refused.status_code)
    return answer


@router.post("/login")
def enter(request: Request, fields: Posted) -> Response:
    """Signed in and on to where the browser came from, or the form again with what was wrong."""
    to = first(fields, "to")
    answer = RedirectResponse(here(to), 303)
    try:
        sessions.sign_in(request, answer, first(fields, "key"))
    except HTTPException as refused:
        return _form(request, to, str(refused.detail), refused.status_code)
    return answer


@router.post("/logout")
def leave(request: Request, who: Authenticated) -> Response:
    """The session is over; on to the form."""
    answer = RedirectResponse("/login", 303)
    sessions.sign_out(request, answer, who)
    return answer


def here(to: str) -> str:
    """`to` where it is a page of this server: nobody is sent elsewhere by a link that looks like ours."""
    is_ours = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable() and "\\" not in to
    return to if is_ours else HOME


def _form(request: Request, to: str, error: str | None = None, status: int = 200) -> HTMLResponse:
    return page(request, None, "login.html", status=status, to=here(to), error=error)
