"""A real API server on a free port over a real database, and a lab around it made through the ledger itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy

# The server imports these when it is first asked for a figure; here before, so that no request waits for them.
import effillm_server.figures  # noqa: F401
from effillm_server.api import examples
from effillm_server.api.admission import admit
from effillm_server.api.app import create_app
from effillm_server.api.server import Server
from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint, Hardware, Processor, Software
from effillm_server.contract.job import Lease
from effillm_server.contract.outcome import (
    CellMemory,
    ChildRecord,
    LoadedModel,
    Measured,
    MemoryReading,
    Outcome,
    Phase,
    Sample,
    StopReason,
    Verdict,
)
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings

BOOT = "boot-1"
TTL_S = 60.0


@dataclass(frozen=True)
class Api:
    """A running server: a client of it, and its database."""

    http: httpx.Client
    engine: sqlalchemy.Engine

    def submit(self, **changes: Any) -> dict[str, Any]:
        """A stored sweep: the example with `changes`."""
        answer = self.http.post("/v1/sweeps", json=examples.DEFINITION | changes)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def unchanged(self, *actions: str) -> list[float]:
        """How many requests of each action have changed nothing so far."""
        lines = dict(line.rsplit(" ", 1) for line in self.http.get("/metrics").text.splitlines())
        return [float(lines[f'effillm_unchanged_requests_total{{action="{action}"}}']) for action in actions]

    def jobs(self, sweep_id: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/sweeps/{sweep_id}/jobs", params=parameters)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])


@contextmanager
def serving(database_url: str, **settings: Any) -> Iterator[Api]:
    """The API over this database, in a thread of this process."""
    engine = connect(database_url, "api")
    given = Settings(database_url=database_url, **settings)
    admit(engine, given)
    app = create_app(given, engine)
    server = Server(app)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with closing(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)) as client:
            yield Api(client, engine)
    finally:
        server.should_exit = True
        thread.join()
        engine.dispose()


def declaration(device_id: str = examples.DEVICE_ID, hardware_class: str = "cpu", **changes: Any) -> DeviceDeclaration:
    hardware = Hardware(hardware_class=hardware_class, processor=PROCESSOR, memory_bytes=16 * 10**9)
    values = {
        "id": device_id, "hardware_class": hardware_class, "node": "bench-1", "memory_bytes": 16 * 10**9,
        "hardware": hardware,
    }  # fmt: skip
    return DeviceDeclaration.model_validate(values | changes)


def add_device(engine: sqlalchemy.Engine, device: DeviceDeclaration | None = None, boot_id: str = BOOT) -> str:
    """Id of a device that is registered, attested and free."""
    device = device or declaration()
    with engine.begin() as c:
        queue.register_device(c, device, boot_id)
        queue.attest(c, device.id, boot_id, None, None)
    return device.id


def request(device_id: str = examples.DEVICE_ID, boot_id: str = BOOT, ttl_s: float = TTL_S) -> queue.LeaseRequest:
    return queue.LeaseRequest(
        device_id=device_id, boot_id=boot_id, ttl_s=ttl_s, group_max_age_s=600.0, held_group=None, held_since=None
    )


def lease(engine: sqlalchemy.Engine, device_id: str = examples.DEVICE_ID, ttl_s: float = TTL_S) -> Lease:
    """The next job for the device."""
    with engine.begin() as c:
        granted = queue.lease(c, request(device_id, ttl_s=ttl_s))
    assert granted is not None
    return granted


def finish(engine: sqlalchemy.Engine, held: Lease, outcome: Outcome) -> None:
    with engine.begin() as c:
        done = queue.finish(c, held.device_id, BOOT, held.job_id, held.fence, outcome, 0.5, None)
    assert done.accepted, done.why_not


def measured(held: Lease) -> Measured:
    """A plausible measurement of the leased cell."""
    return Measured(
        samples=tuple(
            Sample(iteration=i, phase=phase, prompt_tokens=128, timestamps_ns=(start, start + 10**7, start + 3 * 10**7))
            for phase in (Phase.WARMUP, Phase.MEASURED, Phase.TTFT)
            for i, start in enumerate(range(10**9, 6 * 10**9, 10**9))
        ),
        stop_reason=StopReason.MAX_ITERATIONS,
        energy_source="no counter on this machine",
        verdict=Verdict.VALID,
        fingerprint=Fingerprint(
            hardware=declaration(held.device_id).hardware, software=Software(python="3.11", kernel="6", code_version="1")
        ),
        child=ChildRecord(
            id=f"child-{held.job_id}-{held.fence}", load_group=held.load_group, pid=1, started_at="2026-01-31T08:00:00Z",
            load_s=0.5, baseline=MemoryReading(ram_bytes=10**8),
        ),
    )  # fmt: skip


def as_measured(held: Lease, slower: float, peak_bytes: int, model: LoadedModel) -> Measured:
    """A measurement of the leased cell that takes `slower` times as long as `measured` and this much memory."""
    plain = measured(held)
    samples = tuple(
        sample.model_copy(update={"timestamps_ns": tuple(round(s0 + slower * (t - s0)) for t in sample.timestamps_ns)})
        for sample in plain.samples
        for s0 in sample.timestamps_ns[:1]
    )
    memory = CellMemory(peak_prefill=MemoryReading(ram_bytes=peak_bytes, ram_peak_bytes=peak_bytes))
    child = plain.child.model_copy(update={"loaded_model": model})
    return plain.model_copy(update={"samples": samples, "memory": memory, "child": child})


PROCESSOR = Processor(
    model="Test CPU", architecture="x86_64", sockets=1, physical_cores=2, logical_cores=2, numa_nodes=1
)
