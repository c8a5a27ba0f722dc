"""Work for the lab while things break: sweeps sent over REST by a client that repeats itself until it has an answer."""

from __future__ import annotations

import queue
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

PLAN: dict[str, Any] = {"warmup": 3, "iterations": 5, "time_limit_s": 30}
CLASSES = ("t4", "a100", "rtx-4090")
# A cell of these ends when somebody ends it.
HANGING = ("simulated/stall", "simulated/hang", "simulated/ignore-term", "simulated/orphan")


@dataclass(frozen=True)
class Accepted:
    """A sweep the server has answered for: its client will rely on it."""

    sweep_id: str
    total: int


@dataclass
class Sending:
    """One submission on its way. `begun` is set when the first request is about to be sent, `done` with the answer."""

    key: str
    definition: dict[str, Any]
    begun: threading.Event
    done: threading.Event
    accepted: Accepted | None = None
    requests: int = 0
    refused: str | None = None


class Client:
    """Sends sweeps one after another in a thread of its own; an answer that does not come is asked for again."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self.sent: list[Sending] = []
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()

    @property
    def accepted(self) -> dict[str, Accepted]:
        """By idempotency key."""
        return {one.key: one.accepted for one in self.sent if one.accepted is not None}

    @property
    def is_busy(self) -> bool:
        return any(not one.done.is_set() for one in self.sent)

    def send(self, definition: dict[str, Any]) -> Sending:
        sending = Sending(uuid.uuid4().hex, definition, threading.Event(), threading.Event())
        self.sent.append(sending)
        self._inbox.put(lambda: self._submit(sending))
        return sending

    def cancel(self, sweep_id: str) -> None:
        self._inbox.put(lambda: self._post(f"/v1/sweeps/{sweep_id}/cancel", None, {}))

    def close(self) -> None:
        self._ending.set()
        self._inbox.put(None)
        self._thread.join(30)

    def _run(self) -> None:
        while (task := self._inbox.get()) is not None:
            task()

    def _submit(self, sending: Sending) -> None:
        sending.begun.set()
        answer = self._post("/v1/sweeps", sending.definition, {"Idempotency-Key": sending.key}, sending)
        if answer is not None:
            sending.accepted = Accepted(answer["id"], answer["total"])
        sending.done.set()

    def _post(
        self, path: str, body: dict[str, Any] | None, headers: dict[str, str], sending: Sending | None = None
    ) -> dict[str, Any] | None:
        while not self._ending.is_set():
            if sending is not None:
                sending.requests += 1
            try:
                response = httpx.post(self._api + path, json=body, headers=headers, timeout=20)
            except httpx.HTTPError:
                self._ending.wait(0.2)
                continue
            if response.status_code in (200, 201):
                return dict(response.json())
            if response.status_code < 500 and response.status_code != 429:
                self.problems.append(f"{path} answered {response.status_code}: {response.text[:500]}")
                return None
            self._ending.wait(0.2)
        return None


class Definitions:
    """Sweeps drawn from a seed: mostly ordinary cells, now and then models that declare a fault."""

    def __init__(self, seed: int, classes: tuple[str, ...]) -> None:
        self._random = random.Random(seed)
        self.classes = classes
        self._count = 0

    def ordinary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Twelve to seventy cells that measure, from 0.1 to 2 s each, in a few load groups on these classes."""
        dice = self._random
        slow = dice.sample(["simulated/slow-0.02", "simulated/slow-0.05"], dice.choice((1, 1, 2)))
        quick = dice.sample(["simulated/100", "simulated/200", "simulated/slow-load-1"], 1)
        return self._sweep(
            [*slow, *quick], list(classes),
            batch_size=[1, 2, 4, 8][: dice.choice((3, 4))], sequence_length=[16, 32][: dice.choice((1, 2))],
            priority=dice.choice((0, 0, 0, 5)), isolation=dice.choice(("group", "group", "group", "cell")),
        )  # fmt: skip

    def few(self) -> dict[str, Any]:
        """Four quick cells."""
        return self._sweep(["simulated/100"], [self._random.choice(self.classes)], batch_size=[1, 2, 4, 8])

    def with_faults(self, models: tuple[str, ...]) -> dict[str, Any]:
        """A cell or two of models that break by themselves."""
        return self._sweep(list(models), [self._random.choice(self.classes)], batch_size=[1, 8, 32])

    def one_cell(self, model: str, hardware: str | None = None) -> dict[str, Any]:
        """Before everything else: it may hang three times until its deadline, and nobody wants to wait for it at the end."""
        return self._sweep([model], [hardware or self._random.choice(self.classes)], batch_size=[1], priority=10)

    def alike(self, hardware: Sequence[str], cells: int) -> dict[str, Any]:
        """Cells that all take the same time, for a rate to be measured."""
        return self._sweep(
            ["simulated/slow-0.02"], list(hardware), batch_size=[1], sequence_length=list(range(1, cells + 1))
        )

    def real(self) -> dict[str, Any]:
        """A tiny model that really runs, on this box's processors."""
        definition = self._sweep(["tiny/llama"], ["cpu"], batch_size=[1, 2], sequence_length=[8])
        return definition | {"engine": ["transformers"], "quantization": ["fp32"]}

    def _sweep(self, models: list[str], hardware: list[str], **changes: Any) -> dict[str, Any]:
        self._count += 1
        base: dict[str, Any] = {
            "name": f"campaign {self._count}", "models": [{"id": name, "weights": "synthetic"} for name in models],
            "hardware": hardware, "quantization": ["fp16"], "batch_size": [1], "sequence_length": [16],
            "generate_tokens": 4, "engine": ["simulated"], "runtime": ["witnessed"], "measurement": PLAN,
        }  # fmt: skip
        return base | changes


def wait_quiet(client: Client, within_s: float) -> None:
    """Returns when every submission has its answer."""
    until = time.monotonic() + within_s
    while client.is_busy and time.monotonic() < until:
        time.sleep(0.1)
