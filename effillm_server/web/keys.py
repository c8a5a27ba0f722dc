"""The page of keys, for admins: make one, shown once; who holds which; revoke; who changed what."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import audit
from effillm_server.api import keys as api
from effillm_server.api.access_views import KeyRequest
from effillm_server.api.auth import Admin, Caller, Scope
from effillm_server.api.keys import KeyId
from effillm_server.api.services import Served, Services
from effillm_server.web.access import Posted, first
from effillm_server.web.templating import page

SHOWN_KEYS, SHOWN_CHANGES = 200, 50
router = APIRouter(tags=["page-keys"], include_in_schema=False)


@router.get("/keys")
def listing(request: Request, served: Served, who: Admin) -> HTMLResponse:
    """Every key, newest first, and the last changes."""
    return _shown(request, served, who)


@router.post("/keys")
def create(request: Request, served: Served, who: Admin, fields: Posted) -> HTMLResponse:
    """The new key, in this answer and nowhere else; or what was wrong, at its field."""
    typed = {name: first(fields, name).strip() for name in ("owner", "scope", "days")}
    wanted = {"owner": typed["owner"], "scopes": [typed["scope"]], "lifetime_days": typed["days"] or None}
    try:
        made = api.create(served, who, KeyRequest.model_validate(wanted), Response())
    except ValidationError as error:
        named = {"owner": "owner", "scopes": "scope", "lifetime_days": "days"}
        errors = {named.get(str(problem["loc"][0]), "owner"): problem["msg"] for problem in error.errors()}
        return _shown(request, served, who, typed=typed, errors=errors, status=422)
    return _shown(request, served, who, made=made)


@router.post("/keys/{key_id}/revoke")
def revoke(served: Served, who: Admin, key_id: KeyId) -> Response:
    """It opens nothing any more, and back to the list."""
    api.revoke(served, who, key_id)
    return RedirectResponse("/keys", 303)


def _shown(request: Request, served: Services, who: Caller, *, status: int = 200, **context: Any) -> HTMLResponse:
    found = api.listing(request, Response(), served, who, None, SHOWN_KEYS)
    changes = audit.trail(request, Response(), served, who, None, None, None, None, SHOWN_CHANGES)
    blank = {"typed": {"owner": "", "scope": "read", "days": "90"}, "errors": {}, "made": None}
    return page(
        request, who, "keys.html", status=status, keys=found.items, more=found.next is not None, changes=changes.items,
        scopes=list(Scope), is_asked=served.keyring.required, **blank | context,
    )  # fmt: skip
