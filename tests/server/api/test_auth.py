from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from effillm_server.api import problems
from effillm_server.api.app import create_app
from effillm_server.api.auth import Authenticated, Caller, Scope, csrf_of, may_change, require
from effillm_server.ledger.engine import connect
from effillm_server.records import Viewer
from effillm_server.settings import Settings

NOWHERE = "postgresql://nobody@127.0.0.1:9/nothing"


@pytest.fixture
def application() -> Iterator[FastAPI]:
    """A route that says who asks, over the services of a server without keys."""
    engine = connect(NOWHERE, "api")
    app = FastAPI()
    app.state.services = create_app(Settings(), engine).state.services
    problems.install(app)

    @app.get("/who")
    def who(caller: Authenticated) -> dict[str, object]:
        return {"owner": caller.owner, "scopes": sorted(caller.scopes)}

    yield app
    app.state.services.models.close()
    engine.dispose()


async def ask(app: FastAPI, address: tuple[str, int], **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=address)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/who", headers=headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_is_the_local_admin_as_long_as_no_keys_are_asked_for(application: FastAPI, host: str) -> None:
    answer = asyncio.run(ask(application, (host, 1)))
    assert answer.json() == {"owner": None, "scopes": sorted(Scope)}


@pytest.mark.parametrize("host", ["192.0.2.7", "::ffff:192.0.2.7", "localhost.example"])
def test_nobody_else_is_served_without_a_key(application: FastAPI, host: str) -> None:
    answer = asyncio.run(ask(application, (host, 1)))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:effillm:unauthorized"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_proxy_on_this_machine_speaks_for_others(application: FastAPI, header: str) -> None:
    answer = asyncio.run(ask(application, ("127.0.0.1", 1), **{header: "127.0.0.1"}))
    assert answer.status_code == 401
    assert "proxy" in answer.json()["detail"]


@pytest.mark.parametrize(("held", "opened"), [
    ({Scope.READ}, {Scope.READ}), ({Scope.SUBMIT}, {Scope.READ, Scope.SUBMIT}), ({Scope.ADMIN}, set(Scope)),
    ({Scope.READ, Scope.SUBMIT}, {Scope.READ, Scope.SUBMIT}),
])  # fmt: skip
def test_each_scope_includes_those_before_it(held: set[Scope], opened: set[Scope]) -> None:
    who = Caller("ada", frozenset(held))
    assert {scope for scope in Scope if who.may(scope)} == opened


def test_what_a_scope_does_not_open_is_refused_in_words() -> None:
    reader = Caller("ada", frozenset({Scope.READ}))
    assert asyncio.run(require(Scope.READ)(reader)) is reader
    with pytest.raises(Exception, match="scope submit; the one of ada has read"):
        asyncio.run(require(Scope.SUBMIT)(reader))


@pytest.mark.parametrize(("who", "owner", "may"), [
    (Caller("ada", frozenset({Scope.SUBMIT})), "ada", True), (Caller("ada", frozenset({Scope.READ})), "ada", False),
    (Caller("ada", frozenset({Scope.SUBMIT})), "bob", False), (Caller("ada", frozenset({Scope.SUBMIT})), None, False),
    (Caller("root", frozenset({Scope.ADMIN})), "bob", True), (Caller(None, frozenset(Scope)), "bob", True),
])  # fmt: skip
def test_a_sweep_is_changed_by_its_owner_and_by_admins(who: Caller, owner: str | None, may: bool) -> None:
    assert may_change(who, owner) is may


@pytest.mark.parametrize(("viewer", "visibility", "owner", "sees"), [
    (Viewer("ada"), "lab", "bob", True), (Viewer("ada"), "private", "ada", True), (Viewer("ada"), "private", "bob", False),
    (Viewer("ada"), "private", None, False), (Viewer(None), "private", None, False),
    (Viewer(None, is_admin=True), "private", "ada", True), (Viewer("ada"), None, None, True),
])  # fmt: skip
def test_what_is_private_is_there_for_its_owner_and_admins(
    viewer: Viewer, visibility: str | None, owner: str | None, sees: bool
) -> None:
    assert viewer.sees(visibility, owner) is sees


def test_the_token_of_changes_belongs_to_one_session_and_does_not_give_it_away() -> None:
    assert csrf_of("one") == csrf_of("one") != csrf_of("other")
    assert "one" not in csrf_of("one")


def test_a_caller_does_not_show_its_session_when_it_is_printed() -> None:
    assert "secret-token" not in repr(Caller("ada", frozenset({Scope.READ}), 1, "secret-token"))
