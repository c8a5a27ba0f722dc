"""From a sweep definition to its cells: counted without being built, checked, then made one at a time. Pure."""

from __future__ import annotations

import difflib
import hashlib
import heapq
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from effillm_server.catalog.facts import HardwareFacts, ModelFacts, model_key
from effillm_server.contract.base import CONTRACT_VERSION
from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.quantization import Quantization, method_of
from effillm_server.contract.sweep import (
    SYNTHETIC_WORKLOAD,
    Engine,
    Exclusion,
    ModelChoice,
    SweepDefinition,
    Weights,
)
from effillm_server.errors import BadInput

EXAMPLES = 5
FLOATS: dict[str, str] = {Quantization.FP32: "float32", Quantization.FP16: "float16", Quantization.BF16: "bfloat16"}

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

# Where cells of one load group differ, sorted as the canonical text has them.
_SHAPE = ("batch_size", "generate_tokens", "sequence_length", "workload")

Verdict = tuple[InfeasibleReason, str]


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its place in the matrix. `infeasible` says why it cannot run where that is known beforehand."""

    ordinal: int
    cell: Cell
    digest: str
    infeasible: Verdict | None


@dataclass(frozen=True)
class Preview:
    """What a sweep would store: `total` = `pending` + all of `infeasible`; `excluded` cells are in none of them."""

    total: int
    pending: int
    excluded: int
    infeasible: dict[InfeasibleReason, int]
    examples: tuple[PlannedCell, ...] = field(default=())


def count(definition: SweepDefinition) -> int:
    """Cells of the matrix before exclusions: a product of integers, whatever their size."""
    texts = sum(workload != SYNTHETIC_WORKLOAD for workload in definition.workload)
    synthetic = len(definition.workload) - texts
    prompts = texts + synthetic * len(definition.sequence_length)
    axes = (
        definition.models, definition.hardware, definition.runtime, definition.engine, definition.quantization,
        definition.generate_tokens, definition.batch_size,
    )  # fmt: skip
    total = prompts * definition.measurement.repeats
    for axis in axes:
        total *= len(axis)
    return total


def check(
    definition: SweepDefinition, known_hardware: Collection[str], workloads: Collection[str], max_jobs: int
) -> None:
    """Raises BadInput unless the sweep is small enough, every name in it is known and a cell is left to measure."""
    total = count(definition)
    if total > max_jobs:
        raise BadInput(
            f"sweep expands to {total:,} jobs, the limit is {max_jobs:,}: drop an axis or raise EFFILLM_MAX_JOBS",
        )
    for hardware in definition.hardware:
        if hardware not in known_hardware:
            raise _unknown("hardware", "hardware class", hardware, known_hardware, "or join a box that has it first")
    for workload in definition.workload:
        if workload != SYNTHETIC_WORKLOAD and workload not in workloads:
            raise _unknown("workload", "workload", workload, [*workloads, SYNTHETIC_WORKLOAD])
    for index, exclusion in enumerate(definition.exclude):
        _check_exclusion(definition, index, exclusion)
    if definition.exclude and next(_points(definition), None) is None:
        raise BadInput("exclude: the exclusions remove every cell of the sweep; drop one", field="exclude")


def expand(
    definition: SweepDefinition, models: Mapping[str, ModelFacts], hardware: Mapping[str, HardwareFacts]
) -> Iterator[PlannedCell]:
    """The cells that are not excluded, one at a time, always in the same order.

    Load groups are contiguous; within one the size (batch x sequence) ascends, so that out of memory is met from below.
    `models` holds the facts of every choice by `catalog.facts.model_key`, or by id alone.
    A hardware class the catalog lacks is taken for a GPU.
    """
    plan = _canonical(definition.measurement.model_dump(mode="json"))
    group: _Group | None = None
    for ordinal, point in enumerate(_points(definition)):
        if group is None or not group.holds(point):
            group = _Group(point, _cell(point, _facts(point.model, models), hardware.get(point.hardware)), plan)
        yield PlannedCell(ordinal, group.cell(point), group.digest(point), _infeasible(point, models, hardware))


def preview(
    definition: SweepDefinition, models: Mapping[str, ModelFacts], hardware: Mapping[str, HardwareFacts]
) -> Preview:
    """How many cells would be pending and how many infeasible, by reason, with the first of these as examples."""
    plan = _canonical(definition.measurement.model_dump(mode="json"))
    total = 0
    infeasible: dict[InfeasibleReason, int] = {}
    examples: list[PlannedCell] = []
    for ordinal, point in enumerate(_points(definition)):
        total += 1
        verdict = _infeasible(point, models, hardware)
        if verdict is None:
            continue
        infeasible[verdict[0]] = infeasible.get(verdict[0], 0) + 1
        if len(examples) < EXAMPLES:
            cell = _cell(point, _facts(point.model, models), hardware.get(point.hardware))
            examples.append(PlannedCell(ordinal, cell, _digest(cell, plan), verdict))
    pending = total - sum(infeasible.values())
    return Preview(total, pending, count(definition) - total, infeasible, tuple(examples))


def compute_dtype(quantization: str, hardware_kind: str) -> str:
    """The dtype computed in: the precision's own; under quantized weights half precision on a GPU and float32 on a CPU."""
    if quantization in FLOATS:
        return FLOATS[quantization]
    return "float32" if hardware_kind == "cpu" else "float16"


@dataclass(frozen=True, slots=True)
class _Point:
    """The coordinates of one cell."""

    model: ModelChoice
    hardware: str
    runtime: str
    engine: Engine
    quantization: str
    repeat: int
    batch_size: int
    sequence_length: int | None
    workload: str
    generate_tokens: int


class _Group:
    """What the cells of one load group share, put together once: a sweep may have a million of them."""

    def __init__(self, first: _Point, cell: Cell, plan_text: str) -> None:
        self._first = first
        self._cell = cell
        fields = [
            f'"{name}":' + ("%s" if name in _SHAPE else _canonical(value).replace("%", "%%"))
            for name, value in sorted(cell.__dict__.items())
        ]
        self._text = f"[{CONTRACT_VERSION},{{{','.join(fields)}}},{plan_text.replace('%', '%%')}]"
        self._workloads: dict[str, str] = {}

    def holds(self, point: _Point) -> bool:
        first = self._first
        return (
            point.model is first.model
            and point.hardware is first.hardware
            and point.runtime is first.runtime
            and point.engine is first.engine
            and point.quantization is first.quantization
            and point.repeat == first.repeat
        )

    def cell(self, point: _Point) -> Cell:
        return self._cell.model_copy(update={name: getattr(point, name) for name in _SHAPE})

    def digest(self, point: _Point) -> str:
        """The same as `cell.digest(plan)`; a test holds the two together."""
        length = "null" if point.sequence_length is None else point.sequence_length
        if point.workload not in self._workloads:
            self._workloads[point.workload] = _canonical(point.workload)
        text = self._text % (point.batch_size, point.generate_tokens, length, self._workloads[point.workload])
        return hashlib.sha256(text.encode()).hexdigest()


def _points(definition: SweepDefinition) -> Iterator[_Point]:
    excluded = [_predicate(exclusion) for exclusion in definition.exclude]
    groups = product(
        definition.hardware, definition.runtime, definition.engine, definition.models, definition.quantization,
        range(1, definition.measurement.repeats + 1),
    )  # fmt: skip
    for hardware, runtime, engine, model, quantization, repeat in groups:
        for batch_size, sequence_length, workload, tokens in _shapes(definition):
            point = _Point(
                model, hardware, runtime, engine, quantization, repeat, batch_size, sequence_length, workload, tokens
            )
            if not any(matches(point) for matches in excluded):
                yield point


def _shapes(definition: SweepDefinition) -> Iterator[tuple[int, int | None, str, int]]:
    """(batch, sequence, workload, tokens) of one load group by ascending size; text workloads, of no stated size, first."""
    batches, lengths = sorted(definition.batch_size), sorted(definition.sequence_length)
    texts = [workload for workload in definition.workload if workload != SYNTHETIC_WORKLOAD]
    tokens = sorted(definition.generate_tokens)
    for batch, workload, n in product(batches, texts, tokens):
        yield batch, None, workload, n
    if SYNTHETIC_WORKLOAD in definition.workload:
        # Merged rather than sorted: one ascending run per batch size keeps memory at the length of an axis.
        runs = [_run(batch, lengths) for batch in batches]
        for (_, batch, length), n in _times(heapq.merge(*runs), tokens):
            yield batch, length, SYNTHETIC_WORKLOAD, n


def _times(shapes: Iterator[tuple[int, int, int]], tokens: list[int]) -> Iterator[tuple[tuple[int, int, int], int]]:
    """As itertools.product, which would first hold all of `shapes` in memory."""
    for shape in shapes:
        for n in tokens:
            yield shape, n


def _run(batch: int, lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    return ((batch * length, batch, length) for length in lengths)


def _predicate(exclusion: Exclusion) -> Callable[[_Point], bool]:
    """Whether a point agrees with every axis the exclusion names."""
    wanted = [(name, frozenset(values)) for name in Exclusion.model_fields if (values := getattr(exclusion, name))]

    def matches(point: _Point) -> bool:
        return all(not values.isdisjoint(_coordinates(point, name)) for name, values in wanted)

    return matches


def _coordinates(point: _Point, name: str) -> tuple[object, ...]:
    """What an exclusion may call a point's place on an axis: a quantization by its label or by its method's bare name."""
    match name:
        case "model":
            return (point.model.id,)
        case "weights":
            return (point.model.weights,)
        case "quantization":
            return (point.quantization, method_of(point.quantization))
        case _:
            return (getattr(point, name),)


def _cell(point: _Point, model: ModelFacts, hardware: HardwareFacts | None) -> Cell:
    choice = point.model
    # Synthetic weights come from the architecture stored with the sweep: no hub revision has a part in them.
    revision = choice.revision if choice.weights is Weights.SYNTHETIC else model.revision or choice.revision
    # Every value was validated with the definition; doing it again costs most of a large sweep's time.
    return Cell.model_construct(
        model=choice.id,
        weights=choice.weights,
        revision=revision,
        quantization=point.quantization,
        dtype=compute_dtype(point.quantization, _kind(hardware)),
        engine=point.engine,
        runtime=point.runtime,
        hardware=point.hardware,
        batch_size=point.batch_size,
        sequence_length=point.sequence_length,
        workload=point.workload,
        generate_tokens=point.generate_tokens,
        repeat=point.repeat,
    )


def _facts(choice: ModelChoice, models: Mapping[str, ModelFacts]) -> ModelFacts:
    return models.get(model_key(choice)) or models[choice.id]


def _digest(cell: Cell, plan_text: str) -> str:
    """The same as `cell.digest(plan)` with the plan already in text; a test holds the two together."""
    return hashlib.sha256(f"[{CONTRACT_VERSION},{_canonical(cell.__dict__)},{plan_text}]".encode()).hexdigest()


def _kind(hardware: HardwareFacts | None) -> str:
    return "gpu" if hardware is None else hardware.kind


def _infeasible(
    point: _Point, models: Mapping[str, ModelFacts], hardware: Mapping[str, HardwareFacts]
) -> Verdict | None:
    facts = hardware.get(point.hardware)
    unsupported: Mapping[Any, str] = {} if facts is None else facts.unsupported
    if (method := method_of(point.quantization)) in unsupported:
        return InfeasibleReason.UNSUPPORTED, unsupported[method]
    window = _facts(point.model, models).context_window
    # The prompts of a text workload are cut to fit; one token of prompt is the least that can be left.
    prompt = point.sequence_length or 1
    if window is None or prompt + point.generate_tokens <= window:
        return None
    return InfeasibleReason.CONTEXT_WINDOW, _too_long(point, prompt, window)


def _too_long(point: _Point, prompt: int, window: int) -> str:
    fits = window - prompt
    needed = f"{prompt:,} prompt + {point.generate_tokens:,} generated = {prompt + point.generate_tokens:,} tokens"
    answer = (
        f"generate_tokens up to {fits:,} fits"
        if fits > 0
        else f"no generate_tokens fits, the sequence_length must be at most {window - 1:,}"
    )
    return f"{needed} exceed the context window of {window:,} of {point.model.id}: {answer}"


def _check_exclusion(definition: SweepDefinition, index: int, exclusion: Exclusion) -> None:
    """An exclusion that names what is not on the axis removes nothing: most likely a typo, so it is refused."""
    for name in Exclusion.model_fields:
        present: tuple[object, ...]
        match name:
            case "model":
                present = tuple(choice.id for choice in definition.models)
            case "weights":
                present = tuple(choice.weights for choice in definition.models)
            case "quantization":
                present = (*definition.quantization, *map(method_of, definition.quantization))
            case _:
                present = getattr(definition, name)
        for value in getattr(exclusion, name) or ():
            if value not in present:
                raise _unknown(f"exclude[{index}].{name}", f"{name} of this sweep", value, [str(p) for p in present])


def _unknown(key: str, noun: str, value: object, known: Collection[str], or_else: str = "") -> BadInput:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(sorted(set(known)))
    tail = f", {or_else}" if or_else else ""
    return BadInput(
        f"{key}: {str(value)!r} is not a {noun}.{suggestion} Choose from {names}{tail}", field=key.partition("[")[0]
    )
