from __future__ import annotations

from typing import Any

import pytest

from effillm_server import catalog
from effillm_server.contract.outcome import InfeasibleReason, Phase
from effillm_server.contract.sweep import MeasurementPlan
from effillm_server.contract.timeline import throughput_tok_s
from effillm_worker.engines.base import LoadRequest, OutOfMemory, Unsupported, create
from effillm_worker.engines.simulated import KV_BYTES_PER_TOKEN, MACHINES, SimulatedEngine, parameters
from effillm_worker.measure.session import measure
from effillm_worker.messages import CellRecord, Run
from tests.support.fake_engine import cell
from tests.support.recorder import RecordingChannel

PLAN = MeasurementPlan.model_validate({"warmup": 3, "iterations": 5})


def simulated(**changes: Any) -> Any:
    values = {"model": "simulated/70", "hardware": "a100", "quantization": "fp16", "dtype": "float16"}
    return cell(engine="simulated", **(values | changes))


def loaded(**changes: Any) -> SimulatedEngine:
    engine = SimulatedEngine()
    request = LoadRequest(cell=simulated(**changes), threads=1, device="cpu", cache_dir="")
    engine.start(request)
    engine.load(request)
    return engine


def record(**changes: Any) -> CellRecord:
    engine = loaded(**changes)
    return measure(engine, RecordingChannel(), Run(cell=simulated(**changes), plan=PLAN))


def speed(**changes: Any) -> float:
    found = [sample for sample in record(**changes).samples if sample.phase is Phase.MEASURED]
    return throughput_tok_s(found[0].timestamps_ns, simulated(**changes).batch_size)


def test_registry_finds_it_and_it_says_what_it_is() -> None:
    assert create("simulated").simulated is True


def test_two_runs_of_a_cell_agree_to_the_nanosecond() -> None:
    assert record().samples == record().samples


def test_repeats_and_iterations_differ() -> None:
    assert record(repeat=1).samples != record(repeat=2).samples
    times = {sample.timestamps_ns[-1] - sample.timestamps_ns[0] for sample in record().samples[:8]}
    assert len(times) == 8


def test_speed_follows_the_declared_hardware_and_precision() -> None:
    large = {"model": "facebook/opt-6.7b", "hardware": "a100"}
    assert speed(**large) > speed(**large | {"hardware": "a10"})
    assert speed(**large | {"quantization": "int8"}) > speed(**large)
    assert speed(**large, batch_size=8) > 2 * speed(**large, batch_size=1)


def test_step_time_is_the_declared_roofline() -> None:
    engine = loaded(model="facebook/opt-6.7b")
    size = catalog.load().models["facebook/opt-6.7b"].parameters
    assert size is not None
    machine = MACHINES["a100"]
    moved = size * 2 + KV_BYTES_PER_TOKEN * 2 * 100
    assert engine._step_s(2, 100) == pytest.approx(machine.overhead_s + moved / machine.bandwidth)


def test_model_that_exceeds_the_declared_memory_is_out_of_device_memory() -> None:
    with pytest.raises(OutOfMemory) as refused:
        loaded(model="facebook/opt-6.7b", quantization="fp32", dtype="float32", hardware="t4")
    assert refused.value.reason is InfeasibleReason.OUT_OF_DEVICE_MEMORY
    loaded(model="facebook/opt-6.7b", quantization="int8", hardware="t4")


def test_declared_memory_is_weights_and_cache() -> None:
    engine = loaded()
    weights = engine.allocator()["allocated"]
    assert weights == 70_000_000 * 2
    engine.generate(engine.batch([[1] * 16] * 2), 8, lambda: None)
    assert engine.allocator()["peak_allocated"] == weights + KV_BYTES_PER_TOKEN * 2 * 24
    engine.unload()
    assert engine.allocator() == {}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("simulated/oom-above-47", InfeasibleReason.OUT_OF_DEVICE_MEMORY),
        ("simulated/host-oom-above-47", InfeasibleReason.OUT_OF_HOST_MEMORY),
    ],
)
def test_declared_memory_fault_strikes_above_its_number_of_tokens(model: str, reason: InfeasibleReason) -> None:
    engine = loaded(model=model)
    engine.generate(engine.batch([[1] * 16] * 2), 7, lambda: None)
    with pytest.raises(OutOfMemory) as refused:
        engine.generate(engine.batch([[1] * 16] * 2), 8, lambda: None)
    assert refused.value.reason is reason


def test_declared_unsupported_is_refused_on_loading() -> None:
    with pytest.raises(Unsupported):
        loaded(model="simulated/unsupported")


def test_sizes_come_from_catalog_name_or_id() -> None:
    assert parameters("EleutherAI/pythia-70m") == catalog.load().models["EleutherAI/pythia-70m"].parameters
    assert parameters("simulated/350") == 350_000_000
    assert parameters("somebody/else") == parameters("somebody/else")


def test_unknown_engine_names_those_there_are() -> None:
    with pytest.raises(Unsupported, match="simulated, transformers"):
        create("nonesuch")
