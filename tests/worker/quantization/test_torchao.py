"""Quantization by torchao: behind the marker `quantization`, because its package belongs to an extra."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import method
from tests.support.loading import LAYERS, LINEAR, REST, ROWS, load, logits, own_path

pytestmark = pytest.mark.quantization


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_int8_dynamic_is_what_the_library_itself_loads(cache: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    model, found, evidence = load(cache, "int8-dynamic")
    expected = own_path(cache, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))
    assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, own_path(cache))
    assert found.weight_bytes == pytest.approx(LINEAR + 4 * ROWS + REST, rel=0.03)
    assert evidence.quantized_weights == LINEAR
    assert evidence.layers == {"Int8Tensor": 4 * LAYERS}
    assert evidence.seconds is not None and evidence.seconds > 0


def test_int4_weight_only_is_what_the_library_itself_loads(cache: Path) -> None:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from transformers import TorchAoConfig

    model, found, evidence = load(cache, "int4-weight-only-g32")
    configuration = PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)
    assert torch.equal(logits(model), own_path(cache, quantization_config=TorchAoConfig(configuration)))
    # A scale and a zero point in single precision per group.
    assert found.weight_bytes == pytest.approx(LINEAR // 2 + 8 * LINEAR // 32 + REST, rel=0.03)
    assert (evidence.theoretical_bits, evidence.quantized_weights) == (4, LINEAR)


def test_a_group_size_without_a_kernel_here_is_refused() -> None:
    made = method("int4-weight-only-g256")
    made.check("cpu", "float32")
    with pytest.raises(Unsupported, match="group size = 32/64/128"):
        made.start("cpu", "float32")


def test_a_kernel_that_is_not_here_is_refused_with_torchaos_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = method("int4-weight-only")

    def away() -> Any:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

        return Float8DynamicActivationFloat8WeightConfig()

    monkeypatch.setattr(made, "configuration", away)
    with pytest.raises(Unsupported, match=r"int4-weight-only does not run on this cpu in float32: \w+"):
        made.start("cpu", "float32")
