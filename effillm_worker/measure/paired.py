"""One process with one loaded model that runs, as it is told, blocks of EffiLLM's own iterations or of a bare loop.

Reads `session N`, `bare N` (generations) and `session-first N`, `bare-first N` (pairs of first tokens, that arm first) from
standard input and answers each with one JSON line. Started by `effillm_worker.paired`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import Phase
from effillm_server.contract.sweep import MeasurementPlan
from effillm_server.contract.timeline import throughput_tok_s, ttft_s
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.measure.budget import Budget
from effillm_worker.measure.channel import Channel
from effillm_worker.measure.prompts import prepare
from effillm_worker.measure.session import Session
from effillm_worker.messages import Run


def main() -> None:
    order = json.loads(sys.argv[1])
    cell = Cell.model_validate(order["cell"])
    engine = TransformersEngine()
    request = LoadRequest(
        cell=cell, threads=order["threads"], device=order["device"], cache_dir=order["cache_dir"], architecture=order["architecture"]
    )  # fmt: skip
    engine.start(request)
    engine.load(request)
    prompts = prepare(engine, cell, None)
    plan = MeasurementPlan()
    session = Session(
        engine, Channel.from_environment(os.environ), Run(cell=cell, plan=plan), prompts, Budget(plan, time.monotonic)
    )
    arms = {
        "session": lambda count: _session(session, count),
        "bare": lambda count: _bare(engine, prompts.largest, cell, count),
        "session-first": lambda count: _first_tokens(session, engine, count, ("session", "bare")),
        "bare-first": lambda count: _first_tokens(session, engine, count, ("bare", "session")),
    }
    for _ in range(3):
        for name in arms:
            arms[name](1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        print(json.dumps(arms[name](int(count))), flush=True)


def _session(session: Session, count: int) -> dict[str, float]:
    """EffiLLM's own iterations with every meter of the child on; throughput as its rows state it."""
    batch, size = session.prompts.largest, session.run.cell.batch_size
    begin = time.perf_counter()
    full = [session.iterate(Phase.MEASURED, number, batch, count) for number in range(count)]
    wall_s = time.perf_counter() - begin
    speeds = (throughput_tok_s(sample.timestamps_ns, size) for sample in full)
    return {"throughput_tok_s": statistics.fmean(speeds), "wall_s": wall_s}


def _bare(engine: TransformersEngine, batch: Any, cell: Cell, count: int) -> dict[str, float]:
    """The loop anybody would write around `generate`: the same model, prompt and settings, one clock, no callback."""
    begin = time.perf_counter()
    full = [_generate_s(engine, batch, cell.generate_tokens) for _ in range(count)]
    wall_s = time.perf_counter() - begin
    produced = cell.generate_tokens * cell.batch_size
    return {"throughput_tok_s": statistics.fmean(produced / seconds for seconds in full), "wall_s": wall_s}


def _first_tokens(session: Session, engine: TransformersEngine, count: int, order: tuple[str, str]) -> dict[str, float]:
    """The median time to first token of both, alternating: so short a time must be compared with its neighbour's.

    The bare loop takes the moment from the stream of tokens that `generate` itself offers; `bare_wall` is when that generation of
    one token has come back, its cache given up.
    """
    batch, seconds = session.prompts.largest, {name: list[float]() for name in (*order, "bare_wall")}
    for number in range(count):
        for name in order:
            if name == "session":
                stamps = session.iterate(Phase.TTFT, number, batch, count).timestamps_ns
                seconds[name].append(ttft_s(stamps))
            else:
                stream = _Stream()
                seconds["bare_wall"].append(_generate_s(engine, batch, 1, stream))
                seconds[name].append(stream.first_s)
    return {name: statistics.median(values) for name, values in seconds.items()}


class _Stream:
    """What `generate` puts its tokens into, the prompt first: seconds from here to the first that it made."""

    def __init__(self) -> None:
        self._begin, self._puts, self.first_s = time.perf_counter(), 0, 0.0

    def put(self, _: Any) -> None:
        self._puts += 1
        if self._puts == 2:
            self.first_s = time.perf_counter() - self._begin

    def end(self) -> None:
        return None


def _generate_s(engine: TransformersEngine, batch: Any, tokens: int, stream: _Stream | None = None) -> float:
    begin = time.perf_counter()
    out = engine._model.generate(**batch.tokens, generation_config=engine._settings(tokens), streamer=stream)
    elapsed = time.perf_counter() - begin
    if out.shape[1] != max(batch.lengths) + tokens:
        raise RuntimeError(f"asked for {tokens} tokens, got {out.shape[1] - max(batch.lengths)}")
    return elapsed


if __name__ == "__main__":
    main()
