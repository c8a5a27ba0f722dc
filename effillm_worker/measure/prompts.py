"""The prompts of a cell: token ids of an exact length, or a text workload in its fixed order, cut to fit the window."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.sweep import SYNTHETIC_WORKLOAD
from effillm_worker.engines.base import Batch, Engine, Unsupported
from effillm_worker.measure.refusal import Refusal

CUT_RULE = "a prompt longer than the context window less the generated tokens loses its beginning and keeps its end"


@dataclass(frozen=True)
class Prompts:
    """The batches of one pass over the workload, on the device, and the account of them for the record."""

    batches: tuple[Batch, ...]
    record: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def per_pass(self) -> int:
        return len(self.batches)

    def batch(self, iteration: int) -> Batch:
        """The batch of an iteration: the fixed order, cycling."""
        return self.batches[iteration % len(self.batches)]

    @property
    def largest(self) -> Batch:
        """The batch with the longest sequence: warm-up and memory use it, so that no later batch meets a cold allocator."""
        return max(self.batches, key=lambda batch: max(batch.lengths))


def prepare(engine: Engine, cell: Cell, context_window: int | None) -> Prompts:
    """The cell's prompts, tokenised, padded and on the device. Raises Refusal, Unsupported."""
    window = context_window if context_window is not None else engine.context_window()
    if cell.workload == SYNTHETIC_WORKLOAD:
        return _synthetic(engine, cell, window)
    return _text(engine, cell, window)


def synthetic_tokens(ordinary: Sequence[int], length: int, sequence: int) -> list[int]:
    """`length` token ids for one sequence of a batch: the same for every configuration, another for each sequence."""
    # Seeding by text hashes with SHA-512: the same ids on every machine and Python version.
    return random.Random(f"effillm synthetic prompt {sequence}").choices(ordinary, k=length)  # noqa: S311


def _synthetic(engine: Engine, cell: Cell, window: int | None) -> Prompts:
    length = cell.sequence_length
    if length is None:
        raise Unsupported("workload synthetic needs a sequence_length, found none")
    if window is not None and length + cell.generate_tokens > window:
        fits = window - length
        advice = f"at most {fits} generated tokens fit" if fits > 0 else f"prompts of at most {window - 1} tokens fit"
        raise Refusal(
            InfeasibleReason.CONTEXT_WINDOW,
            f"{length} prompt + {cell.generate_tokens} generated tokens exceed the context window of {window}: {advice}",
        )
    ordinary = engine.ordinary_tokens()
    batch = engine.batch([synthetic_tokens(ordinary, length, sequence) for sequence in range(cell.batch_size)])
    return Prompts((batch,), {"workload": cell.workload, "lengths": [length], "iterations_per_pass": 1})


def _text(engine: Engine, cell: Cell, window: int | None) -> Prompts:
    room = None if window is None else window - cell.generate_tokens
    if room is not None and room < 1:
        raise Refusal(
            InfeasibleReason.CONTEXT_WINDOW,
            f"{cell.generate_tokens} generated tokens leave no room for a prompt in the context window of {window}: "
            f"at most {(window or 0) - 1} fit",
        )
    identities, texts = _workload(cell.workload)
    encoded = engine.encode(texts)
    kept = [tokens if room is None else tokens[-room:] for tokens in encoded]
    cut = [name for name, tokens in zip(identities, encoded, strict=True) if room is not None and len(tokens) > room]
    batches = tuple(engine.batch([kept[index] for index in members]) for members in passes(len(kept), cell.batch_size))
    record: dict[str, Any] = {
        "workload": cell.workload,
        "prompts": list(identities),
        "lengths": [len(tokens) for tokens in kept],
        "iterations_per_pass": len(batches),
    }
    if cut:
        record |= {"cut": cut, "cut_rule": CUT_RULE, "cut_to": room}
    return Prompts(batches, record, ("prompts_cut",) if cut else ())


def passes(prompts: int, batch_size: int) -> list[list[int]]:
    """Which prompts make up each batch of one pass. The last batch is filled up from the beginning of the order."""
    starts = range(0, prompts, batch_size)
    return [[(start + offset) % prompts for offset in range(batch_size)] for start in starts]


def _workload(name: str) -> tuple[list[str], list[str]]:
    # Only text workloads need the catalog; a synthetic cell's process never loads it.
    from effillm_server import catalog

    workloads = catalog.load().workloads
    if name not in workloads:
        raise Unsupported(f"no workload {name!r} in this version's catalog; there are {', '.join(sorted(workloads))}")
    chosen = workloads[name].prompts
    return [prompt.id for prompt in chosen], [prompt.render() for prompt in chosen]
