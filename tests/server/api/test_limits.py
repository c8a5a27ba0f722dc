from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from effillm_server.api import examples
from effillm_server.api.limits import MAX_BODY_BYTES, BodyLimit, Outermost, SameSite
from effillm_server.credentials import is_loopback
from tests.support.api import Api

MEBIBYTE = 1 << 20


def address(api: Api) -> tuple[str, int]:
    url = api.http.base_url
    return url.host, url.port or 0


def test_a_body_of_50_mb_is_refused_by_its_announced_length(api: Api) -> None:
    answer = api.http.post("/v1/sweeps", content=b"x" * 50_000_000, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:effillm:content-too-large"
    assert "1,048,576 bytes" in answer.json()["detail"]


def test_a_body_of_50_mb_in_chunks_is_counted_while_it_is_read(api: Api) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 1_000_000

    answer = api.http.post("/v1/sweeps", content=chunks(), headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 413


def test_the_limit_holds_on_routes_that_take_no_body(api: Api) -> None:
    assert api.http.post("/v1/jobs/1/cancel", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413


def test_a_body_at_the_limit_is_read(api: Api) -> None:
    body = examples.DEFINITION_YAML.encode()
    body += b"#" * (MAX_BODY_BYTES - len(body))
    answer = api.http.post("/v1/sweeps/preview", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 200, answer.text


def test_the_refusal_arrives_before_the_body_has_been_sent(api: Api) -> None:
    with socket.create_connection(address(api), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/yaml\r\n"
            b"Content-Length: 50000000\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_compressed_bodies_are_refused(api: Api, encoding: str) -> None:
    answer = api.http.post("/v1/sweeps", content=b"x", headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert "send it plain" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[bad"])
def test_a_foreign_host_header_is_refused(api: Api, host: str) -> None:
    answer = api.http.get("/v1/sweeps", headers={"Host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8750"])
def test_names_of_this_machine_are_served_whatever_the_port(api: Api, host: str) -> None:
    assert api.http.get("/v1/sweeps", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
])  # fmt: skip
def test_a_page_of_another_site_changes_nothing(api: Api, headers: dict[str, str]) -> None:
    sweep = api.submit()
    assert api.http.post(f"/v1/sweeps/{sweep['id']}/cancel", headers=headers).status_code == 403
    assert api.http.get(f"/v1/sweeps/{sweep['id']}").json()["counts"]["pending"] == 4


def test_a_page_of_this_server_may_change_things(api: Api) -> None:
    sweep = api.submit()
    headers = {"Origin": str(api.http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert api.http.post(f"/v1/sweeps/{sweep['id']}/cancel", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/sweeps", "/v1/sweeps/unknown", "/nowhere", "/healthz"])
def test_every_answer_carries_its_id_and_the_security_headers(api: Api, path: str) -> None:
    answer = api.http.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    if answer.is_error:
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_route_that_does_not_exist_and_a_wrong_method_are_problems(api: Api) -> None:
    nowhere, wrong = api.http.get("/nowhere"), api.http.delete("/v1/sweeps")
    assert (nowhere.status_code, wrong.status_code) == (404, 405)
    assert nowhere.headers["content-type"] == wrong.headers["content-type"] == "application/problem+json"
    assert "POST" in wrong.headers["allow"] or "GET" in wrong.headers["allow"]


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))


def doors(endpoint: Callable[[Request], Awaitable[Response]], **limits: float) -> Starlette:
    stack = [Middleware(Outermost), Middleware(SameSite, loopback=True), Middleware(BodyLimit, **limits)]
    return Starlette(routes=[Route("/", endpoint, methods=["POST"])], middleware=stack)


async def send(app: Starlette, content: bytes | AsyncIterator[bytes] = b"") -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post("/", content=content)


def test_a_failure_nobody_expected_is_a_problem_without_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("SELECT secret FROM table")

    answer = asyncio.run(send(doors(fail)))
    assert answer.status_code == 500
    assert "SELECT" not in answer.text and "RuntimeError" not in answer.text
    assert answer.json()["request_id"] == caplog.records[0].request_id  # type: ignore[attr-defined]
    assert "SELECT secret" in caplog.text


def test_a_body_that_trickles_in_too_slowly_is_given_up() -> None:
    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def main() -> int:
        app = doors(echo, timeout_s=0.05)
        never = asyncio.Event()
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            if sent:
                return {"type": "http.disconnect"}
            await never.wait()
            raise AssertionError

        async def collect(message: dict[str, object]) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")], "state": {},
            "query_string": b"",
        }  # fmt: skip
        await app(scope, receive, collect)  # type: ignore[arg-type]
        return int(sent[0]["status"])  # type: ignore[call-overload]

    assert asyncio.run(main()) == 408
