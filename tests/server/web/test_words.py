"""Values in words: in the unit of their name, never in another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from effillm_server.web import words


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ttft_s", 0.0123, "12.3 ms"),
        ("throughput_tok_s", 75.0, "75"),
        ("throughput_tok_s", 12_345.0, "12.3k"),
        ("ram_peak_bytes", 1_530_000_000, "1.53 GB"),
        ("copy_bytes_s", 2e9, "2G"),
        ("declared", True, "yes"),
        ("clock_mhz", {"min": 800, "max": 3000}, "min 800, max 3,000"),
        ("bound_to", [0, 1], "0, 1"),
        ("ttft_s", None, "–"),
        ("name", "a <b>", "a <b>"),
    ],
)
def test_a_value_is_told_in_the_unit_of_its_name(name: str, value: object, said: str) -> None:
    assert words.value(name, value) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (None, "–"),
        (0, "0"),
        (0.01234, "0.0123"),
        (9.876, "9.88"),
        (1234.5, "1,234"),
        (45_600, "45.6k"),
        (2.5e6, "2.5M"),
        (3e9, "3G"),
    ],
)
def test_numbers_keep_three_digits(number: float | None, said: str) -> None:
    assert words.number(number) == said


def test_a_metric_is_named_with_its_unit_where_the_name_hides_it() -> None:
    assert words.label("throughput_tok_s") == "throughput (tokens/s)"
    assert words.label("ram_peak_bytes") == "ram peak"


@pytest.mark.parametrize(
    ("passed", "said"), [(0, "just now"), (5, "5 s ago"), (150, "2 min ago"), (7200, "2 h ago"), (200_000, "2 d ago")]
)
def test_how_long_ago_is_told_in_one_unit(passed: int, said: str) -> None:
    assert words.ago(datetime.now(UTC) - timedelta(seconds=passed)) == said
    assert words.ago(None) == "never"
