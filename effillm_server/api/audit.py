"""Who changed what: a line for every change, and the admin's route to read them."""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy
from fastapi import APIRouter, Query, Request, Response

from effillm_server.api import pages
from effillm_server.api.access_views import AuditView
from effillm_server.api.auth import Admin, Caller
from effillm_server.api.documented import LINKED, problems
from effillm_server.api.services import Served
from effillm_server.api.views import PageView
from effillm_server.ledger import keys

router = APIRouter(prefix="/v1/audit", tags=["audit"])


def record(
    connection: sqlalchemy.Connection, who: Caller, action: str, subject: str | None = None, **data: Any
) -> None:
    """Keep that `who` did `action`, in the transaction of the change itself."""
    by = {"key": who.key_id} if who.key_id is not None else {}
    keys.record(connection, who.owner, action, subject, who.request_id, by | data)


def _filter(description: str, example: str) -> Any:
    return Query(min_length=1, max_length=200, pattern=r"^[ -~]+$", description=description, examples=[example])


@router.get("", summary="Who changed what, newest first", responses=problems() | LINKED)
def trail(
    request: Request,
    response: Response,
    served: Served,
    who: Admin,
    actor: Annotated[str | None, _filter("only changes by this owner", "ada")] = None,
    action: Annotated[str | None, _filter("only changes of this kind", "sweep.cancel")] = None,
    subject: Annotated[str | None, _filter("only changes to this sweep, job, device or key", "s3kq7w2m4t6y")] = None,
    after: pages.Cursor = None,
    limit: pages.Limit = 100,
) -> PageView[AuditView]:
    """For admins. `actor` is null for the local admin; pages follow by the Link header, or by `next` as `after`."""
    before = pages.decode_int("audit", after, first=keys.LAST)
    with served.reading() as connection:
        lines = keys.audit(connection, before, limit + 1, actor=actor, action=action, subject=subject)
    following = pages.encode("audit", lines[limit - 1].id) if len(lines) > limit else None
    pages.link(request, response, following)
    return PageView(items=[AuditView.of(line) for line in lines[:limit]], next=following)
