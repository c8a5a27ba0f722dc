"""uvicorn as the API uses it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any

import uvicorn
from fastapi import FastAPI

from effillm_server.api.services import Services

GRACE_S = 5
# As long as a body may take; uvicorn itself waits for ever for the end of a request's headers.
HEADERS_TIMEOUT_S = 30.0
TICKS_BETWEEN_LOOKS = 10  # a second


class Server(uvicorn.Server):
    """Serves `app`, ends its event streams when it shuts down (they would hold it up for ever), and whoever sends no headers."""

    def __init__(self, app: FastAPI, *, headers_timeout_s: float = HEADERS_TIMEOUT_S) -> None:
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
        self._silent = Silent(headers_timeout_s)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_BETWEEN_LOOKS == 0:
            self._silent.end(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.hub.end_subscriptions()
        await super().shutdown(sockets)


class Silent:
    """Connections that owe us the headers of a request, with the time since when."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # By connection: the answer it had last, and when that was first seen to be its last.
        self._since: dict[Any, tuple[Any, float]] = {}

    def end(self, connections: Iterable[Any], now_s: float) -> None:
        """Close those that have owed them for too long."""
        waiting: dict[Any, tuple[Any, float]] = {}
        for connection in list(connections):
            last = connection.cycle
            if last is not None and not last.response_complete:
                continue
            known = self._since.get(connection)
            since = known if known is not None and known[0] is last else (last, now_s)
            if now_s - since[1] < self._timeout_s:
                waiting[connection] = since
            else:
                connection.transport.close()
        self._since = waiting
