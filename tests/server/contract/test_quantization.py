"""Quantization by name: labels, options, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effillm_server.contract.job import Cell
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.quantization import METHODS, bits_of, label, method_of, options_of, parse
from effillm_server.errors import BadInput


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", "int4", "gptq", "int8-dynamic", "int4-weight-only"])
def test_a_bare_name_is_its_own_label(name: str) -> None:
    assert label(name) == label({"method": name}) == method_of(name) == name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("int8-t6", "int8"), ("int8-t4", "int8-t4"), ({"method": "int8", "threshold": 4.5}, "int8-t4.5"),
        ("int4-nf4", "int4"), ("int4-fp4", "int4-fp4"), ("int4-double", "int4-nf4-double"),
        ({"method": "int4", "type": "fp4", "double": True}, "int4-fp4-double"),
        ("gptq-act-b3-g64", "gptq-b3-g64-act"), ({"method": "gptq", "bits": 4}, "gptq-b4-g128"),
        ({"method": "gptq", "group_size": -1}, "gptq-b4-gall"), ("gptq-torch", "gptq-b4-g128-torch"),
        ("gptq-b4-g128@texts/ours.txt", "gptq-b4-g128@texts/ours.txt"),
        ("uniform-b4", "uniform-b4"), ({"method": "uniform", "bits": 4, "channel": True}, "uniform-b4-channel"),
        ("dynamic-m0.50", "dynamic-m0.5"), ({"method": "dynamic", "quality": 0.05}, "dynamic-q0.05"),
        ("qat-b4", "qat-b4"), ({"method": "qat", "bits": 3, "steps": 50, "learning_rate": 1e-5}, "qat-b3-n50-lr0.00001"),
        ("int4-weight-only-g32", "int4-weight-only-g32"),
    ],
)  # fmt: skip
def test_text_and_mapping_lead_to_one_label_which_means_the_same_again(value: Any, expected: str) -> None:
    assert label(value) == expected
    assert parse(expected) == parse(value)


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(sorted(METHODS)))
    drawn: dict[str, Any] = {"method": method}
    for name, option in METHODS[method].items():
        needed = (name == "bits" and method in ("uniform", "qat")) or (method == "dynamic" and name == "memory")
        if name == "quality" or not (needed or draw(st.booleans())):
            continue
        match option.kind:
            case "flag":
                drawn[name] = draw(st.booleans())
            case "text":
                drawn[name] = draw(st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?(\.txt)?", fullmatch=True))
            case "number":
                drawn[name] = draw(st.floats(option.low, option.high, allow_subnormal=False))
            case _ if option.choices:
                drawn[name] = draw(st.sampled_from(option.choices))
            case _:
                drawn[name] = draw(st.integers(int(option.low), int(option.high)))
    return drawn


@given(choices())
def test_every_label_says_all_of_its_options(drawn: dict[str, Any]) -> None:
    parsed = parse(drawn)
    assert parse(parsed.label) == parsed
    for name, value in drawn.items():
        if name != "method":
            assert parsed.options[name] == (pytest.approx(value, abs=1e-10) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("int9", "'int9' is not allowed. Did you mean 'int8'?"),
        ("uniform", "needs bits, as in uniform-b4"),
        ("dynamic", "needs memory or quality, one of the two, as in dynamic-m0.5"),
        ("dynamic-m0.5-q0.1", "one of the two"),
        ("gptq-b5", "bits is one of 2, 3, 4, 8, found 5"),
        ("gptq-x4", "'x4' is no option of gptq. Its options in a label: bN, gN, act"),
        ("int8-t4-t5", "threshold stands twice"),
        ("int8@a.txt", "int8 takes no text"),
        ("gptq@../secret", "the path of a file below EFFILLM_MODEL_ROOT"),
        ("gptq@/etc/passwd", "the path of a file below EFFILLM_MODEL_ROOT"),
        ({"bits": 4}, "the key method is missing"),
        ({"method": "gptq", "group": 64}, "gptq has no option 'group'. Did you mean 'group_size'?"),
        ({"method": "uniform", "bits": True}, "a whole number from 1 to 8, found True"),
        ({"method": "uniform", "bits": 9}, "a whole number from 1 to 8, found 9"),
        ({"method": "int8", "threshold": float("nan")}, "found nan"),
        ({"method": "int4", "double": 1}, "double is true or false"),
        ({"method": ["int8"]}, "is not allowed"),
        (8, "expected a quantization such as int8"),
        ("x" * 5000, "is not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_quantization_is_refused_in_words(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        label(value)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 500


def test_options_hold_defaults_and_a_plain_gptq_leaves_them_to_the_checkpoint() -> None:
    assert options_of("int8") == {"threshold": 6.0}
    assert options_of("gptq") == {}
    assert options_of("gptq-b3-g64-act") == {"bits": 3, "group_size": 64, "act_order": True, "kernel": "auto"}


def test_theoretical_bits_follow_from_the_label() -> None:
    found = {
        name: bits_of(name)
        for name in ("fp32", "int8-t4", "int4-fp4", "gptq-b3-g64", "uniform-b5", "dynamic-q0.1", "x")
    }
    assert found == {
        "fp32": 32,
        "int8-t4": 8,
        "int4-fp4": 4,
        "gptq-b3-g64": 3,
        "uniform-b5": 5,
        "dynamic-q0.1": None,
        "x": None,
    }


def test_two_spellings_of_one_label_on_an_axis_are_twins() -> None:
    text = (
        "name: x\nmodels: [facebook/opt-125m]\nhardware: cpu\nquantization: [gptq-b4-g128, {method: gptq, bits: 4}]\n"
    )
    with pytest.raises(BadInput, match="'gptq-b4-g128' stands twice"):
        parse_definition(text)


def test_a_cell_carries_the_options_of_its_label() -> None:
    cell = Cell.model_validate({
        "model": "facebook/opt-125m", "weights": "synthetic", "quantization": "uniform-b3-channel", "dtype": "float32",
        "engine": "transformers", "runtime": "default", "hardware": "cpu", "batch_size": 1, "sequence_length": 8,
        "workload": "synthetic", "generate_tokens": 4,
    })  # fmt: skip
    assert cell.quantization_options == {"bits": 3, "channel": True}
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
