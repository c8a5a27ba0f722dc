"""Cells, their groups and digests, and the lease."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import Engine, Isolation, MeasurementPlan, Weights

BASE: dict[str, Any] = {
    "model": "facebook/opt-125m", "weights": "synthetic", "quantization": "int8", "dtype": "float32", "engine": "transformers",
    "runtime": "default", "hardware": "cpu", "batch_size": 4, "sequence_length": 128, "workload": "synthetic",
    "generate_tokens": 32,
}  # fmt: skip
LOADED = {
    "model": "facebook/opt-350m", "weights": "pretrained", "revision": "main", "quantization": "int4", "dtype": "float16",
    "engine": "simulated", "runtime": "old", "hardware": "t4", "repeat": 2,
}  # fmt: skip
SHAPE = {"batch_size": 8, "sequence_length": 256, "workload": "chat", "generate_tokens": 64}


def cell(**changes: Any) -> Cell:
    return Cell.model_validate(BASE | changes)


def test_the_size_is_batch_times_sequence_and_nothing_for_texts_of_their_own_length() -> None:
    assert cell().size == 512
    assert cell(sequence_length=None, workload="chat").size == 0


@pytest.mark.parametrize(("axis", "value"), LOADED.items())
def test_what_is_loaded_differently_is_another_load_group(axis: str, value: Any) -> None:
    assert cell(**{axis: value}).load_group("s") != cell().load_group("s")


@pytest.mark.parametrize(("axis", "value"), SHAPE.items())
def test_what_one_loaded_model_serves_is_one_load_group(axis: str, value: Any) -> None:
    assert cell(**{axis: value}).load_group("s") == cell().load_group("s")


def test_sweeps_do_not_share_load_groups() -> None:
    assert cell().load_group("a") != cell().load_group("b")


@pytest.mark.parametrize(("axis", "value"), (LOADED | SHAPE).items())
def test_every_axis_changes_the_digest(axis: str, value: Any) -> None:
    plan = MeasurementPlan()
    assert cell(**{axis: value}).digest(plan) != cell().digest(plan)


def test_the_digest_covers_the_plan_and_is_stable() -> None:
    assert cell().digest(MeasurementPlan()) == cell().digest(MeasurementPlan())
    assert cell().digest(MeasurementPlan()) != cell().digest(MeasurementPlan(repeats=2))
    assert len(cell().digest(MeasurementPlan())) == 64


def test_a_lease_survives_the_wire() -> None:
    lease = Lease(
        job_id=1, sweep_id="s", fence=3, device_id="d", attempt=1, cell=cell(), plan=MeasurementPlan(), load_group="g", ttl_s=60.0
    )  # fmt: skip
    assert lease.isolation is Isolation.GROUP
    back = Lease.model_validate_json(lease.model_dump_json())
    assert back == lease
    assert (back.cell.weights, back.cell.quantization, back.cell.engine) == (
        Weights.SYNTHETIC, Quantization.INT8, Engine.TRANSFORMERS,
    )  # fmt: skip


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_that_lives_for_no_time_is_refused(ttl_s: float) -> None:
    with pytest.raises(ValidationError, match="ttl_s"):
        Lease(
            job_id=1, sweep_id="s", fence=3, device_id="d", attempt=1, cell=cell(), plan=MeasurementPlan(), load_group="g",
            ttl_s=ttl_s,
        )  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"sequence_length": 0}, {"generate_tokens": 0}, {"repeat": 0}, {"x": 1}]
)
def test_an_impossible_cell_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cell(**changes)
