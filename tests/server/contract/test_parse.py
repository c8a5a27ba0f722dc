"""Definitions from text: what is accepted, and what every refusal says."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_server.contract.parse import MAX_DEPTH, parse_definition, parse_document, validate_definition
from effillm_server.contract.sweep import Bounds, SweepDefinition
from effillm_server.errors import BadInput
from tests.support.definitions import document

MINIMAL = "name: x\nmodels: [facebook/opt-125m]\nhardware: cpu\nquantization: fp32\n"


def refusal(content: str | bytes, content_type: str | None = None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse_definition(content, content_type)
    return caught.value


def wrong(**changes: Any) -> BadInput:
    """The refusal of the smallest definition with `changes`, sent as JSON."""
    return refusal(json.dumps(document(**changes)), "application/json")


def test_yaml_and_json_give_the_same_definition() -> None:
    content = document(batch_size=[1, 2], measurement={"relative_half_width": 0.05})
    from_yaml = parse_definition(yaml.safe_dump(content), "application/yaml")
    from_json = parse_definition(json.dumps(content).encode(), "application/json; charset=utf-8")
    assert from_yaml == from_json == SweepDefinition.model_validate(content)


def test_a_scalar_stands_for_a_list_of_one_and_a_number_for_both_bounds() -> None:
    parsed = parse_definition(MINIMAL + "batch_size: 4\nmeasurement: {iterations: 7}\n")
    assert parsed.hardware == ("cpu",)
    assert parsed.batch_size == (4,)
    assert parsed.measurement.iterations == Bounds(min=7, max=7)


def test_scalars_mean_what_they_look_like() -> None:
    values = parse_document(
        "a: 010\nb: 1e-2\nc: no\nd: 2024-01-01\ne: 1:30\nf: true\ng: ~\nh:\ni: '5'\nj: .5\nk: -3\nl: 1_000\n"
    )
    assert values == {
        "a": 10, "b": 0.01, "c": "no", "d": "2024-01-01", "e": "1:30", "f": True, "g": None, "h": None, "i": "5", "j": 0.5,
        "k": -3, "l": "1_000",
    }  # fmt: skip


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_definition(b"\xef\xbb\xbf" + MINIMAL.encode()) == parse_definition(MINIMAL)
    assert parse_definition("\ufeff" + MINIMAL) == parse_definition(MINIMAL)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [b", "not YAML: line 2, column 1: did not find expected"),
        ("\tname: x", "not YAML: line 1, column 1"),
        ("name: \x00", "not YAML: unacceptable character"),
        ("name: 'x", "not YAML: line "),
        ("%YAML 3.0\n---\na: b", "not YAML: "),
        ("", "the document is empty"),
        ("   \n# nothing\n", "expected a sweep definition, a mapping"),
        ("- a\n- b", "found a list"),
        ("just words", "found a text"),
        ("42", "found a number"),
        (b"\xff\xfename", "not text: byte 0 is not UTF-8"),
        (MINIMAL + "name: again\n", "line 5, column 1: the key 'name' stands twice"),
        (MINIMAL + "measurement: {repeats: 1, repeats: 2}\n", "the key 'repeats' stands twice"),
        (MINIMAL + "? [a, b]\n: c\n", "a key must be a single word or number"),
        (MINIMAL + "---\nname: second\n", "a second document begins"),
        (MINIMAL + "batch_size: &b [1]\n", "anchors are not accepted"),
        (MINIMAL + "batch_size: *b\n", "aliases are not accepted"),
        (MINIMAL + "batch_size: !!python/object/apply:os.getcwd []\n", "is not accepted: write plain values"),
        ("!!map {a: b}", "the tag 'tag:yaml.org,2002:map' is not accepted"),
        ("batch_size: " + "9" * 5_000, "has 5,000 digits, at most 40"),
    ],
)
def test_yaml_that_is_no_definition_is_refused_in_words(content: str | bytes, says: str) -> None:
    assert says in str(refusal(content))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON: line 1, column 2"),
        (MINIMAL, "not JSON: line 1, column 1"),
        ("[]", "found a list"),
        ("null", "found nothing"),
        ('{"name": "a", "name": "b"}', "the key 'name' stands twice"),
        ('{"a": NaN}', "NaN is not a number that is accepted"),
        ('{"a": -Infinity}', "-Infinity is not a number that is accepted"),
        ('{"a": 1e999}', "is too large"),
        ('{"a": ' + "9" * 5_000 + "}", "has 5,000 digits"),
    ],
)
def test_json_that_is_no_definition_is_refused_in_words(content: str, says: str) -> None:
    assert says in str(refusal(content, "application/json"))


@pytest.mark.parametrize("content_type", ["text/html", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_refused_and_the_accepted_ones_named(content_type: str) -> None:
    error = refusal(MINIMAL, content_type)
    assert str(error) == f"content type '{content_type}' is not accepted: send application/yaml or application/json"
    assert error.field == "Content-Type"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        ("[" * 100_000, "application/yaml"),
        ("- " * 100_000, "application/yaml"),
        ("{a: " * 100_000, "application/yaml"),
        ("[" * 100_000, "application/json"),
        ('{"a":' * 100_000, "application/json"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "application/yaml"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "application/json"),
    ],
)
def test_deep_nesting_is_refused_at_once(content: str, content_type: str) -> None:
    began = time.thread_time()
    message = str(refusal(content, content_type))
    assert "nested" in message or "nesting" in message
    assert time.thread_time() - began < 2


@pytest.mark.parametrize("content_type", ["application/yaml", "application/json"])
def test_nesting_up_to_the_limit_is_read(content_type: str) -> None:
    value = parse_document("[" * MAX_DEPTH + "]" * MAX_DEPTH, content_type)
    for _ in range(MAX_DEPTH - 1):
        (value,) = value
    assert value == []


def test_an_alias_bomb_is_refused_before_anything_is_built() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    began = time.thread_time()
    assert "not accepted" in str(refusal(bomb))
    assert time.thread_time() - began < 1


def test_more_values_than_any_sweep_has_are_refused() -> None:
    assert "more than 200,000 values" in str(refusal("batch_size: [" + "1," * 300_000 + "]"))


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"batch_size": 0}, "batch_size", "batch_size: expected a number of at least 1, found 0"),
        ({"batch_size": [1, -4]}, "batch_size[1]", "batch_size[1]: expected a number of at least 1, found -4"),
        ({"batch_size": "four"}, "batch_size", "batch_size: expected a whole number, found 'four'"),
        ({"batch_size": [2.5]}, "batch_size[0]", "batch_size[0]: expected a whole number, found 2.5"),
        ({"batch_size": True}, "batch_size", "batch_size: expected a whole number, found True"),
        ({"batch_size": 100_000}, "batch_size", "batch_size: expected a number of at most 65,536, found 100000"),
        ({"batch_size": [1, 1]}, "batch_size", "1 stands twice; every value of an axis must be distinct"),
        ({"hardware": []}, "hardware", "hardware: the list is empty"),
        ({"models": []}, "models", "models: the list is empty"),
        ({"hardware": ["Not A Slug"]}, "hardware[0]", "hardware[0]: 'Not A Slug' is not a name that is accepted here"),
        ({"quantization": "int9"}, "quantization", "quantization: 'int9' is not allowed. Did you mean 'int8'? Choose from fp32, "),
        ({"visibility": "public"}, "visibility", "Choose from lab, private"),
        ({"isolation": "cells"}, "isolation", "Did you mean 'cell'?"),
        ({"version": 2}, "version", "version: 2 is not allowed. Choose from 1"),
        ({"batchsize": 1}, "batchsize", "unknown key 'batchsize'. Did you mean 'batch_size'? Allowed here: version, name, models"),
        ({"measurement": {"iteration": 5}}, "measurement.iteration", "Did you mean 'iterations'? Allowed here: warmup, iterations"),
        ({"measurement": {"warmup": {"mni": 3, "max": 5}}}, "measurement.warmup.min", "Did you mean 'min'? Allowed here: min, max"),
        ({"models": [{"id": "a/b", "wieghts": "synthetic"}]}, "models[0].wieghts", "Did you mean 'weights'?"),
        ({"models": [{"id": "a/b", "weights": "synthetc"}]}, "models[0].weights", "Did you mean 'synthetic'?"),
        ({"models": [7]}, "models[0]", "models[0]: expected a mapping, found 7"),
        ({"models": ["http://host/x"]}, "models[0].id", "'http://host/x' is not a model id: expected a hub id such as"),
        ({"models": ["a/../b"]}, "models[0].id", "is not a model id"),
        ({"exclude": [{"quantisation": "int8"}]}, "exclude[0].quantisation", "Did you mean 'quantization'?"),
        ({"exclude": [{}]}, "exclude[0]", "an exclusion names at least one axis"),
        ({"exclude": [{"batch_size": 1}] * 1001}, "exclude", "exclude: more than 1,000 values"),
        ({"measurement": {"iterations": 4}}, "measurement", "iterations is at least 5 for any result, found 4"),
        ({"measurement": {"warmup": 2}}, "measurement", "warmup is at least 3 iterations, found 2"),
        ({"measurement": {"iterations": {"min": 9, "max": 5}}}, "measurement.iterations", "min 9 is above max 5"),
        ({"measurement": {"relative_half_width": 0}}, "measurement.relative_half_width", "expected a number above 0.0, found 0"),
        ({"measurement": {"relative_half_width": 1.0}}, "measurement.relative_half_width", "expected a number below 1.0, found 1.0"),
        ({"measurement": {"repeats": 0}}, "measurement.repeats", "measurement.repeats: expected a number of at least 1, found 0"),
        ({"measurement": {"time_limit_s": 2}}, "measurement", "time_limit_s 2 is too small: 3 warm-up and 2 x 10 measured"),
        ({"measurement": {"time_limit_s": "long"}}, "measurement.time_limit_s", "expected a number, found 'long'"),
        ({"priority": 1_000}, "priority", "priority: expected a number of at most 100, found 1000"),
        ({"name": None}, "name", "name: this key is missing"),
        ({"name": "  "}, "name", "name: expected a text that is not empty"),
        ({"name": "x" * 201}, "name", "name: longer than 200 characters"),
        ({"name": "a\u0000b"}, "name", "name: 'a\\x00b' is not a name that is accepted here"),
        ({"name": "\ud800"}, "name", "name: expected a text, found '\\ud800'"),
        ({"batch_size": list(range(1, 10_002))}, "batch_size", "batch_size: more than 10,000 values"),
    ],
)  # fmt: skip
def test_each_mistake_names_its_key_its_value_and_what_is_allowed(
    changes: dict[str, Any], field: str, says: str
) -> None:
    error = wrong(**changes)
    assert error.field == field
    assert says in str(error)


def test_a_time_budget_that_is_too_small_says_how_much_is_needed() -> None:
    assert "need at least 11.5 s" in str(wrong(measurement={"time_limit_s": 11}))
    parse_definition(json.dumps(document(measurement={"time_limit_s": 11.5})), "application/json")


def test_every_problem_is_listed_once_in_one_error() -> None:
    message = str(wrong(batch_size=[0, "four"], quantization="int9", colour="red"))
    first, *lines = message.split("\n")
    assert first == "4 problems:"
    assert [line.split(":")[0] for line in lines] == [
        "- quantization",
        "- batch_size[0]",
        "- batch_size[1]",
        "- colour",
    ]


def test_hundreds_of_problems_are_counted_rather_than_listed() -> None:
    message = str(wrong(batch_size=[0] * 300))
    assert message.startswith("300 problems:")
    assert message.endswith("and 280 more")


def test_hostile_keys_and_values_are_shortened_and_made_printable() -> None:
    error = wrong(**{"k\ud800\x1b[2J" + "y" * 100_000: "v" * 100_000})
    assert len(str(error)) < 1_000
    str(error).encode()
    assert str(error).isprintable()
    assert error.field is not None
    error.field.encode()


@pytest.mark.parametrize("value", [None, [], "text", 3, True])
def test_a_document_that_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="expected a sweep definition"):
        validate_definition(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*SweepDefinition.model_fields, "other"]), JSON_VALUES))
def test_any_mapping_is_a_definition_or_bad_input_and_nothing_else(content: dict[str, Any]) -> None:
    try:
        assert isinstance(parse_definition(json.dumps(content), "application/json"), SweepDefinition)
    except BadInput as error:
        str(error).encode()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_definition_or_bad_input_and_nothing_else(content: str | bytes) -> None:
    for content_type in ("application/yaml", "application/json"):
        try:
            parse_definition(content, content_type)
        except BadInput as error:
            str(error).encode()
