"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter

from effillm_server.api.documented import problems
from effillm_server.api.services import Served
from effillm_server.api.views import HealthView
from effillm_server.errors import Unavailable
from effillm_server.ledger import queries

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Whether the process lives", responses=problems())
def alive() -> HealthView:
    """Touches nothing: a database that is away is no reason to restart this process."""
    return HealthView(status="ok")


@router.get("/readyz", summary="Whether requests can be served", responses=problems())
def ready(served: Served) -> HealthView:
    """Asks the database; 503 while it does not answer or has another schema."""
    with served.reading() as connection:
        if not queries.ready(connection):
            raise Unavailable("the database's schema is not this version's: restart this process to migrate it")
    return HealthView(status="ready")
