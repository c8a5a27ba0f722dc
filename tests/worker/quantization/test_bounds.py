"""No weight comes back farther off than its method allows: each method's bound, element by element, on a trained model.

For uniform codes the bound is in `test_codes.py`, for GPTQ, which gives up nearness of weights for nearness of outputs, what its codes
stand for is in `test_gptq_readers.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.quantization.codes import linear_layers
from tests.support import trained
from tests.support.conversion import one_thread
from tests.support.fake_engine import cell

BLOCK = 64
EPS = torch.finfo(torch.float32).eps
# Of `bitsandbytes.functional.get_4bit_type`: half the widest gap between neighbours, in shares of the block's largest magnitude.
HALF_GAP = {"int4": (1.0 - 0.6961928) / 2, "int4-nf4-double": (1.0 - 0.6961928) / 2, "int4-fp4": (1.0 - 2 / 3) / 2}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    (made / "lab").mkdir()
    (made / "lab" / "trained").mkdir()
    for file in trained.folder("quick").iterdir():
        (made / "lab" / "trained" / file.name).write_bytes(file.read_bytes())
    return made


@pytest.fixture(scope="module")
def weights(root: Path) -> dict[str, torch.Tensor]:
    """The trained matrices, as they are."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "lab" / "trained", dtype=torch.float32)
    return {name: layer.weight.detach() for name, layer in linear_layers(model).items()}


def loaded(root: Path, label: str, names: Any) -> dict[str, Any]:
    """The layers of the trained model as the engine loads it under a label."""
    request = LoadRequest(
        cell=cell(model="lab/trained", weights="pretrained", quantization=label), threads=1, device="cpu",
        cache_dir=str(root / "cache"), model_root=str(root),
    )  # fmt: skip
    engine = TransformersEngine()
    engine.start(request)
    engine.load(request)
    return {name: engine._model.get_submodule(name) for name in names}


def check(found: torch.Tensor, weight: torch.Tensor, bound: torch.Tensor) -> float:
    """The largest error in shares of its bound, which no element exceeds."""
    share = ((found - weight).abs() / bound).max()
    assert float(share) <= 1
    return float(share)


def test_int8_is_off_by_half_a_step_of_the_rows_largest_magnitude(root: Path, weights: dict[str, torch.Tensor]) -> None:
    shares = []
    for name, layer in loaded(root, "int8", weights).items():
        weight, stored = weights[name], layer.weight
        largest = weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(stored.SCB.reshape(-1, 1), largest, rtol=2**-11, atol=0)
        found = stored.data.float() * stored.SCB.reshape(-1, 1) / 127
        # bitsandbytes rounds weights to half precision before it quantizes them.
        shares.append(check(found, weight, largest * (1 + 2**-11) / 254 + 2**-11 * weight.abs() + 4 * EPS * largest))
    assert max(shares) > 0.9  # the bound is the right one, not merely a large one


@pytest.mark.parametrize("label", HALF_GAP)
def test_int4_is_off_by_half_the_widest_gap_of_its_code_book(
    label: str, root: Path, weights: dict[str, torch.Tensor]
) -> None:
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    shares = []
    for name, layer in loaded(root, label, weights).items():
        weight, state = weights[name], layer.weight.quant_state
        largest = weight.reshape(-1, BLOCK).abs().amax(1)
        scales, off = state.absmax, torch.zeros_like(largest)
        if label.endswith("double"):
            # The scales themselves are quantized, to 8 bits: what they are off by, every code in the block is off by, at most.
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
            off = (scales - largest).abs()
            assert 0 < float(off.max()) < 0.02 * float(largest.max())
        else:
            assert torch.equal(scales, largest)
        found = dequantize_4bit(layer.weight.data, state).float()
        bound = (HALF_GAP[label] + 4 * EPS) * largest + off + 4 * EPS * largest
        shares.append(check(found.reshape(-1, BLOCK), weight.reshape(-1, BLOCK), bound.unsqueeze(1)))
    assert max(shares) > 0.9


@pytest.mark.quantization
def test_int8_dynamic_is_off_by_half_a_step_of_the_row(root: Path, weights: dict[str, torch.Tensor]) -> None:
    shares = []
    for name, layer in loaded(root, "int8-dynamic", weights).items():
        largest = weights[name].abs().amax(1, keepdim=True)
        shares.append(check(layer.weight.dequantize(), weights[name], largest / 127 / 2 + 4 * EPS * largest))
    assert max(shares) > 0.9


@pytest.mark.quantization
def test_int4_weight_only_is_off_by_half_a_step_of_the_groups_range(
    root: Path, weights: dict[str, torch.Tensor]
) -> None:
    group, shares = 32, []
    for name, layer in loaded(root, f"int4-weight-only-g{group}", weights).items():
        weight = weights[name]
        with torch.no_grad():
            # Its codes are laid out for its kernel: the matrix is what the layer makes of each unit vector.
            found = (layer(torch.eye(weight.shape[1])) - layer.bias).T
        groups = weight.reshape(weight.shape[0], -1, group)
        step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
        rounding = 8 * EPS * (groups.abs().amax(-1, keepdim=True) + layer.bias.detach().abs().max())
        shares.append(check(found.reshape(groups.shape), groups, step / 2 + rounding))
    assert max(shares) > 0.9
