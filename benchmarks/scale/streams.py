"""Events on their way to one subscriber and to two thousand of one API process, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy

from benchmarks.scale import common
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect

ROOT = Path(__file__).parent.parent.parent
DEVICE = "announcer"
BETWEEN_S = 0.25
REQUEST = b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"


@contextmanager
def api(url: str, **settings: str) -> Iterator[str]:
    """Address of an API process of its own over this database; `settings` by the names of their environment variables."""
    _raise_limit()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EFFILLM_")}
    # Two thousand clients of one address are what is measured, not what is to be kept out.
    environment |= {
        "EFFILLM_DATABASE_URL": url, "EFFILLM_PORT": str(port), "EFFILLM_RATE_PER_KEY": "0", "EFFILLM_RATE_PER_ADDRESS": "0",
        "HF_HUB_OFFLINE": "1",
    } | settings  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "effillm_server.api"], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(url: str, address: str, subscribers: int, events: int = 20) -> dict[str, Any]:
    """Milliseconds from the event's own time, which is before its commit, to its arrival at each of `subscribers`."""
    engine = connect(url, "api")
    with engine.begin() as c:
        common.join(c, f"{DEVICE}-{subscribers}")
    host, port = address.removeprefix("http://").split(":")
    found = asyncio.run(_follow(engine, host, int(port), subscribers, events))
    engine.dispose()
    name = f"events.{subscribers}"
    return {
        f"{name}.connected_s": found.connected_s, f"{name}.arrived": len(found.lags_s), f"{name}.missing": found.missing,
        f"{name}.p50_ms": common.quantile(found.lags_s, 0.5) * 1000,
        f"{name}.p99_ms": common.quantile(found.lags_s, 0.99) * 1000, f"{name}.worst_ms": max(found.lags_s) * 1000,
    }  # fmt: skip


class Found:
    """Arrivals at all subscribers."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self.connected_s = 0.0
        self.missing = 0


async def _follow(engine: sqlalchemy.Engine, host: str, port: int, subscribers: int, events: int) -> Found:
    found, began = Found(), time.perf_counter()
    connected: list[asyncio.StreamWriter] = []
    readers = []
    for first in range(0, subscribers, 100):
        opened = await asyncio.gather(*(_subscribe(host, port) for _ in range(min(100, subscribers - first))))
        connected += [writer for _, writer in opened]
        readers += [asyncio.create_task(_read(reader, events, found)) for reader, _ in opened]
    found.connected_s = time.perf_counter() - began
    for turn in range(events):
        await asyncio.to_thread(_happen, engine, f"{DEVICE}-{subscribers}", turn)
        await asyncio.sleep(BETWEEN_S)
    _, late = await asyncio.wait(readers, timeout=20)
    for reader in late:
        reader.cancel()
    found.missing = subscribers * events - len(found.lags_s)
    for writer in connected:
        writer.close()
    return found


async def _subscribe(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(REQUEST)
    head = await asyncio.wait_for(reader.readuntil(b"retry: 2000\n\n"), 60)
    assert b" 200 " in head.split(b"\r\n", 1)[0], head[:200]
    return reader, writer


async def _read(reader: asyncio.StreamReader, events: int, found: Found) -> None:
    seen = 0
    while seen < events and (line := await reader.readline()):
        if line.startswith(b"data: "):
            arrived = time.time()
            event = json.loads(line[6:])
            if event["kind"] in ("device_draining", "device_undrained"):
                found.lags_s.append(arrived - datetime.fromisoformat(event["at"]).timestamp())
                seen += 1


def _happen(engine: sqlalchemy.Engine, device: str, turn: int) -> None:
    with engine.begin() as c:
        (queue.undrain if turn % 2 else queue.drain)(c, device)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the API ended with {process.returncode}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the API did not become ready")


def _raise_limit() -> None:
    """As many open files as this user may have: a socket is one, at either end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
