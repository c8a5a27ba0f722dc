"""The catalog: exact models, hardware with honest prices, device names turned into classes."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effillm_server.catalog import hardware_class, load, prices
from effillm_server.contract.sweep import ModelChoice
from effillm_server.errors import BadInput

# The paper's models with their context windows; the exact sizes are checked against the architectures themselves.
PAPER = {
    **{f"facebook/opt-{size}": 2_048 for size in ("125m", "350m", "1.3b", "2.7b", "6.7b")},
    **{f"EleutherAI/pythia-{size}": 2_048 for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")},
    **{f"bigscience/bloom-{size}": 2_048 for size in ("560m", "1b1", "3b", "7b1")},
    "meta-llama/Llama-2-7b-hf": 4_096,
    "meta-llama/Llama-2-13b-hf": 4_096,
    "mistralai/Mistral-7B-v0.1": 8_192,
}
GB = 2**30


def test_every_model_of_the_paper_is_there_with_its_context_window() -> None:
    assert {name: facts.context_window for name, facts in load().models.items()} == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_the_architecture_has_the_stated_number_of_parameters(name: str) -> None:
    facts = load().models[name]
    assert facts.architecture is not None
    config = AutoConfig.for_model(**facts.architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # `parameters()` yields a matrix that two layers share once.
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert facts.parameters == pytest.approx(counted, rel=1e-3)
    assert facts.layers == config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert (facts.kv_heads, facts.head_dim) == (heads, config.hidden_size // config.num_attention_heads)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("facebook/opt-350m", 331), ("meta-llama/Llama-2-7b-hf", 6_738), ("EleutherAI/pythia-160m", 162), ("bigscience/bloom-560m", 559)],
)  # fmt: skip
def test_the_exact_count_is_not_the_advertised_size(name: str, millions: int) -> None:
    parameters = load().models[name].parameters
    assert parameters is not None
    assert round(parameters / 1e6) == millions


def test_every_model_names_its_source_and_is_an_id_a_sweep_accepts() -> None:
    for name, facts in load().models.items():
        assert ModelChoice(id=name).id == facts.id == name
        assert facts.source.startswith(f"https://huggingface.co/{name} ")


def test_the_paper_s_hardware_and_the_common_rest_are_there() -> None:
    assert {"a100", "a10", "rtx-4090", "rtx-3080", "t4", "cpu", "h100", "l4", "v100", "rtx-3090", "rtx-a6000"} <= set(
        load().hardware
    )


def test_every_price_says_where_it_is_from_and_from_when() -> None:
    for facts in load().hardware.values():
        assert facts.price_date <= date.today()
        for value, word in ((facts.purchase_usd, "purchase"), (facts.hourly_usd, "hourly")):
            assert (value is not None) == (word in facts.price_source)
        assert re.search(r"\b(list|typical|assumption)\b", facts.price_source)


def test_hardware_has_its_memory_and_the_processor_has_no_fixed_one() -> None:
    assert load().hardware["t4"].memory_bytes == 16 * GB
    assert load().hardware["rtx-3080"].memory_bytes == 10 * GB
    assert load().hardware["cpu"].memory_bytes is None
    assert [name for name, facts in load().hardware.items() if facts.kind == "cpu"] == ["cpu"]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA A100-PCIE-40GB", "a100"), ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA GeForce RTX 3080", "rtx-3080"), ("Tesla T4", "t4"),
        ("NVIDIA T4", "t4"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-16GB", "v100"), ("NVIDIA RTX A6000", "rtx-a6000"), ("GeForce RTX 2080 Ti", "rtx-2080-ti"),
    ],
)  # fmt: skip
def test_a_driver_s_device_name_gives_its_class(device: str, expected: str) -> None:
    assert hardware_class(device) == expected
    assert expected in load().hardware


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA GeForce RTX 4090 D", "rtx-4090-d"), ("NVIDIA GeForce RTX 3080 Ti", "rtx-3080-ti"), ("Tesla P4", "p4"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", "rtx-3080-laptop-gpu"), ("AMD Instinct MI300X", "mi300x"),
        ("Intel(R) Data Center GPU Max 1550", "data-center-gpu-max-1550"), ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-generation"),
    ],
)  # fmt: skip
def test_other_devices_get_a_class_by_the_same_rule_from_their_own_name(device: str, expected: str) -> None:
    assert hardware_class(device) == expected


def test_a_name_without_letters_is_refused_and_a_long_one_cut() -> None:
    with pytest.raises(BadInput, match="no letter or digit"):
        hardware_class("NVIDIA (R) --")
    assert hardware_class("x" * 500) == "x" * 64


def test_every_catalogued_class_is_what_its_own_name_would_give() -> None:
    for name, facts in load().hardware.items():
        assert facts.kind == "cpu" or hardware_class(name.replace("-", " ").upper()) == name


def test_the_catalog_s_prices_are_used_where_the_lab_has_none() -> None:
    known = prices()
    assert known["a100"].purchase_usd == load().hardware["a100"].purchase_usd
    assert set(known) == set(load().hardware)


def test_the_lab_s_price_replaces_the_whole_entry_and_may_name_new_classes(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(
        "a100: {purchase_usd: 7000, source: our invoice, date: 2026-01-31}\n"
        "tensor-box: {hourly_usd: 1.5, source: our cloud contract, date: 2026-02-01}\n"
    )
    known = prices(path)
    assert (known["a100"].purchase_usd, known["a100"].hourly_usd, known["a100"].source) == (7_000, None, "our invoice")
    assert known["tensor-box"].hourly_usd == 1.5
    assert known["t4"] == prices()["t4"]


def test_an_empty_price_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("# nothing yet\n")
    assert prices(path) == prices()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a100: [", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"- a100", "'a100'"),
        (b"a100: 7000", "a100: 7000"),
        (b"a100: {purchase_usd: -1, source: s, date: 2026-01-31}", "a100.purchase_usd: -1"),
        (b"a100: {source: s, date: 2026-01-31}", "a price names purchase_usd, hourly_usd or both"),
        (b"a100: {purchase_usd: 1, date: 2026-01-31}", "a100.source"),
        (b"a100: {purchase_usd: 1, source: s, date: someday}", "a100.date: 'someday'"),
        (b"A 100: {purchase_usd: 1, source: s, date: 2026-01-31}", "A 100: 'A 100'"),
        (b"a100: {price: 1, source: s, date: 2026-01-31}", "a100.price: 1: Extra inputs"),
    ],
)
def test_a_wrong_price_file_is_refused_with_the_place_and_an_example(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        prices(path)
    assert says in str(caught.value)
    assert "a line looks like `a100: {purchase_usd: 9000" in str(caught.value)


def test_a_price_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.yaml cannot be read: No such file"):
        prices(tmp_path / "missing.yaml")
