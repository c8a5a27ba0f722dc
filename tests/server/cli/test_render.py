"""What is printed: numbers as people read them, nothing that steers the terminal."""

from __future__ import annotations

import pytest

from effillm_server.cli import tables
from effillm_server.cli.render import interval, plain


def test_control_characters_from_elsewhere_do_not_reach_the_terminal() -> None:
    assert plain("a\x1b[31mred\x07\nb") == "a�[31mred� b"


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (41.2567, 40.9, 41.6, "41.26 ± 0.35"),
        (1234.5, 1230.0, 1239.0, "1234 ± 4"),
        (None, None, None, ""),
        (5.0, None, None, "5"),
    ],
)
def test_a_mean_is_shown_with_half_the_width_of_its_interval(
    mean: float | None, low: float | None, high: float | None, text: str
) -> None:
    assert interval({"x_mean": mean, "x_ci95_low": low, "x_ci95_high": high}, "x") == text


def test_markup_in_a_name_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tables.sweeps([sweep("[bold]name[/bold] :smile:")])
    assert "[bold]name[/bold] :smile:" in capsys.readouterr().out


def test_a_tally_names_only_the_states_there_are() -> None:
    assert tables.tally(sweep("x")) == "2 measured, 1 infeasible, 1 running"


def test_an_empty_list_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    tables.sweeps([])
    assert capsys.readouterr().out == "no sweeps yet: submit one with `effillm submit FILE`\n"


def test_a_verdict_says_what_speaks_against_a_row() -> None:
    assert (
        tables.verdict({"verdict": "invalid", "verdict_reasons": ["other_load: they used 1.8 of 2 processors", "swap"]})
        == "invalid: other_load, swap"
    )
    assert tables.verdict({"verdict": "valid", "verdict_reasons": [], "simulated": True}) == "valid, simulated"
    assert tables.verdict({"verdict": None, "reason": "context_window"}) == "context_window"


def sweep(name: str) -> dict[str, object]:
    counts = {"measured": 2, "infeasible": 1, "leased": 1, "pending": 0}
    return {
        "id": "s1",
        "name": name,
        "state": "running",
        "total": 4,
        "counts": counts,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
