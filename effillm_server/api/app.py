"""The application: routes, the doors in front of them, and what lives as long as the process serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy
from fastapi import FastAPI
from fastapi.routing import APIRoute

from effillm_server import catalog
from effillm_server.api import (
    audit,
    devices,
    documented,
    events,
    health,
    insight,
    jobs,
    keys,
    metrics,
    problems,
    results,
    sessions,
    sweeps,
)
from effillm_server.api.hub import Hub
from effillm_server.api.keyring import Keyring
from effillm_server.api.limits import BodyLimit, Outermost, SameSite
from effillm_server.api.quick import Quick, QuickRoute
from effillm_server.api.rates import AddressLimit, Rates
from effillm_server.api.requests import Requests
from effillm_server.api.services import Services, Tally
from effillm_server.catalog.hub import HubClient
from effillm_server.credentials import is_loopback
from effillm_server.settings import Settings
from effillm_server.web import routes as pages

ROUTERS = (
    sweeps.router, jobs.router, results.router, insight.router, devices.router, events.router, keys.router,
    sessions.router, audit.router, metrics.router, health.router,
)  # fmt: skip
# What two hundred people who watch a sweep ask for.
QUICK = (
    QuickRoute("/v1/sweeps/{sweep_id}", sweeps.look), QuickRoute("/v1/sweeps/{sweep_id}/jobs", jobs.of_sweep),
    QuickRoute("/v1/sweeps", sweeps.listing), QuickRoute("/v1/devices", devices.listing), *pages.QUICK,
)  # fmt: skip


def create_app(settings: Settings, engine: sqlalchemy.Engine) -> FastAPI:
    """The API over `engine`. Its event hub runs while the application's lifespan lasts; the reaper is the caller's."""
    rates, requests = Rates(settings), Requests()
    services = Services(
        settings, engine, catalog.load(), HubClient(), Hub(engine), Tally(), Keyring(engine, settings), rates, requests
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.hub.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            services.hub.end_subscriptions()
            await asyncio.to_thread(services.hub.close)
            services.models.close()

    app = FastAPI(
        title="EffiLLM",
        version="1",
        summary="Which language model, at which precision, batch size and sequence length, on the hardware you have",
        lifespan=lifespan,
        # The interactive pages load scripts from elsewhere; a lab may have no way out.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
    )
    app.state.services = services
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    pages.install(app)
    documented.install(app)
    # The last one added is the first one asked.
    app.add_middleware(Quick, served=services, routes=QUICK)
    app.add_middleware(BodyLimit)
    app.add_middleware(SameSite, loopback=is_loopback(settings.host), public_url=settings.public_url)
    if services.keyring.required:
        app.add_middleware(AddressLimit, rates=rates)
    app.add_middleware(Outermost, seen=requests.seen)
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}"
