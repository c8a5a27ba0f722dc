"""The interface every engine implements, and the registry that finds it by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import InfeasibleReason, LoadedModel
from effillm_server.contract.quality import Quality, QualityPlan


class Unsupported(Exception):
    """This engine, method or runtime cannot do what the cell asks, and says why."""


class OutOfMemory(Exception):
    """The framework's allocator refused; `reason` says on which side."""

    def __init__(self, reason: InfeasibleReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# Called while something long is prepared: parts of it done, and of how many at most, 0 where that is not known.
Tick = Callable[[int, int], None]


def silent(*_: Any) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class LoadRequest:
    """Everything an engine needs to load: the group's cell, threads, device, where weights live.

    `on_progress` is called with what is being prepared, parts of it done and of how many at most.
    """

    cell: Cell
    threads: int
    device: str
    cache_dir: str
    architecture: dict[str, Any] | None = None
    model_root: str | None = None
    allow_pickled: bool = False
    allow_hub: bool = True
    on_progress: Callable[[str, int, int], None] = silent


@dataclass(frozen=True)
class Batch:
    """A prepared batch on the device. `tokens` is opaque to the session; `prompt_tokens` counts the whole batch, no padding."""

    tokens: Any
    prompt_tokens: int
    lengths: tuple[int, ...]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """What the engine's framework says about itself: its linear algebra library, and threads as they really are.

    `once_s` is time spent on what is made once and kept, such as a synthetic checkpoint, and on making the process warm: no
    part of a load time.
    """

    blas: str | None = None
    once_s: float = 0.0
    threads: dict[str, int | str | None] = field(default_factory=dict)


class Engine(Protocol):
    """One loaded model. Marks are opaque until `resolve` turns them into nanoseconds after the iteration."""

    simulated: bool

    def start(self, request: LoadRequest) -> Environment:
        """Import the framework, set its threads, run what loading and generating need: what `baseline` memory is read after.

        Raises Unsupported, OutOfMemory.
        """
        ...

    def load(self, request: LoadRequest) -> LoadedModel:
        """Load the model. Raises Unsupported, OutOfMemory."""
        ...

    def ordinary_tokens(self) -> Sequence[int]:
        """Token ids a synthetic prompt may hold: the vocabulary less begin, end and padding tokens."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt by the model's own tokenizer (synthetic weights: the catalog's)."""
        ...

    def batch(self, prompts: Sequence[Sequence[int]]) -> Batch:
        """Pad `prompts` (token ids) to one batch and move it to the device."""
        ...

    def generate(self, batch: Batch, tokens: int, mark: Callable[[], None]) -> None:
        """Generate exactly `tokens` tokens per sequence; call `mark` once when each token k = 1 ... n of every sequence exists."""
        ...

    def mark(self) -> Any:
        """A timestamp now in the device's order: an event on a GPU, perf_counter_ns on a CPU. Adds no synchronisation."""
        ...

    def resolve(self, marks: Sequence[Any]) -> list[int]:
        """Nanoseconds of each mark, one clock; called after `synchronize`."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done everything it was given."""
        ...

    def allocator(self) -> dict[str, int]:
        """Bytes by the framework's device allocator: allocated, reserved, peak_allocated, peak_reserved; empty on a CPU."""
        ...

    def reset_peak(self) -> None:
        """Start a new peak of the device allocator."""
        ...

    def each_operation(self, then: Callable[[], None]) -> AbstractContextManager[None]:
        """A context in which `then` is called after every operation of the framework. Slow: never in a timed iteration."""
        ...

    def kv_cache_bytes(self, batch_size: int, tokens: int) -> int | None:
        """Predicted key-value cache: 2 x layers x kv heads x head size x tokens x batch x bytes; None when unknown."""
        ...

    def context_window(self) -> int | None:
        """Most tokens (prompt + generated) the model takes."""
        ...

    def unload(self) -> None:
        """Drop the model, collect garbage, empty the allocator's cache."""
        ...


@dataclass
class CacheCount:
    """Bytes of the key-value cache after the latest forward pass; None before the first and where they cannot be counted."""

    bytes: int | None = None


@runtime_checkable
class CountingCache(Protocol):
    """What an engine can do besides whose cache is made of tensors that it can see."""

    def counting_cache(self) -> AbstractContextManager[CacheCount]:
        """A context in which the cache is counted after every forward pass: never in a timed iteration."""
        ...


def counting_cache(engine: Engine) -> AbstractContextManager[CacheCount]:
    """The engine's own count, or one that stays None."""
    return engine.counting_cache() if isinstance(engine, CountingCache) else nullcontext(CacheCount())


@runtime_checkable
class Judging(Protocol):
    """What an engine can do besides whose weights have a quality."""

    def prepare_judging(self, plan: QualityPlan) -> None:
        """Between `start` and `load`: make what judging needs of other models, while this one is not in memory yet. Never raises."""
        ...

    def judge(self, plan: QualityPlan, time_limit_s: float, tick: Callable[[int, int], None] | None = None) -> Quality:
        """The loaded model's quality; whatever could not be found has its reason in the record."""
        ...


BUILTIN = {
    "transformers": "effillm_worker.engines.transformers:TransformersEngine",
    "simulated": "effillm_worker.engines.simulated:SimulatedEngine",
}


def create(name: str) -> Engine:
    """A new engine by registry name or entry point of the group `effillm.engines`. Raises Unsupported for others."""
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        made: Engine = getattr(importlib.import_module(module), attribute)()
        return made
    for point in entry_points(group="effillm.engines", name=name):
        extra: Engine = point.load()()
        return extra
    raise Unsupported(f"no engine {name!r} in this runtime; there are {', '.join(sorted(BUILTIN))}")
