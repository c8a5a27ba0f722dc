from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from effillm_server.api import problems
from effillm_server.api.auth import Authenticated, Scope


def application() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/who")
    def who(caller: Authenticated) -> dict[str, object]:
        return {"owner": caller.owner, "scopes": sorted(caller.scopes)}

    return app


async def ask(address: tuple[str, int]) -> httpx.Response:
    transport = httpx.ASGITransport(application(), client=address)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/who")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_is_the_local_admin_as_long_as_there_are_no_keys(host: str) -> None:
    answer = asyncio.run(ask((host, 1)))
    assert answer.json() == {"owner": None, "scopes": sorted(Scope)}


@pytest.mark.parametrize("host", ["192.0.2.7", "::ffff:192.0.2.7", "localhost.example"])
def test_nobody_else_is_served_without_a_key(host: str) -> None:
    answer = asyncio.run(ask((host, 1)))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:effillm:unauthorized"
