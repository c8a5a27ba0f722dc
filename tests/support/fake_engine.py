"""An engine with known delays and known bytes on a clock of its own: every metric has a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import LoadedModel
from effillm_worker.engines.base import Batch, Environment, LoadRequest

NS = 1_000_000_000


def cell(**changes: Any) -> Cell:
    """A small cell of the transformers engine on a CPU."""
    values: dict[str, Any] = {
        "model": "lab/tiny",
        "weights": "synthetic",
        "quantization": "fp32",
        "dtype": "float32",
        "engine": "transformers",
        "runtime": "default",
        "hardware": "cpu",
        "batch_size": 2,
        "sequence_length": 16,
        "workload": "synthetic",
        "generate_tokens": 8,
    }
    return Cell.model_validate(values | changes)


@dataclass
class FakeEngine:
    """Prefill and step take what `prefill_s` and `step_s` say for the generation's number, 0, 1, 2 ...; a mark costs nothing."""

    prefill_s: Callable[[int], float] = lambda generation: 0.5
    step_s: Callable[[int], float] = lambda generation: 0.1
    window: int | None = 2048
    device_bytes: bool = True
    simulated: bool = False
    error_at: dict[int, BaseException] = field(default_factory=dict)
    extra_tokens: int = 0
    now_ns: int = 0
    allocated: int = 1000
    peak: int = 1000
    generations: list[tuple[int, int]] = field(default_factory=list)
    unloaded: bool = False

    def seconds(self) -> float:
        """The clock the session's budget runs on: the same the marks come from."""
        return self.now_ns / NS

    def start(self, request: LoadRequest) -> Environment:
        return Environment(blas="fake", threads={"intra_op": request.threads, "inter_op": 1})

    def load(self, request: LoadRequest) -> LoadedModel:
        return LoadedModel(parameters=100, weight_bytes=400, bits_per_weight=32.0, dtype="float32")

    def ordinary_tokens(self) -> Sequence[int]:
        return range(3, 103)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return [list(prompt.encode()) for prompt in prompts]

    def batch(self, prompts: Sequence[Sequence[int]]) -> Batch:
        lengths = tuple(len(prompt) for prompt in prompts)
        return Batch([list(prompt) for prompt in prompts], sum(lengths), lengths)

    def generate(self, batch: Batch, tokens: int, mark: Callable[[], None]) -> None:
        generation = len(self.generations)
        if generation in self.error_at:
            raise self.error_at[generation]
        self.generations.append((len(batch.lengths), tokens))
        for token in range(1, tokens + 1 + self.extra_tokens):
            first = token == 1
            self.now_ns += round((self.prefill_s(generation) if first else self.step_s(generation)) * NS)
            self.allocated = 5000 if first else 2000 + token
            self.peak = max(self.peak, 9000 if first else self.allocated)
            mark()
        self.allocated = 1000

    def mark(self) -> int:
        return self.now_ns

    def resolve(self, marks: Sequence[Any]) -> list[int]:
        return list(marks)

    def synchronize(self) -> None:
        return None

    def allocator(self) -> dict[str, int]:
        return {"allocated": self.allocated, "peak_allocated": self.peak} if self.device_bytes else {}

    def reset_peak(self) -> None:
        self.peak = self.allocated

    def each_operation(self, then: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def kv_cache_bytes(self, batch_size: int, tokens: int) -> int | None:
        return 10 * batch_size * tokens

    def context_window(self) -> int | None:
        return self.window

    def unload(self) -> None:
        self.unloaded = True
