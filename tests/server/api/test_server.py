"""Connections that never say what they want."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from effillm_server.api.app import create_app
from effillm_server.api.server import HEADERS_TIMEOUT_S, Server, Silent
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings


@dataclass
class Answer:
    response_complete: bool = True


@dataclass(eq=False)
class Connection:
    """As much of uvicorn's as is looked at."""

    cycle: Answer | None = None
    closed: list[bool] = field(default_factory=list)

    @property
    def transport(self) -> Any:
        return self

    def close(self) -> None:
        self.closed.append(True)


def test_a_connection_without_a_request_is_ended_after_a_while() -> None:
    silent, connection = Silent(30), Connection()
    for now_s in (0, 10, 29.9):
        silent.end([connection], now_s)
        assert not connection.closed
    silent.end([connection], 30)
    assert connection.closed


def test_one_that_is_answered_may_take_any_time_and_the_time_begins_anew_behind_each_answer() -> None:
    silent, connection = Silent(30), Connection(Answer(response_complete=False))
    for now_s in (0, 100, 1000):
        silent.end([connection], now_s)
    connection.cycle = Answer()
    silent.end([connection], 1001)
    silent.end([connection], 1030)
    connection.cycle = Answer()  # it asked again meanwhile, and was answered
    silent.end([connection], 1032)
    silent.end([connection], 1061)
    assert not connection.closed
    silent.end([connection], 1063)
    assert connection.closed


def test_what_has_left_is_forgotten() -> None:
    silent = Silent(30)
    silent.end([Connection(), Connection()], 0)
    silent.end([], 1)
    assert silent._since == {}


@pytest.fixture
def impatient(database_url: str) -> Iterator[int]:
    """Port of a server that waits a tenth of a second for headers."""
    engine = connect(database_url, "api")
    server = Server(create_app(Settings(database_url=database_url), engine), headers_timeout_s=0.1)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield int(listener.getsockname()[1])
    server.should_exit = True
    thread.join()
    engine.dispose()


def test_headers_that_trickle_in_are_not_waited_for_and_others_are_served(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient), timeout=20) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert httpx.get(f"http://127.0.0.1:{impatient}/healthz", trust_env=False, timeout=120).status_code == 200
        assert slow.recv(100) == b""
    assert HEADERS_TIMEOUT_S == 30
