"""How an attempt ended, and what it measured: raw samples, memory, conditions. Statistics are computed on read."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from effillm_server.contract.base import Contract
from effillm_server.contract.fingerprint import Fingerprint
from effillm_server.contract.quality import Quality


class Phase(StrEnum):
    """Why an iteration was run. Only `measured` (full generations) and `ttft` (one token) carry timing results."""

    WARMUP = "warmup"
    MEASURED = "measured"
    TTFT = "ttft"
    MEMORY = "memory"


class StopReason(StrEnum):
    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    TIME_BUDGET = "time_budget"


class Verdict(StrEnum):
    VALID = "valid"
    SUSPECT = "suspect"
    INVALID = "invalid"


class InfeasibleReason(StrEnum):
    CONTEXT_WINDOW = "context_window"
    UNSUPPORTED = "unsupported"
    IMPLIED = "implied"
    OUT_OF_DEVICE_MEMORY = "out_of_device_memory"
    OUT_OF_HOST_MEMORY = "out_of_host_memory"
    TIME_LIMIT = "time_limit"


class FaultKind(StrEnum):
    """An attempt that answered nothing and is worth another try."""

    CRASHED = "crashed"
    HUNG = "hung"
    LOST = "lost"


class Sample(Contract):
    """One iteration. `timestamps_ns` is t_0 ... t_n of the child's monotonic clock (device events on a GPU), length n + 1."""

    iteration: Annotated[int, Field(ge=0)]
    phase: Phase
    prompt_tokens: Annotated[int, Field(ge=1)]
    timestamps_ns: Annotated[tuple[int, ...], Field(min_length=2)]
    outlier: bool = False

    @model_validator(mode="after")
    def _forward(self) -> Sample:
        stamps = self.timestamps_ns
        if any(later < earlier for earlier, later in pairwise(stamps)) or stamps[-1] <= stamps[0]:
            raise ValueError("timestamps run backwards or the iteration took no time")
        return self


class MemoryReading(Contract):
    """Memory at one stage, bytes. RAM is the child's process tree read from outside; VRAM by allocator and driver."""

    ram_bytes: int | None = None
    ram_peak_bytes: int | None = None
    ram_pss_bytes: int | None = None
    ram_source: str | None = None
    vram_bytes: int | None = None
    vram_reserved_bytes: int | None = None
    vram_process_bytes: int | None = None
    vram_device_used_bytes: int | None = None
    vram_source: str | None = None


class CellMemory(Contract):
    """The stages that belong to a cell; peaks per phase, `steady` over the second half of an extended generation."""

    peak_prefill: MemoryReading | None = None
    peak_decode: MemoryReading | None = None
    steady: MemoryReading | None = None
    account: dict[str, int | None] = Field(default_factory=dict)

    @property
    def peak(self) -> MemoryReading | None:
        """The larger of the two phase peaks, by VRAM where there is any, else by RAM."""
        readings = [reading for reading in (self.peak_prefill, self.peak_decode) if reading is not None]
        return max(readings, key=lambda r: (r.vram_bytes or 0, r.ram_peak_bytes or r.ram_bytes or 0), default=None)


class LoadedModel(Contract):
    """What the engine found after loading, counted from the tensors: the evidence beside each row.

    `quality` is found once a load group, after its first cell, where the sweep asks for it.
    """

    parameters: int
    weight_bytes: int
    bits_per_weight: float
    dtype: str
    kernels: dict[str, int] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    quality: Quality | None = None


class ChildRecord(Contract):
    """One measuring process: load time and the memory stages that belong to it. `released` is None until it ends."""

    id: str
    load_group: str
    pid: int
    started_at: str
    load_s: float | None = None
    baseline: MemoryReading | None = None
    loaded: MemoryReading | None = None
    released: MemoryReading | None = None
    cells_measured: int = 0
    loaded_model: LoadedModel | None = None


class Conditions(Contract):
    """What was watched around the measurement from outside the child, and what could not be."""

    watched: dict[str, Any] = Field(default_factory=dict)
    not_watched: dict[str, str] = Field(default_factory=dict)


class Exit(Contract):
    """How the child ended and the last lines of its log."""

    code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()


class Measured(Contract):
    """The cell ran: its samples and everything needed to trust them."""

    kind: Literal["measured"] = "measured"
    samples: Annotated[tuple[Sample, ...], Field(min_length=1)]
    stop_reason: StopReason
    memory: CellMemory = CellMemory()
    energy_j: float | None = None
    energy_source: str
    conditions: Conditions = Conditions()
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    fingerprint: Fingerprint
    child: ChildRecord
    simulated: bool = False
    prompts: dict[str, Any] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)


class Infeasible(Contract):
    """The cell cannot run here, and that is the answer."""

    kind: Literal["infeasible"] = "infeasible"
    reason: InfeasibleReason
    message: str
    warm: bool = False
    exit: Exit = Exit()
    child: ChildRecord | None = None


class Fault(Contract):
    """The attempt broke: retried, elsewhere if there is an elsewhere."""

    kind: Literal["fault"] = "fault"
    fault: FaultKind
    message: str
    exit: Exit = Exit()
    child: ChildRecord | None = None


class Cancelled(Contract):
    """The attempt was ended because its job was cancelled."""

    kind: Literal["cancelled"] = "cancelled"
    exit: Exit = Exit()
    child: ChildRecord | None = None


Outcome = Annotated[Measured | Infeasible | Fault | Cancelled, Field(discriminator="kind")]
