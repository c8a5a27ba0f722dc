"""Outcomes: one tagged union, refusing what no measurement can be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from effillm_server.contract.fingerprint import Fingerprint, Hardware, Processor, Software
from effillm_server.contract.outcome import (
    Cancelled,
    CellMemory,
    ChildRecord,
    Fault,
    FaultKind,
    Infeasible,
    InfeasibleReason,
    Measured,
    MemoryReading,
    Outcome,
    Phase,
    Sample,
    StopReason,
    Verdict,
)

OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
SAMPLE = Sample(iteration=0, phase=Phase.MEASURED, prompt_tokens=8, timestamps_ns=(0, 5, 9))


def fingerprint(kernel: str = "6.1") -> Fingerprint:
    processor = Processor(
        model="p",
        architecture="x86_64",
        sockets=1,
        physical_cores=2,
        logical_cores=4,
        numa_nodes=1,
        caches_bytes={"L3": 1},
    )
    return Fingerprint(
        hardware=Hardware(hardware_class="cpu", processor=processor, memory_bytes=10**9),
        software=Software(python="3.11", kernel=kernel, code_version="1", versions={"torch": "2", "ray": None}),
    )


def measured(**changes: Any) -> Measured:
    base: dict[str, Any] = {
        "samples": (SAMPLE,), "stop_reason": StopReason.CONVERGED, "energy_source": "none: no counter", "verdict": Verdict.VALID,
        "fingerprint": fingerprint(), "child": ChildRecord(id="c", load_group="g", pid=1, started_at="2026-01-01T00:00:00Z"),
    }  # fmt: skip
    return Measured(**(base | changes))


@pytest.mark.parametrize(
    "outcome",
    [
        measured(), Infeasible(reason=InfeasibleReason.TIME_LIMIT, message="m"), Fault(fault=FaultKind.HUNG, message="m"), Cancelled(),
    ],
)  # fmt: skip
def test_every_outcome_survives_the_wire_as_its_own_kind(outcome: Outcome) -> None:
    back = OUTCOME.validate_json(OUTCOME.dump_json(outcome))
    assert back == outcome
    assert type(back) is type(outcome)


@pytest.mark.parametrize("raw", ["{}", '{"kind": "other"}', '{"kind": "cancelled", "extra": 1}', "[]"])
def test_what_is_no_outcome_is_refused(raw: str) -> None:
    with pytest.raises(ValidationError):
        OUTCOME.validate_json(raw)


def test_a_measurement_without_samples_is_none() -> None:
    with pytest.raises(ValidationError):
        measured(samples=())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_that_is_none_is_stored(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        measured(energy_j=value)


@pytest.mark.parametrize("stamps", [(5, 4), (5, 5), (0, 3, 2), (1,), ()])
def test_time_that_stands_still_or_runs_back_is_refused(stamps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Sample(iteration=0, phase=Phase.MEASURED, prompt_tokens=1, timestamps_ns=stamps)


def test_two_tokens_may_share_a_timestamp() -> None:
    assert Sample(iteration=0, phase=Phase.MEASURED, prompt_tokens=1, timestamps_ns=(0, 3, 3)).timestamps_ns[-1] == 3


def test_the_peak_is_the_larger_phase_by_device_memory_first() -> None:
    small, large = MemoryReading(vram_bytes=1, ram_peak_bytes=9), MemoryReading(vram_bytes=2, ram_peak_bytes=1)
    assert CellMemory(peak_prefill=large, peak_decode=small).peak == large
    lean, wide = MemoryReading(ram_peak_bytes=4), MemoryReading(ram_bytes=5)
    assert CellMemory(peak_prefill=lean, peak_decode=wide).peak == wide
    assert CellMemory().peak is None


def test_equal_conditions_have_equal_digests_and_any_difference_shows() -> None:
    assert fingerprint().digest == fingerprint().digest
    assert fingerprint().digest != fingerprint(kernel="6.2").digest
    assert len(fingerprint().digest) == 16
