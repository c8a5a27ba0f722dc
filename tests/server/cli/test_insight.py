"""`report`, `figure`, `compare`, `recommend` and the ways to look at results, against a real server with measured rows."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from effillm_server.api.insight_views import Aim as ServedAim
from effillm_server.cli import box, insight
from effillm_server.cli.client import Client
from effillm_server.cli.main import main
from tests.support.api import add_device, finish, lease, measured, serving
from tests.support.postgres import cloned


@dataclass(frozen=True)
class Lab:
    """A server with two sweeps of four batch sizes: all of the first measured, none of the second."""

    url: str
    full: str
    empty: str


@pytest.fixture(scope="module")
def served(postgres_url: str, template_database: str) -> Iterator[Lab]:
    with cloned(postgres_url, template_database) as url, serving(url) as api:
        add_device(api.engine)
        axes = {"quantization": ["fp32"], "batch_size": [1, 2, 4, 8]}
        full = api.submit(**axes)
        for _ in range(4):
            held = lease(api.engine)
            finish(api.engine, held, measured(held))
        yield Lab(str(api.http.base_url), full["id"], api.submit(**axes)["id"])


@pytest.fixture
def lab(served: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    monkeypatch.setenv("EFFILLM_URL", served.url)
    monkeypatch.chdir(tmp_path)
    return served


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def effillm(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """The command, run in this process: what it printed and its exit code."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["effillm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfdbinary.readouterr()
        return Done(int(str(ended.value.code)), said.out.decode(), said.err.decode())

    return run


def refused(done: Done, *parts: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("effillm: ")
    assert all(part in done.err for part in parts), done.err


def test_the_report_is_one_file(lab: Lab, effillm: Command) -> None:
    done = effillm("report", lab.full, "-o", "deep/report.html")
    assert (done.code, done.out, done.err) == (0, "", "wrote deep/report.html\n")
    assert Path("deep/report.html").read_text().startswith("<!doctype html>")
    assert effillm("report", lab.full, "--interactive").code == 0
    assert "vegaEmbed(" in Path("report.html").read_text()


@pytest.mark.parametrize(
    "command", [("report", "-o", "/proc/x.html"), ("figure", "throughput-vs-batch", "-o", "/proc/x.svg")]
)
def test_a_file_that_cannot_be_written_is_named(lab: Lab, effillm: Command, command: tuple[str, ...]) -> None:
    name, *rest = command
    refused(effillm(name, lab.full, *rest), f"{rest[-1]} cannot be written")


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("json", b"{")])
def test_a_figure_is_drawn_in_the_format_of_its_file(lab: Lab, effillm: Command, suffix: str, start: bytes) -> None:
    done = effillm("figure", lab.full, "throughput-vs-batch", "-o", f"x.{suffix}", "--filter", "batch_size=1,2,4")
    assert (done.code, done.err) == (0, f"wrote x.{suffix}\n")
    assert Path(f"x.{suffix}").read_bytes().startswith(start)


def test_a_figure_that_cannot_be_drawn_leaves_no_file(lab: Lab, effillm: Command) -> None:
    refused(effillm("figure", lab.full, "throughput-vs-size"), "not enough data", "at least two models")
    refused(effillm("figure", lab.full, "throughput-vs-bach"), "did you mean 'throughput-vs-batch'")
    refused(effillm("figure", lab.full, "throughput-vs-batch", "-o", "x.gif"), "x.gif", ".svg, .png, .pdf or .json")
    refused(effillm("figure", lab.full, "../sweeps"), "no name of a figure")
    refused(effillm("figure", lab.full, "-o", "x.svg"), "name the figure")
    assert list(Path().iterdir()) == []


def test_without_a_name_the_figures_are_listed_with_what_they_need(lab: Lab, effillm: Command) -> None:
    done = effillm("figure", lab.full)
    [drawable] = [line for line in done.out.splitlines() if " throughput-vs-batch " in line]
    assert drawable.split()[-1] == "yes"
    assert "at least two models" in done.out
    assert len(json.loads(effillm("figure", lab.full, "--json").out)) == 15


def test_a_comparison_fails_when_a_cell_is_slower_than_allowed(lab: Lab, effillm: Command) -> None:
    sides = (f"{lab.full}:batch_size=8", f"{lab.full}:batch_size=1")
    done = effillm("compare", *sides, "--fail-if", "slower:3%")
    assert done.code == 1
    assert "-87.5%" in done.out
    assert "slower:3%: 1 of 1 cells meet it" in done.out
    assert "differs on purpose: batch_size is 8 in A, 1 in B" in done.out
    better = effillm("compare", *reversed(sides), "--fail-if", "slower:3%", "--noise-floor", "2%", "--json")
    assert better.code == 0
    assert "2.0% sd" in json.loads(better.out)["remarks"][1]
    assert json.loads(better.out)["counts"] == {"faster": 1, "slower": 0, "same": 0, "unsure": 0}


def test_what_cannot_be_compared_is_told(lab: Lab, effillm: Command) -> None:
    refused(effillm("compare", lab.full, lab.full), "the same 4 results")
    refused(effillm("compare", lab.full, lab.empty), "B has no valid measured row")
    refused(effillm("compare", lab.full, "nowhere"), "no sweep has an id that begins with 'nowhere'")
    refused(effillm("compare", lab.full, lab.empty, "--margin", "much"), "'much' is not a share")
    refused(effillm("compare", lab.full, f"{lab.full}:batch_size=1", "--fail-if", "slow"), "'slow' is not a condition")


def test_the_best_configuration_is_recommended_in_a_sentence(lab: Lab, effillm: Command) -> None:
    limits = ("--aim", "throughput", "--max-ttft", "200ms", "--filter", "batch_size=1,4")
    done = effillm("recommend", lab.full, *limits)
    assert done.code == 0
    assert "most tokens per second" in done.out
    assert "2 of 2 measured configurations surely keep the limits" in done.out
    assert json.loads(effillm("recommend", lab.full, *limits, "--json").out)["recommended"]["batch_size"] == 4


def test_a_limit_that_nothing_keeps_ends_with_1_and_says_how_far_off_it_is(lab: Lab, effillm: Command) -> None:
    done = effillm("recommend", lab.full, "--max-ttft", "1ms")
    assert done.code == 1
    assert "the best there is has 10 ms" in done.out
    refused(effillm("recommend", lab.full, "--max-memory", "16 apples"), "not a size")
    refused(effillm("recommend", lab.empty), "no valid measured row")


def test_results_are_filtered_and_sorted_in_every_format(lab: Lab, effillm: Command) -> None:
    wanted = ("results", lab.full, "--filter", "batch_size=2,4,8", "--sort", "throughput", "--descending")
    assert [row["batch_size"] for row in json.loads(effillm(*wanted, "--json").out)] == [8, 4, 2]
    rows = csv.DictReader(io.StringIO(effillm(*wanted, "--format", "csv").out))
    assert [row["batch_size"] for row in rows] == ["8", "4", "2"]
    assert effillm(*wanted, "--format", "parquet", "-o", "x.parquet").code == 0
    assert pq.read_table("x.parquet").column("batch_size").to_pylist() == [8, 4, 2]
    assert effillm(*wanted).out.count("valid") == 3
    refused(
        effillm("results", lab.full, "--sort", "throughputs"), "no column 'throughputs'", "did you mean 'throughput"
    )
    refused(effillm("results", lab.full, "--filter", "batch=2"), "did you mean 'batch_size'")


def test_a_statistic_of_every_metric_makes_a_table(lab: Lab, effillm: Command) -> None:
    done = effillm("results", lab.full, "--stat", "median")
    assert "throughput_tok_s median" in done.out
    assert "66.67" in done.out
    assert "10 ms" in effillm("results", lab.full, "--stat", "p95").out
    refused(effillm("results", lab.full, "--stat", "median", "--format", "csv"), "--stat is for the table")


def test_the_words_of_another_tool_are_printed_and_saved_with_their_meaning(lab: Lab, effillm: Command) -> None:
    assert "first token - request start; mean" in effillm("results", lab.full, "--dialect", "vllm").out
    assert effillm("results", lab.full, "--dialect", "llama-bench", "--format", "csv", "-o", "x.csv").code == 0
    with Path("x.csv").open() as file:
        assert {line["dialect"] for line in csv.DictReader(file)} == {"llama-bench"}
    refused(effillm("results", lab.full, "--dialect", "esperanto"), "vllm")
    refused(effillm("results", lab.full, "--dialect", "vllm", "--stat", "p95"), "--dialect has lines of its own")


def test_a_run_without_a_report_says_why(lab: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with closing(Client(lab.url)) as client:
        assert box.report(client, lab.full, tmp_path) == ["report.html"]
        assert (tmp_path / "report.html").exists()
        assert box.report(client, "nowhere", tmp_path / "other") == []
    assert "no report: no sweep has the id 'nowhere'" in capsys.readouterr().err


def test_the_aims_are_those_of_the_server() -> None:
    assert list(map(str, insight.Aim)) == list(map(str, ServedAim))
