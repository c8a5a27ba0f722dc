from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effillm_worker.quantization.assign import Choice, hull, path, total_bytes, total_harm

LAYERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.integers(1, 50), st.floats(0.001, 10)).map(
        lambda drawn: tuple(Choice(bits, bits * drawn[0], drawn[1] * 4.0 ** (2 - bits)) for bits in (2, 3, 4, 8))
    ),
    min_size=1,
    max_size=4,
)


@given(LAYERS, st.floats(0, 1))
def test_plan_keeps_its_budget_and_is_near_the_best_there_is(
    layers: dict[str, tuple[Choice, ...]], share: float
) -> None:
    smallest = sum(choices[0].bytes for choices in layers.values())
    largest = sum(choices[-1].bytes for choices in layers.values())
    budget = smallest + int(share * (largest - smallest))
    *_, plan = path(layers, budget)
    assert total_bytes(plan) <= budget
    names = list(layers)
    every = [dict(zip(names, each, strict=True)) for each in product(*layers.values())]
    best = min(total_harm(other) for other in every if total_bytes(other) <= budget)
    # Greedy along the hull is off by at most the one step that did not fit.
    largest_step = max(one.harm - other.harm for c in layers.values() for one, other in pairwise(c))
    assert best - 1e-12 <= total_harm(plan) <= best + largest_step + 1e-9


@given(LAYERS)
def test_path_grows_in_bytes_shrinks_in_harm_and_ends_at_the_most_bits(layers: dict[str, tuple[Choice, ...]]) -> None:
    plans = list(path(layers))
    assert plans[0] == {name: choices[0] for name, choices in layers.items()}
    assert plans[-1] == {name: choices[-1] for name, choices in layers.items()}
    for before, after in pairwise(plans):
        assert total_bytes(after) > total_bytes(before)
        assert total_harm(after) < total_harm(before)


def test_hull_leaves_out_what_is_larger_and_no_better_or_a_bad_bargain() -> None:
    small, bargain, poor, worse, best = (
        Choice(2, 10, 8.0), Choice(3, 20, 2.0), Choice(4, 30, 1.9), Choice(5, 35, 2.5), Choice(8, 40, 0.0),
    )  # fmt: skip
    assert hull((worse, best, small, poor, bargain)) == (small, bargain, best)


def test_the_layer_that_suffers_most_for_its_bytes_gets_the_bits() -> None:
    tough = (Choice(2, 20, 0.1), Choice(4, 40, 0.01))
    frail = (Choice(2, 20, 5.0), Choice(4, 40, 0.5))
    *_, plan = path({"tough": tough, "frail": frail}, 60)
    assert {name: choice.bits for name, choice in plan.items()} == {"tough": 2, "frail": 4}
    assert total_harm(plan) == pytest.approx(0.6)
