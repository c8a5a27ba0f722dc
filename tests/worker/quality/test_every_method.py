"""Quality of one trained model under every method, each in a process of its own: what theory says of bits holds, whatever stores them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from effillm_server.analysis import quality
from effillm_server.contract.quality import Losses, Quality, QualityPlan
from effillm_server.contract.quantization import bits_of
from effillm_worker.messages import Judge, Judged, Opened
from tests.support import gptq, trained
from tests.support.child import child_process, opening
from tests.support.fake_engine import cell

pytestmark = [pytest.mark.quantization, pytest.mark.timeout(900)]

PLAN = QualityPlan(text="held-out.txt", tokens=2048)
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
# By family, from many bits to few.
FAMILIES = {
    "uniform": ("uniform-b8", "uniform-b4", "uniform-b3", "uniform-b2"),
    "uniform by channel": tuple(f"uniform-b{bits}-channel" for bits in (8, 4, 3, 2)),
    "gptq": tuple(f"gptq-b{bits}-g64-torch@calibration.txt" for bits in (8, 4, 3, 2)),
    "bitsandbytes": ("int8", "int4"),
    "torchao": ("int8-dynamic", "int4-weight-only"),
}
LABELS = (
    "fp16", "bf16", "int4-fp4", "int4-nf4-double", "dynamic-m0.3@calibration.txt", "qat-b4@calibration.txt",
    *(label for family in FAMILIES.values() for label in family),
)  # fmt: skip


class Bench:
    """The trained model under a label, judged once."""

    def __init__(self, folder: Path) -> None:
        self._root = gptq.model_root(folder / "models")
        (self._root / "held-out.txt").write_text(trained.held_out(60))
        self._cache = folder / "cache"
        self._known: dict[str, Quality] = {}

    def judged(self, label: str) -> Quality:
        if label not in self._known:
            of = cell(model="lab/trained", weights="pretrained", quantization=label, dtype=DTYPES.get(label, "float32"))
            with child_process() as child:
                child.say(opening(of, self._cache, model_root=str(self._root), quality=PLAN))
                child.answer(Opened)
                child.say(Judge(plan=PLAN, time_limit_s=600.0))
                self._known[label] = child.answer(Judged).quality
        return self._known[label]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("every")
    (folder / "models").mkdir()
    return Bench(folder)


def loss(found: Quality, than: Losses) -> Mapping[str, float]:
    """Rise of perplexity over other losses on the same tokens, with its paired interval, as a row has it."""
    assert found.agreement is not None
    beside = found.model_copy(update={"agreement": found.agreement.model_copy(update={"losses": than})})
    columns: dict[str, Any] = quality.columns(beside.model_dump(mode="json"))
    return {name: columns[f"quality_loss{name}"] for name in ("", "_ci95_low", "_ci95_high")}


@pytest.mark.parametrize("label", LABELS)
def test_a_quantized_model_is_no_better_than_the_unquantized_one_and_still_knows_the_language(
    bench: Bench, label: str
) -> None:
    found = bench.judged(label)
    assert found.notes == ()
    assert (found.tokens, found.window, found.stride) == (2048, 256, 128)
    assert found.losses is not None and found.agreement is not None
    against = loss(found, found.agreement.losses)
    print(label, against, found.agreement.mean_kl, found.agreement.agreeing / found.agreement.positions)
    # Rounding moves a loss on real text either way to the first order, sqrt(2 KL), and by chance to the better; the KL only up.
    assert against["_ci95_high"] >= -math.sqrt(2 * found.agreement.mean_kl)
    assert found.agreement.mean_kl > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bits_are_not_better(bench: Bench, family: str) -> None:
    """Within the interval of the paired differences; by the divergence from the unquantized model they are worse without exception."""
    found = [bench.judged(label) for label in FAMILIES[family]]
    steps = []
    for more, fewer in pairwise(found):
        assert more.losses is not None and fewer.losses is not None
        steps.append(loss(fewer, more.losses))
    print(family, steps)
    assert all(step["_ci95_high"] >= 0 for step in steps)
    bits = [bits_of(label) or 0.0 for label in FAMILIES[family]]
    if bits[-1] < 4:  # so few that 2,048 tokens cannot hide it; 4 bits may cost less than these resolve
        assert steps[-1]["_ci95_low"] > 0
    kl = [each.agreement.mean_kl for each in found if each.agreement is not None]
    assert kl == sorted(kl) and len(kl) == len(found)
    # A bit less doubles the step, so it quadruples the power of the error and the KL with it; a sixteenth of that over a family is
    # left to what rounds on top, like the inputs of int8.
    assert kl[-1] > 4 ** (bits[0] - bits[-1]) / 16 * kl[0]


@pytest.mark.parametrize("label", ["bf16", "fp16"])
def test_half_precision_is_as_good_as_single(bench: Bench, label: str) -> None:
    found = bench.judged(label)
    assert found.agreement is not None
    against = loss(found, found.agreement.losses)
    assert abs(against[""]) < 0.002
    assert found.agreement.agreeing / found.agreement.positions > 0.98
