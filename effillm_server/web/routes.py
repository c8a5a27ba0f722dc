"""Every page in one router, and what they need of the application that serves them."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from effillm_server.api.quick import QuickRoute
from effillm_server.web import assets, compare, devices, errors, jobs, keys, recommend, sign_in, submit, sweeps
from effillm_server.web.shared import Shared

PARTS = (assets, sign_in, submit, sweeps, jobs, devices, compare, recommend, keys)
# Pages that many look at, by way of `api.quick`.
QUICK = (QuickRoute("/sweeps/{sweep_id}", sweeps.matrix), QuickRoute("/sweeps/{sweep_id}/jobs", sweeps.listed_jobs))
router = APIRouter()
for part in PARTS:
    router.include_router(part.router)


def install(app: FastAPI) -> None:
    """Serve the pages, and tell browsers of problems as pages; to be called behind `problems.install`."""
    app.state.matrices = Shared()
    app.include_router(router)
    errors.install(app)
