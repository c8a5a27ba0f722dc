from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_server.analysis.pareto import pareto
from effillm_server.errors import BadInput

POINTS = st.lists(st.fixed_dictionaries({"t": st.integers(0, 6), "m": st.integers(0, 6)}), max_size=25)


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_a_point_is_kept_exactly_when_no_other_is_nowhere_worse_and_somewhere_better(
    points: list[dict[str, int]],
) -> None:
    kept = set(pareto(points, {"t": "max", "m": "min"}))
    for k, p in enumerate(points):
        beaten = any(q["t"] >= p["t"] and q["m"] <= p["m"] and (q["t"], q["m"]) != (p["t"], p["m"]) for q in points)
        assert (k in kept) is not beaten


def test_equal_points_stay_together() -> None:
    assert pareto([{"t": 1.0}, {"t": 1.0}, {"t": 0.0}], {"t": "max"}) == [0, 1]


def test_no_goal_a_wrong_direction_and_a_missing_value_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one metric"):
        pareto([{"t": 1.0}], {})
    with pytest.raises(BadInput, match="neither 'max' nor 'min'"):
        pareto([{"t": 1.0}], {"t": "up"})  # type: ignore[dict-item]
    with pytest.raises(BadInput, match="finite numbers"):
        pareto([{"t": float("nan")}], {"t": "max"})
