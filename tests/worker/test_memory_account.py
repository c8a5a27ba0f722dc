"""The memory account of real children against the criterion: hardly anything unexplained, and the memory comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from effillm_server.catalog import load
from effillm_server.contract.outcome import ChildRecord, Measured
from effillm_server.contract.sweep import MeasurementPlan
from effillm_worker.isolate import Child, ChildSpec
from effillm_worker.messages import Open, Run
from tests.support.fake_engine import cell
from tests.support.isolation import device

MODEL = "EleutherAI/pythia-70m"
PLAN = MeasurementPlan.model_validate({"warmup": {"min": 3, "max": 3}, "iterations": {"min": 5, "max": 5}})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint is written once for both quantizations."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_the_account_explains_the_growth_to_five_percent_and_unloading_returns_to_the_baseline(
    quantization: str, cache: Path, tmp_path: Path
) -> None:
    wanted = cell(model=MODEL, quantization=quantization, batch_size=4, sequence_length=128, generate_tokens=4)
    child = Child.start(ChildSpec(device(), sys.executable, tmp_path / "locks", tmp_path / "work", threads=1))
    try:
        architecture = load().models[MODEL].architecture
        opened = child.open(
            Open(cell=wanted, threads=1, device="cpu", architecture=architecture, cache_dir=str(cache)), deadline_s=240
        )
        assert isinstance(opened, ChildRecord), opened
        outcome = child.run(Run(cell=wanted, plan=PLAN), deadline_s=240)
        assert isinstance(outcome, Measured), outcome
        record = child.close(deadline_s=60)
    finally:
        child.kill()
    lines = outcome.memory.account
    growth, unexplained = lines["growth_bytes"], lines["unexplained_bytes"]
    assert growth is not None and unexplained is not None
    assert abs(unexplained) <= 0.05 * growth, lines
    parts = [lines[name] for name in ("weights_bytes", "kv_cache_bytes", "other_bytes")]
    assert sum(part for part in parts if part is not None) + unexplained == growth
    # What the remainder cannot show: the cache against its formula, the weights against what the quantization promises.
    config = load().models[MODEL].architecture
    assert config is not None
    cached_tokens = wanted.batch_size * (128 + wanted.generate_tokens - 1)
    assert lines["kv_cache_bytes"] == 2 * config["num_hidden_layers"] * config["hidden_size"] * cached_tokens * 4
    assert lines["kv_cache_predicted_bytes"] == lines["kv_cache_bytes"]
    assert opened.loaded_model is not None
    parameters, kept = opened.loaded_model.parameters, 2 * config["vocab_size"] * config["hidden_size"]
    if quantization == "fp32":
        assert lines["weights_bytes"] == lines["weights_predicted_bytes"] == 4 * parameters
    else:
        # Embedding and head stay in single precision: three bytes more than promised for each of their weights, and little else.
        assert lines["weights_predicted_bytes"] == parameters
        assert lines["weights_bytes"] == pytest.approx(parameters + 3 * kept, rel=0.01)
    assert record.baseline is not None and record.released is not None
    assert record.released.ram_bytes == pytest.approx(record.baseline.ram_bytes, rel=0.1)
