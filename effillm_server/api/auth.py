"""Who calls: the local admin as long as there are no keys, and only from this machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from effillm_server.api.limits import is_loopback


class Scope(StrEnum):
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """The one who made a request: `owner` is stored with what they submit, None for the local admin."""

    owner: str | None
    scopes: frozenset[Scope]


LOCAL_ADMIN = Caller(owner=None, scopes=frozenset(Scope))


def caller(request: Request) -> Caller:
    """The caller of this request. Raises 401 for anybody not on this machine: there are no keys to tell them apart."""
    if request.client is None or not is_loopback(request.client.host):
        raise HTTPException(401, "without API keys only this machine is served", headers={"WWW-Authenticate": "Bearer"})
    return LOCAL_ADMIN


Authenticated = Annotated[Caller, Depends(caller)]
