"""Names of tensors: what other libraries look for stays findable."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from effillm_worker.quantization.spelling import INDEX, missing, rename, respelled, tensors_of

SOURCE = {"embed_in.weight": (8, 4), "embed_out.weight": (8, 4), "layers.0.dense.weight": (4, 4), "norm.weight": (4,)}
PACKED = {"layers.0.dense.qweight": (1, 4), "layers.0.dense.scales": (1, 4)}


def test_a_head_under_a_new_name_gets_its_published_one_back() -> None:
    made = {"embed_in.weight": (8, 4), "lm_head.weight": (8, 4), "norm.weight": (4,)} | PACKED
    assert respelled(made, SOURCE) == {"lm_head.weight": "embed_out.weight"}


def test_what_its_shape_does_not_tell_apart_keeps_its_name() -> None:
    made = {"one.weight": (8, 4), "two.weight": (8, 4), "norm.weight": (4,)} | PACKED
    assert respelled(made, SOURCE) == {}
    assert respelled(SOURCE, SOURCE) == {}


def test_tensors_are_renamed_in_every_file_and_the_index_and_are_the_same(tmp_path: Path) -> None:
    head, other = torch.arange(32.0).reshape(8, 4), torch.ones(4)
    save_file({"lm_head.weight": head}, str(tmp_path / "model-1.safetensors"), metadata={"format": "pt"})
    save_file({"norm.weight": other}, str(tmp_path / "model-2.safetensors"), metadata={"format": "pt"})
    places = {"lm_head.weight": "model-1.safetensors", "norm.weight": "model-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 144}, "weight_map": places}))
    rename(tmp_path, {"lm_head.weight": "embed_out.weight"})
    assert tensors_of(tmp_path) == {"embed_out.weight": (8, 4), "norm.weight": (4,)}
    assert json.loads((tmp_path / INDEX).read_text())["weight_map"]["embed_out.weight"] == "model-1.safetensors"
    from safetensors import safe_open

    with safe_open(str(tmp_path / "model-1.safetensors"), framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("embed_out.weight").equal(head)


def test_a_tensor_no_file_has_is_missing_unless_it_is_tied_to_another(tmp_path: Path) -> None:
    save_file({"norm.weight": torch.ones(4)}, str(tmp_path / "model.safetensors"))
    assert missing(tmp_path, ["norm.weight", "lm_head.weight"], []) == ["lm_head.weight"]
    assert missing(tmp_path, ["norm.weight", "lm_head.weight"], ["lm_head.weight"]) == []
