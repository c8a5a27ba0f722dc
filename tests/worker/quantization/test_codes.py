"""Uniform codes: the paper's equation, its error bound, and bits really stored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_worker.quantization.codes import UniformLinear, dequantize, pack, packed_matrix, quantize, unpack


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_the_papers_equation(bits: int) -> None:
    weight = normal(5, 7).to(torch.float64).to(torch.float32)
    codes, _, _ = quantize(weight, bits)
    exact = weight.to(torch.float64)
    low, high = exact.min(), exact.max()
    assert codes.to(torch.float64).equal(((exact - low) / (high - low) * (2**bits - 1)).round())
    assert (int(codes.min()), int(codes.max())) == (0, 2**bits - 1)


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_no_weight_is_off_by_more_than_half_a_step(bits: int, channel: bool) -> None:
    weight = normal(16, 33, seed=bits)
    codes, low, step = quantize(weight, bits, channel=channel)
    error = (dequantize(codes, low, step, torch.float32) - weight).abs()
    ranges = weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True) if channel else weight.max() - weight.min()
    half_step = ranges / (2**bits - 1) / 2
    rounding = 4 * torch.finfo(torch.float32).eps * weight.abs().max()
    assert bool((error <= half_step + rounding).all())
    assert float(error.max()) > 0.4 * float(half_step.max())  # the bound is the right one, not merely a large one


def test_a_range_per_channel_is_never_worse_than_one_for_all() -> None:
    weight = normal(32, 64) * torch.logspace(-2, 1, 32).unsqueeze(1)
    errors = {}
    for channel in (False, True):
        codes, low, step = quantize(weight, 4, channel=channel)
        errors[channel] = float((dequantize(codes, low, step, torch.float32) - weight).norm())
    assert errors[True] < errors[False]


@pytest.mark.parametrize("channel", [False, True])
def test_a_constant_matrix_comes_back_exactly(channel: bool) -> None:
    weight = torch.full((3, 4), 0.25)
    assert dequantize(*quantize(weight, 4, channel=channel), torch.float32).equal(weight)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.integers(1, 100), st.randoms(use_true_random=False))
def test_packing_loses_nothing_and_wastes_less_than_a_byte(bits: int, count: int, random: object) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))  # type: ignore[attr-defined]
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.numel() == math.ceil(count * bits / 8)
    assert unpack(packed, bits, count).equal(codes)


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_the_layer_multiplies_by_what_its_codes_stand_for_and_counts_what_it_stores(bits: int, channel: bool) -> None:
    plain = torch.nn.Linear(48, 24)
    layer = UniformLinear(plain.weight, plain.bias, bits, channel=channel)
    inputs = normal(3, 48, seed=9)
    expected = dequantize(*quantize(plain.weight, bits, channel=channel), torch.float32)
    with torch.no_grad():
        assert layer.matrix().equal(expected)
        assert layer(inputs).equal(torch.nn.functional.linear(inputs, expected, plain.bias))
    found = packed_matrix(layer)
    assert found is not None
    ranges = 8 * (24 if channel else 1)
    assert (found.weights, found.stored.bytes) == (48 * 24, 48 * 24 * bits // 8 + ranges)


def test_what_is_no_uniform_layer_is_not_counted_as_one() -> None:
    assert packed_matrix(torch.nn.Linear(2, 2)) is None
