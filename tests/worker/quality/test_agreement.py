from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from effillm_server.contract.quality import Losses
from effillm_worker.quality import agreement
from effillm_worker.quality.agreement import KEPT_BYTES, Comparison, Reference, divergence, kept_positions

LOSSES = Losses(nll=(1.0,), tokens=(100,))


def distributions(seed: int, rows: int, vocabulary: int) -> torch.Tensor:
    return torch.log_softmax(3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("scored", "vocabulary"), [(4096, 50_304), (100, 50_304), (1_000_000, 256_000), (5000, 32)])
def test_kept_distributions_are_bounded_and_evenly_spread(scored: int, vocabulary: int) -> None:
    kept = kept_positions(scored, vocabulary)
    assert 2 * vocabulary * len(kept) <= KEPT_BYTES
    assert kept[0] == 0
    assert kept[-1] == scored - 1
    assert np.ptp(np.diff(kept)) <= 1


def test_divergence_is_scipys() -> None:
    p, q = distributions(1, 1, 500)[0], distributions(2, 1, 500)[0]
    assert divergence(p, q) == pytest.approx(float(entropy(p.exp().double(), q.exp().double())), rel=1e-6)
    assert divergence(p, p) == pytest.approx(0, abs=1e-12)


def test_a_model_agrees_with_itself_wholly_in_the_form_that_is_kept(tmp_path: Path) -> None:
    logp = distributions(3, 100, 400)
    reference = Reference.new(tmp_path, 100, 400)
    for first in range(0, 100, 30):
        reference.look(first, logp[first : first + 30])
    agreement.write_about(tmp_path, "lab/model fp32", reference, LOSSES)
    name, read, losses = agreement.read(tmp_path)
    comparison = Comparison(read)
    comparison.look(0, logp)
    found = comparison.result(name, losses)
    assert found is not None
    assert (found.agreeing, found.positions, found.kl_positions) == (100, 100, 100)
    assert 0 <= found.mean_kl < 1e-5
    assert found.reference == "lab/model fp32"


def test_agreement_of_two_models_is_counted_at_every_position_and_kl_at_the_kept_ones(tmp_path: Path) -> None:
    ours, theirs = distributions(4, 90, 300), distributions(5, 90, 300)
    theirs[::3] = ours[::3]
    reference = Reference.new(tmp_path, 90, 300)
    reference.look(0, ours)
    comparison = Comparison(reference)
    for first in range(0, 90, 40):
        comparison.look(first, theirs[first : first + 40])
    found = comparison.result("it", LOSSES)
    assert found is not None
    assert found.agreeing == int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    expected = [float(entropy(p.exp().double(), q.exp().double())) for p, q in zip(ours, theirs, strict=True)]
    assert found.mean_kl == pytest.approx(float(np.mean(expected)), rel=1e-3)
    assert found.kl_se == pytest.approx(float(np.std(expected, ddof=1)) / 90**0.5, rel=1e-2)


def test_distributions_that_are_no_numbers_give_no_agreement(tmp_path: Path) -> None:
    reference = Reference.new(tmp_path, 2, 4)
    reference.look(0, distributions(6, 2, 4))
    comparison = Comparison(reference)
    comparison.look(0, torch.full((2, 4), float("nan")))
    assert comparison.result("it", LOSSES) is None
