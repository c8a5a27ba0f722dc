"""Whether the process lives, whether it can serve, and its figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from effillm_server.api import examples
from effillm_server.api.documented import problems, raw
from effillm_server.api.services import Served
from effillm_server.api.views import HealthView
from effillm_server.errors import Unavailable
from effillm_server.ledger import queries

router = APIRouter(tags=["health"])
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


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
