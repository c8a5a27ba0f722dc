"""The submit form: to a definition and back, and every problem at its field."""

from __future__ import annotations

import pytest

from effillm_server.contract.sweep import SweepDefinition
from effillm_server.web.forms import DEFAULTS, digest, document_of, field_of, fields_of, read
from tests.support.definitions import definition

TYPED = DEFAULTS | {"name": ["night"], "hardware": ["cpu"], "quantization": ["fp32", "int8"]}


def test_a_filled_in_form_is_the_definition_it_says() -> None:
    found = read(TYPED | {"models": ["a/b\r\n c/d "], "batch_size": ["1,2 4"], "more_quantization": ["bf16"]})
    assert found.errors == {}
    assert found.definition is not None
    assert [choice.id for choice in found.definition.models] == ["a/b", "c/d"]
    assert found.definition.batch_size == (1, 2, 4)
    assert [str(one) for one in found.definition.quantization] == ["fp32", "int8", "bf16"]
    assert found.definition.measurement == SweepDefinition.model_validate(document_of(TYPED)).measurement


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("name", "", "a text that is not empty"),
        ("models", "../etc", "not a model id"),
        ("models", "", "the list is empty"),
        ("batch_size", "1, many", "expected a whole number, found 'many'"),
        ("batch_size", "1, 1", "stands twice"),
        ("sequence_length", "0", "at least 1"),
        ("generate_tokens", "", "the list is empty"),
        ("iterations_min", "2", "at least 5"),
        ("iterations_max", "x", "whole number"),
        ("warmup_min", "1", "at least 3"),
        ("repeats", "0", "at least 1"),
        ("relative_half_width", "2", "below 1"),
        ("time_limit_s", "soon", "expected a number"),
        ("time_limit_s", "3", "too small"),
        ("priority", "1000", "at most 100"),
        ("visibility", "all", "not allowed"),
        ("weights", "free", "not allowed"),
    ],
)
def test_a_problem_is_told_at_the_field_it_was_typed_into(name: str, typed: str, said: str) -> None:
    found = read(TYPED | {name: [typed]})
    where = {"weights": "models"}.get(name, name)
    assert found.definition is None
    assert said in " ".join(found.errors[where])


def test_every_problem_is_told_at_once_and_each_only_once() -> None:
    found = read(TYPED | {"name": [""], "hardware": [], "batch_size": ["x y"], "models": ["../a ../a"]})
    assert found.errors.keys() == {"name", "hardware", "batch_size", "models"}
    assert len(found.errors["batch_size"]) == 2


def test_a_form_with_fields_missing_is_told_what_is_missing() -> None:
    assert {"name", "models", "hardware", "quantization", "batch_size"} <= read({}).errors.keys()


def test_an_earlier_sweep_fills_the_form_with_itself() -> None:
    of = definition(
        models=[{"id": "a/b", "weights": "synthetic"}], batch_size=[2, 8], priority=5, visibility="private", workload=["synthetic"],
        measurement={"iterations": {"min": 7, "max": 9}, "repeats": 3},
    )  # fmt: skip
    assert read(fields_of(of)).definition == of


def test_quality_is_asked_for_by_its_box() -> None:
    asked, plain = read(TYPED | {"quality": ["on"]}).definition, read(TYPED).definition
    assert asked is not None and plain is not None
    assert (asked.quality is not None, plain.quality) == (True, None)
    assert read(fields_of(asked)).definition == asked


def test_another_definition_has_another_digest() -> None:
    assert digest(definition()) == digest(definition())
    assert digest(definition(batch_size=[2])) != digest(definition())


def test_a_place_that_is_no_field_belongs_to_the_whole_form() -> None:
    assert field_of("exclude[0].batch_size") == "exclude"
    assert field_of("sweep") == field_of(None) == ""
    assert field_of("models[3].weights") == "models"
