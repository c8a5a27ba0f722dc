"""uvicorn as the API uses it."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from effillm_server.api.services import Services

GRACE_S = 5


class Server(uvicorn.Server):
    """Serves `app` and ends its event streams when it shuts down; they would hold it up for ever."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._services: Services = app.state.services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.hub.end_subscriptions()
        await super().shutdown(sockets)
