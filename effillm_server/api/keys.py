"""Routes of keys, for admins: make, list, revoke."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from effillm_server import credentials
from effillm_server.api import access_examples as examples
from effillm_server.api import audit, pages
from effillm_server.api.access_views import KeyRequest, KeyView, NewKeyView
from effillm_server.api.auth import Admin, Caller
from effillm_server.api.documented import LINKED, problems, with_header
from effillm_server.api.services import Served, Services
from effillm_server.api.views import PageView
from effillm_server.errors import BadInput, NotFound
from effillm_server.ledger import keys
from effillm_server.records import KeyRecord

DAY_S = 86_400
router = APIRouter(prefix="/v1/keys", tags=["keys"])

KeyId = Annotated[int, Path(ge=1, le=2**63 - 1, description="id of a key", examples=[examples.KEY_ID])]


@router.post(
    "",
    summary="Make a key",
    status_code=201,
    responses={**problems(), 201: with_header("Location", "address of the list it is in")},
)
def create(served: Served, who: Admin, wanted: KeyRequest, response: Response) -> NewKeyView:
    """Its text is in this answer and nowhere else: what is stored is a hash."""
    text, key = made(served, who, wanted)
    response.headers["Location"] = router.prefix
    return NewKeyView.of(key, key=text)


@router.get("", summary="List the keys, newest first", responses=problems() | LINKED)
def listing(
    request: Request,
    response: Response,
    served: Served,
    who: Admin,
    after: pages.Cursor = None,
    limit: pages.Limit = 100,
) -> PageView[KeyView]:
    """Expired and revoked ones too. Pages follow by the Link header, or by `next` as `after`."""
    before = pages.decode_int("keys", after, first=keys.LAST)
    with served.reading() as connection:
        found = keys.keys(connection, before, limit + 1)
    following = pages.encode("keys", found[limit - 1].id) if len(found) > limit else None
    pages.link(request, response, following)
    return PageView(items=[KeyView.of(key) for key in found[:limit]], next=following)


@router.delete("/{key_id}", summary="Revoke a key", responses=problems(404))
def revoke(served: Served, who: Admin, key_id: KeyId) -> KeyView:
    """It opens nothing any more within 5 s, everywhere; browsers signed in with it are signed out. What is done stays done."""
    with served.writing() as connection:
        hit = keys.revoke_key(connection, key_id)
        found = keys.key(connection, key_id)
        if found is None:
            raise NotFound(f"no key has the id {key_id}; GET /v1/keys lists them")
        if hit:
            audit.record(connection, who, "key.revoke", str(key_id), owner=found.owner, prefix=found.prefix)
    served.keyring.forget()
    return KeyView.of(found)


def made(served: Services, who: Caller, wanted: KeyRequest) -> tuple[str, KeyRecord]:
    """The text of a new key and its record, now stored. Raises BadInput when it would have ended before it begins."""
    if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
        raise BadInput(
            f"expires_at: {wanted.expires_at.isoformat()} is past: name a moment to come", field="expires_at"
        )
    text = credentials.new_key()
    lifetime_s = None if wanted.lifetime_days is None else wanted.lifetime_days * DAY_S
    with served.writing() as connection:
        key = keys.create_key(
            connection, wanted.owner, sorted(set(wanted.scopes)), credentials.digest(text), credentials.prefix(text),
            expires_at=wanted.expires_at, lifetime_s=lifetime_s,
        )  # fmt: skip
        if key is None:
            raise AssertionError("two of 2^256 random keys are the same")
        audit.record(
            connection, who, "key.create", str(key.id), owner=key.owner, prefix=key.prefix, scopes=list(key.scopes)
        )
    return text, key
