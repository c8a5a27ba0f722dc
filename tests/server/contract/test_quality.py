from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from effillm_server.contract.job import Lease
from effillm_server.contract.outcome import LoadedModel
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.quality import Losses, Quality, QualityPlan
from effillm_server.errors import BadInput

SWEEP = "name: q\nmodels: facebook/opt-125m\nhardware: cpu\nquantization: [fp32, int8]\n"


def plan(text: str) -> QualityPlan | None:
    return parse_definition(SWEEP + text).quality


def test_a_sweep_asks_for_no_quality_unless_it_says_so() -> None:
    assert plan("") is None


def test_an_empty_block_takes_the_defaults() -> None:
    assert plan("quality: {}") == QualityPlan(text="shipped", tokens=4096, agreement=True, tasks=(), task_examples=100)


def test_a_block_is_taken_as_written() -> None:
    text = "quality: {text: texts/ours.txt, tokens: 1000, agreement: false, tasks: [lambada_openai], task_examples: 5}"
    assert plan(text) == QualityPlan(
        text="texts/ours.txt", tokens=1000, agreement=False, tasks=("lambada_openai",), task_examples=5
    )


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{text: ../secret}", "quality.text"),
        ("{text: /etc/passwd}", "quality.text"),
        ("{text: a/../c}", "quality.text: 'a/../c' is not a name that is accepted here"),
        ("{tokens: 10}", "quality.tokens: expected a number of at least 256, found 10"),
        ("{tokens: 1e3}", "quality.tokens"),
        ("{token: 500}", "Did you mean 'tokens'"),
        ("{tasks: ['rm -rf']}", "quality.tasks"),
        ("sometimes", "quality: expected a mapping"),
    ],
)
def test_what_is_wrong_with_a_block_is_said_with_its_place(block: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        plan(f"quality: {block}")
    assert said in str(refused.value)


def test_records_of_before_quality_was_measured_still_read() -> None:
    model: dict[str, Any] = {"parameters": 1, "weight_bytes": 4, "bits_per_weight": 32.0, "dtype": "float32"}
    assert LoadedModel.model_validate(model).quality is None
    assert Lease.model_fields["quality"].default is None


def test_a_record_survives_its_way_through_json() -> None:
    found = Quality(text="shipped", losses=Losses(nll=(1.5, 2.0), tokens=(10, 11)), notes=("a reason",))
    assert Quality.model_validate_json(found.model_dump_json()) == found
    assert found.tokens == 21


def test_blocks_without_tokens_or_unequal_in_number_are_refused() -> None:
    for nll, tokens in (((1.0,), (1, 2)), ((1.0,), (0,)), ((), ())):
        with pytest.raises(ValidationError):
            Losses(nll=nll, tokens=tokens)


def test_no_loss_is_nan() -> None:
    with pytest.raises(ValidationError):
        Losses(nll=(float("nan"),), tokens=(1,))
