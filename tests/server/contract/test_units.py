"""Units: what people write becomes SI, and back."""

from __future__ import annotations

import pytest

from effillm_server.contract.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GB", 16 * 10**9), ("512 MiB", 512 * 2**20), ("1000", 1_000), ("1.5kB", 1_500), ("2 tib", 2 * 2**40), ("1e3 B", 1_000)],
)  # fmt: skip
def test_sizes_are_read_with_decimal_and_binary_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("1.5 s", 1.5), ("2", 2.0), ("3min", 180.0), ("1h", 3_600.0), ("50 us", 5e-5)]
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "16 G B", "16XB", "ten MB", "1e", "nan"])
def test_what_is_no_size_is_refused_with_the_units_and_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write a number and one of b, kb, .* for example 16GB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 d", "s"])
def test_what_is_no_duration_is_refused_with_the_units_and_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: .* for example 200ms"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_530_000_000, "1.53 GB"), (2_000, "2 kB"), (3e12, "3 TB"), (-5e6, "-5 MB")]
)  # fmt: skip
def test_sizes_are_printed_in_decimal_units(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00085, "850 µs"), (0.0123, "12.3 ms"), (4.2, "4.2 s"), (200, "3 min 20 s"), (7_500, "2 h 05 min"), (3_599.7, "1 h 00 min")],
)  # fmt: skip
def test_durations_are_printed_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
