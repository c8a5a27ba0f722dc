"""Who calls, and what they may: by API key, by the session of a browser, or as the local admin where no keys are asked for."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from effillm_server.api.keyring import Keyring
from effillm_server.api.limits import SAFE_METHODS
from effillm_server.api.problems import request_id
from effillm_server.api.rates import later, place, words
from effillm_server.api.services import services
from effillm_server.credentials import is_loopback
from effillm_server.records import KeyRecord, SweepRecord, Viewer

COOKIE = "effillm_session"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
FORM = "application/x-www-form-urlencoded"
BEARER = {"WWW-Authenticate": "Bearer"}
# A request with one of these came through somebody else, whom loopback says nothing about.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Scope(StrEnum):
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


# What each scope opens besides itself.
INCLUDED = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.READ, Scope.SUBMIT}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True)
class Caller:
    """The one who made a request: `owner` is stored with what they submit, None for the local admin.

    `session` is the token of a signed-in browser, `key_id` the key they hold or signed in with.
    """

    owner: str | None
    scopes: frozenset[Scope]
    key_id: int | None = None
    session: str | None = field(default=None, repr=False)
    request_id: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.owner if self.owner is not None else "local admin"

    @property
    def viewer(self) -> Viewer:
        """With whose eyes this caller reads."""
        return Viewer(self.owner, is_admin=self.may(Scope.ADMIN))

    def may(self, scope: Scope) -> bool:
        return any(scope in INCLUDED[held] for held in self.scopes)


def identify(request: Request, csrf: str | None = None) -> Caller | None:
    """The caller, None for somebody who shows nothing. `csrf` is the token of a form; a header is looked at too.

    Raises 401 for a key that is wrong, expired or revoked, 403 for a change by cookie without its CSRF token.
    """
    keyring = services(request).keyring
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, text = authorization.partition(" ")
        return holder(known_key(request, text.strip() if scheme.lower() == "bearer" else ""), request)
    token = request.cookies.get(COOKIE)
    session = keyring.session(token) if token is not None else None
    if token is not None and session is not None:
        _check_csrf(request, token, csrf)
        return holder(session.key, request, token)
    if not keyring.required and _is_here(request):
        return holder(None, request)
    return None


def known_at_once(request: Request) -> Caller | None:
    """The caller of a request that changes nothing, if no database is needed to know them; nobody is refused, nothing is raised."""
    keyring = services(request).keyring
    authorization, token = request.headers.get("authorization"), request.cookies.get(COOKIE)
    if authorization is not None:
        scheme, _, text = authorization.partition(" ")
        key = keyring.key(text.strip()) if scheme.lower() == "bearer" and keyring.remembers_key(text.strip()) else None
        return None if key is None else holder(key, request)
    if token is not None:
        session = keyring.session(token) if keyring.remembers_session(token) else None
        return None if session is None else holder(session.key, request, token)
    return holder(None, request) if not keyring.required and _is_here(request) else None


def known_key(request: Request, text: str) -> KeyRecord:
    """The valid key of this text. Raises 401, and 429 for an address that has sent too many wrong ones."""
    served, address = services(request), place(request.scope.get("client"))
    if (wait_s := served.rates.failures.look(address)) > 0:
        raise HTTPException(429, words("this address has sent wrong keys and", wait_s), headers=later(wait_s))
    key = served.keyring.key(text)
    if key is None:
        served.rates.failures.take(address)
        raise HTTPException(
            401, "the API key is unknown, expired or revoked: send Authorization: Bearer eff_…", headers=BEARER
        )
    return key


def holder(key: KeyRecord | None, request: Request, session: str | None = None) -> Caller:
    """The caller that a key makes, or that is the local admin without one."""
    if key is None:
        return Caller(None, frozenset(Scope), None, session, request_id(request))
    return Caller(key.owner, frozenset(map(Scope, key.scopes)), key.id, session, request_id(request))


async def form_token(request: Request) -> str | None:
    """The CSRF token in a form's body."""
    if request.method in SAFE_METHODS or request.headers.get("content-type", "").partition(";")[0].strip() != FORM:
        return None
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=1000)
    except ValueError:
        return None
    return fields.get(CSRF_FIELD, [None])[0]


async def caller(request: Request, csrf: Annotated[str | None, Depends(form_token)]) -> Caller:
    """The caller of this request. Raises 401 for anybody unknown."""
    if _is_remembered(request):
        found = identify(request, csrf)
    else:
        found = await run_in_threadpool(identify, request, csrf)
    if found is not None and found.key_id is not None:
        wait_s = services(request).rates.by_key.take(found.key_id)
        if wait_s > 0:
            raise HTTPException(429, words(f"the key of {found.name}", wait_s), headers=later(wait_s))
    if found is None:
        asked = "send an API key as Authorization: Bearer eff_…, or sign in"
        if not services(request).keyring.required:
            asked = f"without API keys only this machine is served, and no proxy in front of it; {asked}"
        raise HTTPException(401, asked, headers=BEARER)
    return found


Authenticated = Annotated[Caller, Depends(caller)]


def require(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: the caller, if they may do what `scope` opens. Raises 403."""

    async def required(who: Authenticated) -> Caller:
        if not who.may(scope):
            held = ", ".join(sorted(who.scopes))
            raise HTTPException(403, f"this needs a key with the scope {scope}; the one of {who.name} has {held}")
        return who

    return required


Reader = Annotated[Caller, Depends(require(Scope.READ))]
Submitter = Annotated[Caller, Depends(require(Scope.SUBMIT))]
Admin = Annotated[Caller, Depends(require(Scope.ADMIN))]


def visible(who: Caller, sweep: SweepRecord) -> bool:
    """Whether the sweep exists for the caller."""
    return who.viewer.sees(sweep.visibility, sweep.owner)


def is_still_known(keyring: Keyring, who: Caller) -> bool:
    """Whether the key or session of a caller still opens what it did: an open stream asks again and again."""
    if who.session is not None and keyring.session(who.session) is None:
        return False
    return who.key_id is None or keyring.is_valid(who.key_id)


def may_change(who: Caller, owner: str | None) -> bool:
    """Whether the caller may change what belongs to `owner`."""
    return who.may(Scope.ADMIN) or (who.may(Scope.SUBMIT) and owner is not None and owner == who.owner)


def must_change(who: Caller, owner: str | None) -> None:
    """Raises 403 when the caller may not change what belongs to `owner`."""
    if not may_change(who, owner):
        raise HTTPException(
            403, f"this sweep belongs to {owner or 'the local admin'}: its owner or an admin may change it"
        )


def csrf_token(request: Request) -> str:
    """The token that a form of this browser's session carries, as field `csrf` or header X-CSRF-Token; empty without one."""
    token = request.cookies.get(COOKIE)
    return csrf_of(token) if token is not None else ""


def csrf_of(session: str) -> str:
    """The CSRF token of a session: only who has the session can make it, and it does not give the session away."""
    return hmac.new(session.encode(), b"effillm csrf", hashlib.sha256).hexdigest()


def _check_csrf(request: Request, session: str, form: str | None) -> None:
    if request.method in SAFE_METHODS:
        return
    shown = request.headers.get(CSRF_HEADER.lower()) or form or ""
    if not hmac.compare_digest(shown.encode(), csrf_of(session).encode()):
        raise HTTPException(
            403, f"a change by a signed-in browser carries its token, header {CSRF_HEADER} or field {CSRF_FIELD}"
        )


def _is_remembered(request: Request) -> bool:
    """Whether it is known without the database who this is."""
    keyring = services(request).keyring
    authorization, token = request.headers.get("authorization"), request.cookies.get(COOKIE)
    if authorization is not None:
        return keyring.remembers_key(authorization.partition(" ")[2].strip())
    return token is None or keyring.remembers_session(token)


def _is_here(request: Request) -> bool:
    """Whether the caller is on this machine, and speaks for nobody else."""
    if request.client is None or any(name in request.headers for name in FORWARDED):
        return False
    return is_loopback(request.client.host)
