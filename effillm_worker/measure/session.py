"""One cell, measured: warm up, measure, first tokens alone, memory alone. Read from top to bottom it is the protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from effillm_server.contract.account import Line
from effillm_server.contract.outcome import CellMemory, Phase, Sample, StopReason
from effillm_server.contract.sweep import MIN_ITERATIONS
from effillm_server.contract.timeline import e2e_s, ttft_s
from effillm_worker.engines.base import Batch, Engine, counting_cache
from effillm_worker.measure.budget import Budget
from effillm_worker.measure.channel import Channel
from effillm_worker.measure.prompts import Prompts, prepare
from effillm_worker.measure.stopping import Comparison, Limits, Stopping, is_steady
from effillm_worker.messages import CellRecord, Progress, Run, Window
from effillm_worker.meters.heap import HeapPeak, HeapStages
from effillm_worker.meters.latency import timeline

STEADY_READINGS = 5


def measure(
    engine: Engine,
    channel: Channel,
    run: Run,
    *,
    heap: HeapStages | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> CellRecord:
    """The cell's raw record. `heap` holds the heap's footprint before and after the load.

    Raises Refusal, Unsupported, OutOfMemory, or whatever the framework raises.
    """
    budget = Budget(run.plan, clock)
    prompts = prepare(engine, run.cell, run.context_window)
    session = Session(engine, channel, run, prompts, budget, heap or HeapStages(), warnings=list(prompts.warnings))
    session.warm_up()
    channel.send(Window(open=True))
    stop_reason = session.measure()
    session.first_tokens()
    channel.send(Window(open=False))
    session.memory()
    return session.record(stop_reason)


@dataclass
class Session:
    """A cell on its way: its prompts, its time budget and the samples so far."""

    engine: Engine
    channel: Channel
    run: Run
    prompts: Prompts
    budget: Budget
    heap: HeapStages = field(default_factory=HeapStages)
    heap_peak: HeapPeak = field(default_factory=HeapPeak)
    cache_bytes: int | None = None
    samples: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def warm_up(self) -> None:
        """Generate until the last three iterations agree within 5 %, at least `min`, at most `max` times.

        Always the largest batch: batches of different lengths could never agree.
        """
        bounds, seconds = self.run.plan.warmup, list[float]()
        while len(seconds) < bounds.min or not is_steady(seconds):
            stopped_early = len(seconds) >= bounds.min and not self.budget.allows_warm_up()
            if len(seconds) >= bounds.max or stopped_early:
                self.warnings.append("unstable_warmup")
                break
            sample = self.iterate(Phase.WARMUP, len(seconds), self.prompts.largest, bounds.max)
            seconds.append(e2e_s(sample.timestamps_ns))
            self.budget.learn(e2e_s(sample.timestamps_ns), ttft_s(sample.timestamps_ns))
            self.budget.check_minimum(warmed_up=len(seconds))

    def measure(self) -> StopReason:
        """Full generations until the interval of mean throughput is tight, the maximum reached or the time used up."""
        plan, per_pass = self.run.plan, self.prompts.per_pass
        bounds = plan.iterations
        stopping = Stopping(Limits.in_passes(bounds.min, bounds.max, plan.relative_half_width, per_pass))
        reason, first = None, len(self.samples)
        while reason is None:
            done = len(stopping.e2e_s)
            if not self.budget.allows_measured(done):
                self.budget.check_minimum(warmed_up=plan.warmup.min, measured=done)
                reason = StopReason.TIME_BUDGET
                break
            at_most = max(done + 1, stopping.limits.most)
            sample = self.iterate(Phase.MEASURED, done, self.prompts.batch(done), at_most)
            self.budget.learn(e2e_s(sample.timestamps_ns), ttft_s(sample.timestamps_ns))
            reason = stopping.add(e2e_s(sample.timestamps_ns))
        self._mark(first, stopping)
        return reason

    def first_tokens(self) -> None:
        """As many generations of one token as there were full ones: the paper's first-token latency."""
        count = sum(sample.phase is Phase.MEASURED for sample in self.samples)
        for iteration in range(count):
            self.iterate(Phase.TTFT, iteration, self.prompts.batch(iteration), count)

    def memory(self) -> None:
        """One generation of its own that stands still at every memory stage, its heap looked at all the time; never timed."""
        pauses = Pauses(self.engine, self.channel, self.run.cell.generate_tokens)
        on_processor, in_prefill = not self.engine.allocator(), True

        def on_operation() -> None:
            if in_prefill:  # a decode step's own tensors are small: one sample per token will do
                self.heap_peak.sample()

        def on_token(token: int) -> None:
            nonlocal in_prefill
            in_prefill = False
            self.heap_peak.sample()
            pauses.on_token(token)

        pauses.begin()
        with (
            self.engine.each_operation(on_operation) if on_processor else nullcontext(),
            counting_cache(self.engine) as cache,
        ):
            self.iterate(Phase.MEMORY, 0, self.prompts.largest, 1, on_token)
        self.cache_bytes = cache.bytes

    def record(self, stop_reason: StopReason) -> CellRecord:
        """Everything seen, raw."""
        return CellRecord(
            samples=tuple(self.samples),
            stop_reason=stop_reason,
            memory=CellMemory(account=self._account()),
            warnings=tuple(self.warnings),
            prompts=self.prompts.record,
            details=self.details,
        )

    def iterate(
        self, phase: Phase, iteration: int, batch: Batch, at_most: int, pause: Callable[[int], None] | None = None
    ) -> Sample:
        """One generation of `batch`, kept as a sample of this phase and reported; `pause` is called after each token."""
        tokens = 1 if phase is Phase.TTFT else self.run.cell.generate_tokens
        on_token = self.channel.tick if pause is None else _counted(self.channel.tick, pause)
        stamps = timeline(self.engine, batch, tokens, on_token)
        sample = Sample(iteration=iteration, phase=phase, prompt_tokens=batch.prompt_tokens, timestamps_ns=stamps)
        self.samples.append(sample)
        self.channel.send(Progress(phase=phase, iteration=iteration, at_most=at_most))
        return sample

    def _account(self) -> dict[str, int | None]:
        """What only this side can say of memory: the cache as counted and as predicted, and on a CPU what the heap grew by.

        The last token's keys and values are never computed, so the cache ends one short of prompt and generated tokens.
        """
        cell, longest = self.run.cell, max(self.prompts.largest.lengths)
        predicted = self.engine.kv_cache_bytes(cell.batch_size, longest + cell.generate_tokens - 1)
        lines: dict[str, int | None] = {Line.KV_CACHE: self.cache_bytes, Line.KV_CACHE_PREDICTED: predicted}
        baseline, loaded, peak = self.heap.baseline, self.heap.loaded, self.heap_peak.bytes
        if self.engine.allocator() or baseline is None or loaded is None or peak is None:
            return lines
        lines[Line.HEAP_LOADING] = loaded.footprint - baseline.footprint
        lines[Line.HEAP_FREE_LOADING] = loaded.free - baseline.free
        cache = predicted if self.cache_bytes is None else self.cache_bytes
        if cache is not None:
            # From the load to its peak the heap grows by activations, scratch and cache, less what fits into free blocks: below
            # zero when loading has left more of them than a generation needs.
            lines[Line.ACTIVATIONS] = peak - loaded.footprint - cache
        return lines

    def _mark(self, first: int, stopping: Stopping) -> None:
        """Write the outliers into the measured samples, and into the record what they were compared with."""
        for index, marked in enumerate(stopping.marked, start=first):
            if marked:
                self.samples[index] = self.samples[index].model_copy(update={"outlier": True})
        count, per_pass = len(stopping.e2e_s), self.prompts.per_pass
        if count % per_pass:
            self.warnings.append("partial_pass")
        whole = count - count % per_pass or count  # statistics are over whole passes, where there is one
        left_out = sum(stopping.marked[:whole])
        if whole - left_out < MIN_ITERATIONS:
            self.warnings.append(
                f"few_iterations: {whole - left_out} count ({left_out} of {whole} marked), limit {MIN_ITERATIONS}"
            )
        self.details |= {
            "passes": count / per_pass,
            "relative_half_width": stopping.relative_half_width,
            "outliers": sum(stopping.marked),
            "outliers_among": Comparison.ALL if per_pass == 1 else Comparison.SAME_BATCH,
            "outliers_judged": per_pass == 1 or count >= 3 * per_pass,
            "tokens_in_window": self.run.cell.batch_size * count * (self.run.cell.generate_tokens + 1),
        }


def _counted(tick: Callable[[], None], pause: Callable[[int], None]) -> Callable[[], None]:
    token = 0

    def on_token() -> None:
        nonlocal token
        token += 1
        tick()
        pause(token)

    return on_token


class Pauses:
    """Where the memory iteration stands still: prefill, decode, and five times in the second half of the generation."""

    def __init__(self, engine: Engine, channel: Channel, tokens: int) -> None:
        self._engine = engine
        self._channel = channel
        self._tokens = tokens
        self._steady = steady_tokens(tokens)

    def begin(self) -> None:
        self._stage("prefill_begin", new_peak=True)

    def on_token(self, token: int) -> None:
        """Prefill ends with the first token; decode has a peak of its own from there, not a copy of the whole's."""
        if token == 1:
            self._stage("prefill_end")
            if self._tokens > 1:
                self._stage("decode_begin", new_peak=True)
        if token in self._steady:
            self._stage("steady")
        if token == self._tokens > 1:
            self._stage("decode_end")

    def _stage(self, name: str, *, new_peak: bool = False) -> None:
        self._engine.synchronize()
        if new_peak:
            self._engine.reset_peak()
        self._channel.stage(name, self._engine.allocator())


def steady_tokens(tokens: int) -> frozenset[int]:
    """After which tokens `steady` is read: up to five, evenly spread over the second half of the generation."""
    half = tokens // 2
    span = tokens - half
    readings = min(STEADY_READINGS, span)
    return frozenset(half + -(-span * step // readings) for step in range(1, readings + 1))
