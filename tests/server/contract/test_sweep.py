"""The sweep definition: its defaults, its limits, and that it cannot change."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from effillm_server.contract.sweep import (  # fmt: skip
    AXES,
    Bounds,
    Engine,
    Isolation,
    MeasurementPlan,
    ModelChoice,
    SweepDefinition,
    Visibility,
    Weights,
)
from tests.support.definitions import definition


def test_the_defaults_are_those_of_the_paper() -> None:
    sweep = definition()
    assert sweep.generate_tokens == (256,)
    assert sweep.measurement == MeasurementPlan(
        warmup=Bounds(min=3, max=10), iterations=Bounds(min=10, max=30), relative_half_width=0.02, repeats=1
    )
    assert (sweep.engine, sweep.runtime, sweep.workload) == ((Engine.TRANSFORMERS,), ("default",), ("synthetic",))
    assert (sweep.visibility, sweep.isolation, sweep.priority) == (Visibility.LAB, Isolation.GROUP, 0)


def test_every_axis_named_is_an_axis_of_the_definition() -> None:
    assert set(AXES) <= set(SweepDefinition.model_fields)


def test_a_model_may_be_an_id_alone() -> None:
    sweep = definition(models=["a/b", {"id": "c", "weights": "synthetic", "revision": "v1.0"}])
    assert sweep.models == (ModelChoice(id="a/b"), ModelChoice(id="c", weights=Weights.SYNTHETIC, revision="v1.0"))


def test_the_same_model_with_other_weights_is_another_value() -> None:
    sweep = definition(models=["a/b", {"id": "a/b", "weights": "synthetic"}])
    assert len(sweep.models) == 2


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "a/../b", "a//b", "http://host/x", "-flag", "a b", "a\nb", "a/", "", "x" * 201, "a/b/c/d/e/f/g", "~root"],
)  # fmt: skip
def test_an_id_that_is_a_path_or_an_url_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="not a model id"):
        ModelChoice(id=name)


def test_a_definition_survives_the_wire_and_cannot_be_changed() -> None:
    sweep = definition(exclude=[{"quantization": "fp32", "hardware": ["cpu"]}], batch_size=[1, 2])
    assert SweepDefinition.model_validate_json(sweep.model_dump_json()) == sweep
    with pytest.raises(ValidationError, match="frozen"):
        sweep.name = "other"  # type: ignore[misc]
