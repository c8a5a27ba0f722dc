"""What is printed: numbers as people read them, nothing that steers the terminal."""

from __future__ import annotations

import pytest

from effillm_server.cli import render, tables
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


def result(quantization: str, **differing: object) -> dict[str, object]:
    return {
        "state": "measured", "model": "EleutherAI/pythia-70m", "quantization": quantization, "batch_size": 1, "sequence_length": 32,
        "throughput_tok_s_mean": 41.62, "throughput_tok_s_ci95_low": 39.1, "throughput_tok_s_ci95_high": 44.13, "ttft_s_mean": 0.0303,
        "ram_peak_bytes": 804e6, "hardware": "cpu", "verdict": "suspect", "verdict_reasons": ["unstable_warmup: it still fell"],
    } | differing  # fmt: skip


def test_a_narrow_terminal_has_what_all_rows_share_in_one_line_and_every_row_in_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "WIDTH_WITHOUT_TERMINAL", 80)
    tables.results(
        [
            result("int8"),
            result("gptq-b4-g128-torch"),
            result("uniform-b4-channel", verdict="valid", verdict_reasons=[]),
        ]
    )
    shown = capsys.readouterr()
    assert shown.err == "every row: measured, pythia-70m, batch 1, seq 32\n"
    _, *rows = shown.out.splitlines()
    assert rows[0].split() == ["int8", "41.62", "±", "2.52", "30.3", "ms", "804", "MB", "suspect:", "unstable_warmup"]
    assert rows[-1].split() == ["uniform-b4-channel", "41.62", "±", "2.52", "30.3", "ms", "804", "MB", "valid"]
    assert all(len(row) <= 80 for row in rows)


def test_what_differs_stays_a_column_where_the_terminal_is_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "WIDTH_WITHOUT_TERMINAL", 80)
    infeasible = {"state": "infeasible", "verdict": None, "reason": "context_window", "throughput_tok_s_mean": None}
    tables.results([result("int8"), result("int8", batch_size=4, **infeasible)])
    shown = capsys.readouterr()
    assert shown.err == "every row: pythia-70m, seq 32\n"
    assert "state" in shown.out and "batch" in shown.out and "infeasible" in shown.out and "context_window" in shown.out


def test_a_wide_terminal_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    tables.results([result("int8"), result("int4")])
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.splitlines()[0].split()[:5] == ["state", "model", "quant", "batch", "seq"]
