"""The picture of a cell's iterations, to scale and of bounded size."""

from __future__ import annotations

import re

import pytest

from effillm_server.web.timeline import LEFT, MOST_LINES, MOST_TICKS, PLOT, drawn, iterations
from tests.support.results import sample, timeline


def test_the_bar_is_the_first_token_and_each_tick_a_further_one() -> None:
    found = drawn([sample("measured", 0, timeline(0.5, [0.25, 0.25]))])
    (line,) = found.lines
    assert line.first == PLOT / 2
    assert line.ticks.startswith(f"M{LEFT + PLOT / 2:.1f} ")
    moves = [float(move) for move in re.findall(r"m([0-9.]+)", line.ticks)]
    assert moves == [PLOT / 4, PLOT / 4]
    assert line.said == "measured 0: first token 500 ms, all 1 s"


def test_all_iterations_share_one_scale() -> None:
    found = drawn([sample("measured", 0, timeline(1.0, [])), sample("ttft", 0, timeline(0.25, []), outlier=True)])
    assert [line.first for line in found.lines] == [PLOT, PLOT / 4]
    assert [line.outlier for line in found.lines] == [False, True]
    assert found.axis[0] == (LEFT, "0")
    assert found.axis[-1] == (LEFT + PLOT, "1 s")


def test_a_long_record_is_drawn_as_far_as_a_page_can_take_it() -> None:
    long = [sample("measured", n, timeline(0.01, [0.001] * 999)) for n in range(100)]
    found = drawn(long)
    assert 0 < found.shown <= MOST_TICKS // 1000
    assert found.total == 100
    assert drawn([sample("ttft", n, timeline(0.01, [])) for n in range(500)]).shown == MOST_LINES


def test_the_numbers_of_an_iteration_are_those_of_the_contract() -> None:
    (found,) = iterations([sample("measured", 3, timeline(0.5, [0.1, 0.3]), prompt_tokens=64)], batch_size=2)
    assert (found.ttft_s, found.longest_s, found.tok_s) == pytest.approx((0.5, 0.3, 6 / 0.9))
    assert (found.phase, found.iteration, found.prompt_tokens) == ("measured", 3, 64)
