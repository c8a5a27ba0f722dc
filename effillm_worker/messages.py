"""What the actor's side and the measuring child say to each other: one JSON object a line, over pipes of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from effillm_server.contract.base import Contract
from effillm_server.contract.fingerprint import Software
from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import CellMemory, InfeasibleReason, LoadedModel, Sample, StopReason
from effillm_server.contract.quality import Quality, QualityPlan
from effillm_server.contract.sweep import MeasurementPlan

# How long the unquantized model may be read before a quantized one is loaded. Longer costs the agreement, never the cells: this much
# is added to the time that loading may take.
READING_S = 1200.0


class Open(Contract):
    """Load the model of this cell's group. `architecture` is the catalog's configuration for synthetic weights, if known.

    `quality`: what `Judge` will ask for; what that needs of other models is made ready before this one is loaded, within READING_S.
    """

    kind: Literal["open"] = "open"
    cell: Cell
    threads: int
    device: Literal["cpu", "cuda"]
    architecture: dict[str, Any] | None = None
    model_root: str | None = None
    cache_dir: str
    allow_pickled: bool = False
    allow_hub: bool = True
    memory_limit_bytes: int | None = None
    quality: QualityPlan | None = None


class Run(Contract):
    """Measure this cell of the open group."""

    kind: Literal["run"] = "run"
    cell: Cell
    plan: MeasurementPlan
    context_window: int | None = None


class Judge(Contract):
    """Find out how good the loaded weights still are; between cells, never within one."""

    kind: Literal["judge"] = "judge"
    plan: QualityPlan
    time_limit_s: float


class Acknowledge(Contract):
    """The parent has taken the reading the child is waiting for."""

    kind: Literal["acknowledge"] = "acknowledge"


class Close(Contract):
    """Unload the model, report the stage `released`, exit 0."""

    kind: Literal["close"] = "close"


Command = Annotated[Open | Run | Judge | Acknowledge | Close, Field(discriminator="kind")]


class Stage(Contract):
    """The child stands still at a memory stage until acknowledged. `allocator` holds device figures only the child sees.

    Stages: baseline, loaded, prefill_begin, prefill_end, decode_begin, steady, decode_end, released. At a `_begin` the
    parent resets the kernel's high-water mark; at the matching `_end` it reads it. `steady` comes several times, spread
    over the second half of the generation: its reading is their median. No decode stages when one token is generated.
    """

    kind: Literal["stage"] = "stage"
    stage: str
    allocator: dict[str, int] = Field(default_factory=dict)


class Opened(Contract):
    """The model is loaded. `load_s` counts from the command to ready."""

    kind: Literal["opened"] = "opened"
    load_s: float
    software: Software
    model: LoadedModel
    simulated: bool = False


class Window(Contract):
    """The timed part of the cell begins (`open`) or ends (not `open`): the parent watches conditions between the two."""

    kind: Literal["window"] = "window"
    open: bool


class Progress(Contract):
    """A part is done: of a cell an iteration, of what is prepared or judged a step. `at_most` 0: it is not known how many come."""

    kind: Literal["progress"] = "progress"
    phase: str
    iteration: int
    at_most: int


class CellRecord(Contract):
    """The cell's raw record as the child saw it; the parent adds memory read from outside, conditions and verdict."""

    kind: Literal["cell"] = "cell"
    samples: tuple[Sample, ...]
    stop_reason: StopReason
    memory: CellMemory
    warnings: tuple[str, ...] = ()
    prompts: dict[str, Any] = Field(default_factory=dict)
    energy_j: float | None = None
    energy_source: str = "not read by the child"
    details: dict[str, Any] = Field(default_factory=dict)


class Judged(Contract):
    """The answer to Judge: always one, in words where there is nothing to measure."""

    kind: Literal["judged"] = "judged"
    quality: Quality


class Refused(Contract):
    """The group or cell cannot run: an answer, not a fault. `warm`: this process had measured before."""

    kind: Literal["refused"] = "refused"
    reason: InfeasibleReason
    message: str
    warm: bool = False


class Failed(Contract):
    """The child met an error it has no answer for; it exits after this."""

    kind: Literal["failed"] = "failed"
    message: str


class Closed(Contract):
    """The model is unloaded and the last stage read; the child exits 0 after this."""

    kind: Literal["closed"] = "closed"
    cells_measured: int


Report = Annotated[
    Stage | Opened | Window | Progress | CellRecord | Judged | Refused | Failed | Closed, Field(discriminator="kind")
]

COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
REPORT: TypeAdapter[Report] = TypeAdapter(Report)
