"""Doors in front of the routes, as plain ASGI: request ids and headers, host and origin, size of the body."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from effillm_server.api.problems import respond

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
DRAIN_BYTES = 128 << 20
DRAIN_TIMEOUT_S = 5.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Seen = Callable[[Scope, int, float], None]
log = logging.getLogger("effillm.api")


class Outermost:
    """Gives each request an id, each answer its security headers, and turns what nobody caught into a problem."""

    def __init__(self, app: ASGIApp, *, seen: Seen | None = None) -> None:
        """`seen` is told of every request: its scope, the status it was answered with, the seconds that took."""
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
        started_s = time.monotonic()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # the edge of the process: recorded whole, told without a stack
            log.exception("request_failed", extra=fields)
            if status:
                # Half an answer is out: the connection is cut, so that nobody takes it for a whole one.
                raise
            answer = respond(
                request_id, 500, "the server failed to answer; its log has the reason under the request id"
            )
            await answer(scope, receive, send_with_headers)
        seconds = time.monotonic() - started_s
        if self.seen is not None:
            self.seen(scope, status, seconds)
        level = logging.DEBUG if scope["method"] in SAFE_METHODS and status < 400 else logging.INFO
        log.log(level, "request", extra={**fields, "status": status, "seconds": round(seconds, 4)})


class SameSite:
    """Refuses requests that another site's page made: a foreign Host (DNS rebinding) or a foreign Origin."""

    def __init__(self, app: ASGIApp, *, loopback: bool, public_url: str | None = None) -> None:
        """`public_url` is what browsers call this server when a proxy gives it another name."""
        self.app = app
        self.loopback = loopback
        self.public = _place(public_url) if public_url is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope), scope["method"]) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await respond(scope["state"]["request_id"], *refusal)(scope, receive, send)

    def _refusal(self, headers: Headers, method: str) -> tuple[int, str] | None:
        here = _place(f"//{headers.get('host', '')}")
        host = here[0]
        if self.loopback and host not in LOCAL_NAMES and (self.public is None or host != self.public[0]):
            return 421, f"this server answers on localhost only, the Host header names {host or 'nothing'!r}"
        if method in SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and _place(origin) not in (here, self.public):
            return 403, "a page of another site may not change anything here"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "a page of another site may not change anything here"
        return None


class BodyLimit:
    """Reads the body before any route runs, counting: over the limit, compressed or too slow, and it is refused."""

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            await self._refuse(
                scope, receive, send, 415, f"compressed bodies ({encoding[:40]}) are not accepted; send it plain"
            )
            return
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self.max_bytes):
            await self._refuse(scope, receive, send, 413, self._too_large())
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            await self._refuse(scope, receive, send, 408, f"the body did not arrive within {self.timeout_s:g} s")
            return
        if body is None:
            await self._refuse(scope, receive, send, 413, self._too_large())
            return
        await self.app(scope, _replay(body, receive), send)

    def _too_large(self) -> str:
        return f"a body has at most {self.max_bytes:,} bytes; write long axes as fewer values or split the sweep"

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None as soon as it is over the limit."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(chunks)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.max_bytes:
                return None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
        answer = respond(scope["state"]["request_id"], status, detail, headers={"Connection": "close"})
        await send({"type": "http.response.start", "status": status, "headers": answer.raw_headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        # Closing on a client that still sends resets the connection, and the answer may be lost with it: read on
        # for a while. The bytes are dropped at once.
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await _drain(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed


def _place(url: str) -> tuple[str | None, int | None]:
    """Host and port of a URL; an Origin's default port counts as none, as in a Host header."""
    try:
        parts = urlsplit(url)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        return parts.hostname, None if parts.port == default else parts.port
    except ValueError:
        return None, None
