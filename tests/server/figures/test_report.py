from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from effillm_server.analysis import Facts
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.figures import FIGURES, Options, report
from effillm_server.figures.theme import DARK, LIGHT
from effillm_server.lifecycle import JobState, SweepState
from effillm_server.records import SweepRecord
from tests.support.sweeps import SIZES, Grid, Noise, infeasible, invent

OPTIONS = Options(facts=Facts(parameters=SIZES))
JUDGED = {"perplexity": 12.34, "quality_loss": 0.034, "quality_loss_ci95_low": 0.03, "quality_loss_ci95_high": 0.038}
ROWS = invent(
    Grid(models=tuple(SIZES)[:4], quantization=("fp32", "int8"), batch_size=(1, 2, 4, 8), sequence_length=(128, 256)), noise=Noise(0.02)
)  # fmt: skip
VOID = {"meta", "br", "path", "rect", "line", "stop", "image", "use"}


class Structure(HTMLParser):
    """Checks that elements close in order, and collects tags, ids and outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attributes)
        self.ids += [str(values["id"])] if "id" in values else []
        self.references += [str(values[k]) for k in ("href", "src", "xlink:href") if k in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def read(html: str) -> Structure:
    structure = Structure()
    structure.feed(html)
    assert structure.open == []
    return structure


def sweep(name: str = "a sweep") -> SweepRecord:
    definition = SweepDefinition.model_validate(
        {"name": name, "models": ["facebook/opt-125m"], "hardware": ["cpu"], "quantization": ["fp32"]}
    )
    return SweepRecord(
        id="s1", name=name, definition=definition, priority=0, owner=None, visibility="lab", created_at=datetime.now(UTC),
        cancelled_at=None, state=SweepState.FINISHED, total=1, counts=dict.fromkeys(JobState, 0), reasons={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def html() -> str:
    refused = infeasible({"model": "facebook/opt-125m", "hardware": "cpu", "quantization": "fp32", "batch_size": 16,
                          "sequence_length": 128, "job": 999}, "out_of_host_memory")  # fmt: skip
    return report(sweep(), [*ROWS, refused], OPTIONS)


def test_the_report_is_one_file_without_script_or_outside_reference(html: str) -> None:
    structure = read(html)
    assert "script" not in structure.tags
    assert all(reference.startswith("#") for reference in structure.references)
    assert "@import" not in html and "url(http" not in html


def test_ids_are_unique_although_many_figures_share_the_page(html: str) -> None:
    ids = read(html).ids
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    assert used and used <= set(ids)


def test_every_figure_is_drawn_or_says_what_it_needs(html: str) -> None:
    for name, figure in FIGURES.items():
        assert f"id='{name}'" in html or f"Figure {figure.number}, " in html
    assert "Figure 16, cost efficiency across hardware — not enough data: needs a price" in html


def test_what_the_intervals_really_cover_is_said_where_they_are_introduced(html: str) -> None:
    figures = html[html.index("<section id='figures'>") :]
    assert "hold the truth in about 91 % of cells" in figures[: figures.index("<figure")]


def test_quality_stands_in_the_tables_where_it_was_measured_and_nowhere_else(html: str) -> None:
    judged = report(sweep(), [{**row, **JUDGED} for row in invent(Grid(quantization=("fp32", "int8")))], OPTIONS)
    results = judged[judged.index("<section id='results'>") :]
    assert "perplexity" in results and "12.34" in results
    assert judged.count("3.4% (3.0% to 3.8%)") == 3  # both rows, and int8 against fp32
    assert "perplexity" not in html[html.index("<section id='results'>") :]


def test_why_a_precision_is_slower_stands_with_both_sides_numbers_where_they_were_measured(html: str) -> None:
    fp32, int8 = invent(Grid(quantization=("fp32", "int8")))
    fp32 |= {"mbu_decode": 0.61, "mfu_prefill": 0.52}
    int8 |= {
        "mbu_decode": 0.12,
        "mfu_prefill": 0.07,
        "dequantization_share_decode": 0.43,
        "dequantization_share_prefill": 0.09,
        "throughput_tok_s_mean": 1.0,
    }
    written = report(sweep(), [fp32, int8], OPTIONS)
    part = written[written.index("Why a precision is slower") : written.index("Best batch size")]
    for cell in ("12%", "61%", "7%", "52%", "43%, 9%"):
        assert f"<td class='n'>{cell}</td>" in part
    assert "int8 is slower than fp32 here: 43% of its decoding time" in part
    assert "Why a precision is slower" not in html


def test_each_precision_stands_beside_its_partner_and_the_others_are_behind_a_line() -> None:
    written = report(sweep(), invent(Grid(quantization=("fp32", "bf16", "int8", "int4"))), OPTIONS)
    part = written[written.index("Quantization against an unquantized precision") : written.index("Best batch size")]
    shown, _, behind = part.partition("<details>")
    assert [shown.count(f"<td>{name}</td>") for name in ("fp32", "bf16")] == [3, 0]
    assert "against other unquantized precisions, 2 pairs" in behind
    assert [behind.count(f"<td>{name}</td>") for name in ("fp32", "bf16")] == [0, 2]


def test_it_holds_findings_claims_fits_frontier_validity_hardware_and_results(html: str) -> None:
    for section in (
        "findings",
        "recommendations",
        "figures",
        "claims",
        "fits",
        "efficiency",
        "limits",
        "validity",
        "hardware",
        "results",
    ):
        assert f"<section id='{section}'>" in html
    assert "Highest throughput on cpu" in html
    assert "16: out_of_host_memory" in html
    assert "synthetic weights" in html


def test_what_to_deploy_is_told_model_by_model_and_missing_measurements_are_named(html: str) -> None:
    section = html[html.index("<section id='recommendations'>") : html.index("<section id='figures'>")]
    for model in ("pythia-70m", "opt-125m", "pythia-160m", "opt-350m"):
        assert f"<td>{model}</td><td>throughput</td>" in section
    assert "energy: no row has a measured energy" in section and "EFFILLM_PRICES" in section


def test_a_dark_page_turns_every_colour_of_the_figures(html: str) -> None:
    for light, dark in zip(LIGHT.series, DARK.series, strict=True):
        assert f"figure svg [stroke='{light}']{{stroke:{dark}}}" in html


def test_names_from_outside_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    rows = [{**row, "model": evil, "verdict_reasons": [evil]} for row in ROWS[:8]]
    written = report(sweep(evil), rows, OPTIONS)
    assert "<script" not in written and "alert(1)" in written


def test_an_empty_sweep_gives_a_report_that_says_so() -> None:
    written = report(None, [], OPTIONS)
    assert "no valid measured row to analyse" in written
    assert written.count("not enough data") == len(FIGURES)
    read(written)


def test_a_simulated_sweep_says_so_at_the_top() -> None:
    assert "These rows are SIMULATED" in report(None, [{**row, "simulated": True} for row in ROWS[:6]], OPTIONS)


def test_hardware_is_described_from_the_fingerprint() -> None:
    detail: dict[str, Any] = {
        "hardware": {"processor": {"model": "Xeon X", "physical_cores": 8, "sockets": 2}, "memory_bytes": 64 * 10**9},
        "software": {"python": "3.11", "kernel": "6.1", "versions": {"torch": "2.13.0"}},
    }
    written = report(None, [{**row, "fingerprint_detail": detail} for row in ROWS[:4]], OPTIONS)
    assert "Xeon X, 8 cores, 2 sockets; 64 GB memory; Python 3.11, kernel 6.1; torch 2.13.0" in written


def test_live_charts_come_only_when_asked_for_and_carry_their_code() -> None:
    rows = [{**row, "model": "</script>x"} for row in ROWS[:4]]
    written = report(None, rows, OPTIONS, interactive=True)
    assert "vegaEmbed('#live-throughput-vs-batch'" in written
    assert written.count("<script") == written.count("</script")


def test_a_report_of_500_cells_takes_under_ten_seconds_and_five_megabytes() -> None:
    grid = Grid(models=tuple(SIZES), hardware=("cpu", "t4", "rtx-4090"), quantization=("fp32", "fp16", "int8", "int4"),
                batch_size=(1, 4, 16), sequence_length=(128, 512))  # fmt: skip
    rows = invent(grid, noise=Noise(0.03))
    assert len(rows) == 504
    started = time.process_time()
    written = report(None, rows, Options(facts=Facts.from_catalog()))
    # Processor time: the wall clock of a test run belongs to whoever else is running.
    assert time.process_time() - started < 10
    assert len(written.encode()) < 5_000_000
