"""How fast a live sweep is read: many readers at once, while devices report into it and while none does.

    python benchmarks/readers.py --json readers.json                       # 200 readers, 10,000 jobs, 50 devices; two minutes
    python benchmarks/readers.py --readers 20 --devices 5 --seconds 5      # in small

Each reader looks once a second, as a page does: mostly at the sweep, also at its jobs, the devices, the list, the page of the jobs
itself; each is somebody else, with a key of their own, as beyond loopback nobody is served without. Readers, server, database
and devices share this machine, so the ratio of the two loads says more than either figure. A reader's time includes what
its own process takes, which is one for all of them: `late` says how far behind it began.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.scale import common, crowd, streams
from effillm_server import credentials
from effillm_server.ledger import keys
from effillm_server.ledger.engine import connect

TARGET_P99_MS = 200.0
EVERY_S = 1.0
JOIN_S = 5.0
# What is read how often out of eleven times.
MIX = (
    ("sweep", "/v1/sweeps/{sweep}", 5), ("jobs", "/v1/sweeps/{sweep}/jobs?limit=100", 2), ("devices", "/v1/devices", 1),
    ("list", "/v1/sweeps", 1), ("page", "/sweeps/{sweep}/jobs", 1), ("matrix", "/sweeps/{sweep}", 1),
)  # fmt: skip


@dataclass
class Readings:
    """Milliseconds by what was read, how late readers began (they are slowed by their own machine), and what went wrong.

    `joining` are those of the first seconds, in which everybody comes with a key that has not been looked up yet.
    """

    times_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late_ms: list[float] = field(default_factory=list)
    joining_ms: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        every = [value for values in self.times_ms.values() for value in values]
        found = {"reads_per_s": len(every) / self.seconds, "errors": float(self.errors)}
        for name, values in (
            ("all", every),
            *sorted(self.times_ms.items()),
            ("late", self.late_ms),
            ("joining", self.joining_ms),
        ):
            found |= {f"{name}_p50_ms": common.quantile(values, 0.5), f"{name}_p99_ms": common.quantile(values, 0.99)}
        return found


def main() -> int:
    """0, whatever the figures: a target that is missed says so in its line."""
    arguments = _arguments()
    figures: dict[str, Any] = {
        "readers": arguments.readers, "devices": arguments.devices, "jobs": arguments.jobs, "seconds": arguments.seconds,
        "load_before": os.getloadavg()[0],
    }  # fmt: skip
    secret = credentials.new_key()
    with (
        common.database(arguments.url) as url,
        streams.api(url, EFFILLM_REQUIRE_KEYS="true", EFFILLM_ADMIN_KEY=secret) as address,
    ):
        engine = connect(url, "api")
        sweep = common.store(engine, arguments.jobs)
        held = _keys(engine, arguments.readers)
        for load in ("quiet", "live"):
            common.tidy(engine)
            devices = arguments.devices if load == "live" else 0
            with reporting(url, devices, JOIN_S + arguments.seconds + EVERY_S, arguments.cell_s) as reports:
                readings = read(address, sweep, held, arguments.seconds)
            figures |= {f"{load}.{name}": value for name, value in readings.figures().items()}
            figures |= {f"live.{name}": value for name, value in reports.items()}
        engine.dispose()
    figures["p99_ratio"] = figures["live.all_p99_ms"] / figures["quiet.all_p99_ms"]
    for name, value in figures.items():
        print(f"{name:24} {value:12.2f}" if isinstance(value, float) else f"{name:24} {value:12}")
    met = figures["live.all_p99_ms"] < TARGET_P99_MS and figures["live.errors"] == 0
    print(f"target p99 < {TARGET_P99_MS:g} ms without an error: {'met' if met else 'missed'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _keys(engine: sqlalchemy.Engine, readers: int) -> list[str]:
    """A key for each reader, who may read and no more."""
    made = [credentials.new_key() for _ in range(readers)]
    with engine.begin() as connection:
        for number, key in enumerate(made):
            keys.create_key(connection, f"reader-{number}", ["read"], credentials.digest(key), credentials.prefix(key))
    return made


def read(address: str, sweep: str, held: Sequence[str], seconds: float) -> Readings:
    """What the readers found, one for each of the keys that they hold, each on a connection of its own."""
    readings = Readings()
    place = urlsplit(address)

    async def everybody() -> None:
        joined = time.monotonic() + JOIN_S
        await asyncio.gather(
            *(
                _reader(place.hostname or "", place.port or 0, sweep, key, (joined, joined + seconds), n, readings)
                for n, key in enumerate(held)
            )
        )
        readings.seconds = time.monotonic() - joined  # more than asked for where readers had to wait

    asyncio.run(everybody())
    return readings


@contextmanager
def reporting(url: str, devices: int, seconds: float, cell_s: float) -> Iterator[dict[str, float]]:
    """Devices that finish cells and take the next, in a process of their own; the dict has what they did when it is over."""
    told: dict[str, float] = {}
    if devices == 0:
        yield told
        return
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ready = context.Event()
    process = context.Process(target=_devices, args=(ready, answers, url, devices, seconds, cell_s))
    process.start()
    try:
        if not ready.wait(60):
            raise SystemExit("the devices did not begin")
        yield told
        figures = answers.get(timeout=seconds + 60)
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    told |= {
        "reports_per_s": len(figures["finish"]) / seconds,
        "report_p99_ms": common.quantile([value * 1000 for value in figures["finish"]], 0.99),
    }


def _devices(ready: Any, answers: Any, url: str, devices: int, seconds: float, cell_s: float) -> None:
    those = crowd.Crowd(url, [f"reporter-{n}" for n in range(devices)], cell_s, 1)
    those.begin()
    ready.set()
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=those.run, args=(until,)) for _ in range(crowd.CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    those.engine.dispose()
    answers.put(those.figures)


async def _reader(
    host: str, port: int, sweep: str, key: str, window: tuple[float, float], number: int, readings: Readings
) -> None:
    """One that looks every second, from a moment of its own on; counted from when all have joined."""
    dice = random.Random(number)
    names, paths, weights = zip(*MIX, strict=True)
    joined, until = window
    due = joined - dice.uniform(0, JOIN_S)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            which = dice.choices(range(len(names)), weights)[0]
            status = await _get(reader, writer, paths[which].format(sweep=sweep), key)
            took_ms = (time.monotonic() - began) * 1000
            if due < joined:
                readings.joining_ms.append(took_ms)
            else:
                readings.late_ms.append((began - due) * 1000)
                readings.times_ms[names[which]].append(took_ms)
            readings.errors += status != 200
            due += EVERY_S
    except (OSError, asyncio.IncompleteReadError):
        readings.errors += 1
    finally:
        writer.close()


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, key: str) -> int:
    """Status of the answer, once all of it is here."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.partition(":")[2]) for line in head.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a Postgres to work on, in a database of its own; none: an embedded one")
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each of the two loads")
    parser.add_argument("--cell-s", type=float, default=1.0, help="seconds a device takes for a cell, on average")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
