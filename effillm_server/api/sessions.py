"""Browsers that sign in: by a key, or by a link that works once. What they hold is a random token, of which a hash is stored."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from effillm_server import credentials
from effillm_server.api import audit
from effillm_server.api.access_views import LinkView, SessionView, SignedOutView, SignIn
from effillm_server.api.auth import BEARER, COOKIE, Authenticated, Caller, csrf_of, holder, known_key
from effillm_server.api.documented import problems, with_header
from effillm_server.api.services import Served, Services, services
from effillm_server.ledger import keys
from effillm_server.records import KeyRecord

LINK_LIFETIME_S = 600.0
TOKEN_BYTES = 32
router = APIRouter(prefix="/v1/session", tags=["session"])


@router.get("", summary="Who one is here", responses=problems())
def look(who: Authenticated) -> SessionView:
    """For programs of a page: who is signed in, what they may, and the token that their changes carry."""
    return _view(who)


@router.post(
    "",
    summary="Sign a browser in",
    responses={**problems(), 200: with_header("Set-Cookie", "the session, which scripts cannot read")},
)
def enter(request: Request, response: Response, wanted: SignIn) -> SessionView:
    """Gives the browser a cookie in exchange for a key; 401 when that opens nothing."""
    return _view(sign_in(request, response, wanted.key))


@router.delete("", summary="Sign a browser out", responses=problems())
def leave(request: Request, response: Response, who: Authenticated) -> SignedOutView:
    """Ends the session of the cookie in this request, everywhere."""
    return SignedOutView(signed_out=sign_out(request, response, who))


@router.post("/links", summary="Make a link that signs a browser in, once", status_code=201, responses=problems())
def link(served: Served, who: Authenticated) -> LinkView:
    """The browser becomes whoever asked for the link."""
    return LinkView(path=f"/login?token={login_token(served, who)}", lifetime_s=LINK_LIFETIME_S)


def sign_in(request: Request, response: Response, key: str) -> Caller:
    """The holder of `key`; `response` has the cookie of their new session. Raises 401 for a key that opens nothing."""
    return _opened(request, response, known_key(request, key.strip()))


def sign_in_by_link(request: Request, response: Response, token: str) -> Caller:
    """Whoever asked for the link; `response` has the cookie of their new session. Raises 401 for a link that is used up."""
    served = services(request)
    with served.writing() as connection:
        taken = keys.take_session(connection, credentials.digest(token, "link"))
    if taken is None or (taken.key is None and served.keyring.required):
        raise HTTPException(401, "this link is unknown, older than ten minutes, or has been used", headers=BEARER)
    return _opened(request, response, taken.key)


def sign_out(request: Request, response: Response, who: Caller) -> bool:
    """Whether there was a session; it is over, and `response` takes its cookie from the browser."""
    served = services(request)
    is_over = False
    if who.session is not None:
        with served.writing() as connection:
            is_over = keys.close_session(connection, credentials.digest(who.session, "session"))
            audit.record(connection, who, "session.close")
        served.keyring.forget()
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax", secure=is_encrypted(request))
    return is_over


def login_token(served: Services, who: Caller) -> str:
    """What a link that works once, for ten minutes, ends in."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with served.writing() as connection:
        keys.open_session(connection, credentials.digest(token, "link"), who.key_id, LINK_LIFETIME_S)
        audit.record(connection, who, "session.link")
    return token


def is_encrypted(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy that EFFILLM_PUBLIC_URL names."""
    public_url = services(request).settings.public_url
    return request.url.scheme == "https" or (public_url is not None and public_url.startswith("https://"))


def _opened(request: Request, response: Response, key: KeyRecord | None) -> Caller:
    """A new session, whatever cookie the browser had before: nobody can prepare one for somebody else."""
    served = services(request)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    who = holder(key, request, token)
    lifetime_s = served.settings.session_lifetime_s
    before = request.cookies.get(COOKIE)
    with served.writing() as connection:
        if before is not None:
            keys.close_session(connection, credentials.digest(before, "session"))
        keys.open_session(connection, credentials.digest(token, "session"), who.key_id, lifetime_s)
        audit.record(connection, who, "session.open")
    served.keyring.forget()
    response.set_cookie(
        COOKIE, token, max_age=int(lifetime_s), path="/", httponly=True, samesite="lax", secure=is_encrypted(request)
    )
    return who


def _view(who: Caller) -> SessionView:
    csrf = csrf_of(who.session) if who.session is not None else None
    return SessionView(owner=who.owner, scopes=sorted(who.scopes), key=who.key_id, csrf=csrf)
