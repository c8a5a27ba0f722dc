"""The metrics of one iteration against their closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_server.contract import timeline

# Prompt handed over at 1 s, first token 0.5 s later, then a token every 0.1 s: five in all.
STAMPS = [1_000_000_000, 1_500_000_000, 1_600_000_000, 1_700_000_000, 1_800_000_000, 1_900_000_000]
GAPS = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)


def test_every_metric_of_a_known_timeline() -> None:
    assert timeline.ttft_s(STAMPS) == pytest.approx(0.5)
    assert timeline.itl_s(STAMPS) == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert timeline.tpot_s(STAMPS) == pytest.approx(0.1)
    assert timeline.e2e_s(STAMPS) == pytest.approx(0.9)
    assert timeline.throughput_tok_s(STAMPS, batch_size=4) == pytest.approx(5 * 4 / 0.9)
    assert timeline.decode_tok_s(STAMPS, batch_size=4) == pytest.approx(4 * 4 / 0.4)
    assert timeline.prefill_tok_s(STAMPS, prompt_tokens=512) == pytest.approx(512 / 0.5)


def test_one_token_alone_has_no_gap_and_no_decode_speed() -> None:
    assert timeline.itl_s(STAMPS[:2]) == []
    assert timeline.tpot_s(STAMPS[:2]) is None
    assert timeline.decode_tok_s(STAMPS[:2], batch_size=1) is None
    assert timeline.throughput_tok_s(STAMPS[:2], batch_size=1) == pytest.approx(2.0)


@settings(deadline=None)
@given(GAPS, st.integers(0, 10**15), st.integers(1, 64))
def test_the_parts_add_up_to_the_whole_wherever_the_clock_starts(gaps: list[int], start: int, batch: int) -> None:
    stamps = [start]
    for gap in gaps:
        stamps.append(stamps[-1] + gap)
    assert timeline.ttft_s(stamps) + sum(timeline.itl_s(stamps)) == pytest.approx(timeline.e2e_s(stamps))
    assert len(timeline.itl_s(stamps)) == len(gaps) - 1
    assert timeline.throughput_tok_s(stamps, batch) * timeline.e2e_s(stamps) == pytest.approx(len(gaps) * batch)
    per_token = timeline.tpot_s(stamps)
    if per_token is not None:
        assert per_token == pytest.approx(sum(timeline.itl_s(stamps)) / (len(gaps) - 1))
