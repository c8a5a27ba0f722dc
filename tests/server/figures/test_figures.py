from __future__ import annotations

import json
import math
from typing import Any

import pytest
from altair.utils.schemapi import validate_jsonschema
from altair.vegalite.v6.schema.core import load_schema

from effillm_server.analysis import Facts
from effillm_server.catalog import Price
from effillm_server.errors import BadInput, NotFound
from effillm_server.figures import FIGURES, Options, chart, render
from tests.support.sweeps import SIZES, Grid, Noise, infeasible, invent

PRICES = {"cpu": Price(purchase_usd=2000, hourly_usd=0.5, source="invoice", date="2026-01-01"),
          "t4": Price(purchase_usd=2500, hourly_usd=0.6, source="invoice", date="2026-01-01")}  # fmt: skip
FACTS = Facts(parameters=SIZES, prices=PRICES)
OPTIONS = Options(facts=FACTS)
SCHEMA = load_schema()
ROWS = invent(
    Grid(models=tuple(SIZES)[:5], hardware=("cpu", "t4"), quantization=("fp32", "fp16", "int8"), batch_size=(1, 2, 4, 8),
         sequence_length=(128, 256, 512, 1024)), noise=Noise(0.02),
)  # fmt: skip
PAPER = {
    "throughput-vs-size": 2, "throughput-vs-batch": 3, "throughput-vs-sequence": 4, "throughput-heatmap": 5, "ttft-vs-size": 6,
    "ttft-vs-batch": 7, "ttft-vs-sequence": 8, "ttft-heatmap": 9, "memory-vs-size": 10, "memory-by-quantization": 11,
    "memory-throughput": 12, "throughput-by-quantization": 13, "quantization-radar": 14, "per-instance-throughput": 15,
    "cost-efficiency": 16,
}  # fmt: skip
LINES = [name for name in PAPER if "-vs-" in name] + ["per-instance-throughput"]
WITH_BARS = [
    name
    for name in PAPER
    if name not in ("memory-vs-size", "memory-by-quantization", "throughput-heatmap", "ttft-heatmap")
]


def layers(spec: Any) -> list[dict[str, Any]]:
    """Every unit of a specification."""
    inner = spec.get("layer", []) + spec.get("hconcat", [])
    return [unit for part in inner for unit in layers(part)] if inner else [spec]


def marks(spec: Any) -> list[str]:
    return [unit["mark"]["type"] if isinstance(unit["mark"], dict) else unit["mark"] for unit in layers(spec)]


def axis_title(spec: Any, channel: str) -> str:
    titles = [unit["encoding"][channel].get("title") for unit in layers(spec) if channel in unit["encoding"]]
    return next(title for title in titles if title)


def test_every_figure_of_the_paper_is_there_under_its_number() -> None:
    assert {name: figure.number for name, figure in FIGURES.items()} == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_every_figure_is_valid_vega_lite_and_states_what_it_stands_on(name: str) -> None:
    spec = chart(name, ROWS, Options(facts=FACTS, theme="dark" if PAPER[name] % 2 else "light"))
    validate_jsonschema(spec, SCHEMA)
    meta = spec["usermeta"]
    assert meta["not_enough"] is None and meta["n"] == len(meta["jobs"]) > 0
    caption = " ".join(spec["title"]["subtitle"])
    assert "result" in caption and "synthetic weights" in caption
    assert spec["title"]["text"].startswith(f"Figure {PAPER[name]}. ")
    json.dumps(spec, allow_nan=False)


@pytest.mark.parametrize("name", WITH_BARS)
def test_figures_of_timings_draw_error_bars_and_say_what_they_are(name: str) -> None:
    spec = chart(name, ROWS, OPTIONS)
    rules = [unit for unit in layers(spec) if "rule" in str(unit["mark"])]
    assert rules and {"y2"} <= set(rules[0]["encoding"])
    said = " ".join(spec["usermeta"]["caption"])
    assert "95 % interval" in said
    if name != "quantization-radar":
        assert "10 iterations of one process; processes differ by about 4 % beyond that" in said
        assert "measured until narrow and outliers left out, it covers about 91 %" in said


def test_memory_says_why_it_has_no_error_bars_until_several_processes_give_them() -> None:
    assert "no error bars" in " ".join(chart("memory-vs-size", ROWS, OPTIONS)["usermeta"]["caption"])
    repeated = invent(Grid(models=tuple(SIZES)[:5], quantization=("fp32", "int8"), repeats=3))
    for row in repeated:
        row["ram_peak_bytes"] += row["repeat"] * 1_000_000
    spec = chart("memory-vs-size", repeated, OPTIONS)
    assert "rule" in marks(spec) and "3 processes per cell" in " ".join(spec["usermeta"]["caption"])


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("throughput-vs-size", "billion parameters", "tokens/s"),
        ("throughput-vs-batch", "sequences", "tokens/s"),
        ("throughput-vs-sequence", "prompt tokens", "tokens/s"),
        ("throughput-heatmap", "sequences", "prompt tokens"),
        ("ttft-vs-size", "billion parameters", "(ms"),
        ("ttft-vs-batch", "sequences", "(ms"),
        ("ttft-vs-sequence", "prompt tokens", "(ms"),
        ("ttft-heatmap", "sequences", "prompt tokens"),
        ("memory-vs-size", "billion parameters", "(GB)"),
        ("memory-throughput", "(GB)", "tokens/s"),
        ("per-instance-throughput", "sequences", "tokens/s"),
    ],
)
def test_axes_carry_units(name: str, x: str, y: str) -> None:
    spec = chart(name, ROWS, OPTIONS)
    assert x in axis_title(spec, "x") and y in axis_title(spec, "y")


@pytest.mark.parametrize("name", ["memory-by-quantization", "throughput-by-quantization", "cost-efficiency"])
def test_bars_start_at_zero_and_their_axis_carries_a_unit(name: str) -> None:
    spec = chart(name, ROWS, OPTIONS)
    scales = [unit["encoding"]["y"]["scale"] for unit in layers(spec) if unit["encoding"].get("y", {}).get("scale")]
    assert all(scale["zero"] is True for scale in scales)
    assert any(unit in axis_title(spec, "y") for unit in ("GB", "tokens/s", "$"))


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("throughput-vs-size", {"batch_size": 1, "sequence_length": 128}),
        ("throughput-vs-sequence", {"batch_size": 4}),
        ("memory-throughput", {"batch_size": 4}),
        ("throughput-by-quantization", {"batch_size": 4, "sequence_length": 128}),
        ("per-instance-throughput", {"sequence_length": 256}),
    ],
)
def test_the_papers_fixed_parameters_are_kept_where_they_were_measured(name: str, fixed: dict[str, int]) -> None:
    assert fixed.items() <= chart(name, ROWS, OPTIONS)["usermeta"]["fixed"].items()


def test_a_parameter_that_was_not_measured_gives_way_to_one_that_was_and_the_caption_says_which() -> None:
    rows = [row for row in ROWS if row["batch_size"] == 2]
    meta = chart("throughput-vs-size", rows, OPTIONS)["usermeta"]
    assert meta["fixed"]["batch_size"] == 2 and "b = 2" in meta["caption"][0]


def test_a_filter_chooses_another_slice_and_the_caption_names_what_is_not_shown() -> None:
    spec = chart(
        "throughput-vs-batch", ROWS, Options(facts=FACTS, filters={"hardware": ("t4",), "quantization": ("int8",)})
    )
    assert spec["usermeta"]["fixed"]["hardware"] == "t4" and "t4, int8" in spec["usermeta"]["caption"][0]
    assert "also measured, not shown: s = 256, 512, 1024" in " ".join(spec["usermeta"]["caption"])


def test_lines_can_follow_another_axis() -> None:
    spec = chart("throughput-vs-batch", ROWS, Options(facts=FACTS, series="sequence_length"))
    domain = next(u["encoding"]["color"]["scale"]["domain"] for u in layers(spec) if "color" in u["encoding"])
    assert domain == ["128", "256", "512", "1024"] and spec["usermeta"]["fixed"]["model"] == "EleutherAI/pythia-70m"
    with pytest.raises(BadInput, match="no lines by 'batch_size' in this figure"):
        chart("throughput-vs-batch", ROWS, Options(series="batch_size"))


def test_lines_are_one_per_series_in_order_of_size() -> None:
    spec = chart("throughput-vs-batch", ROWS, OPTIONS)
    domain = next(u["encoding"]["color"]["scale"]["domain"] for u in layers(spec) if "color" in u["encoding"])
    assert domain == ["pythia-70m", "opt-125m", "pythia-160m", "opt-350m", "pythia-410m"]


def test_a_heatmap_shows_what_did_not_run_and_why() -> None:
    axes = {"model": "EleutherAI/pythia-70m", "hardware": "cpu", "quantization": "fp32"}
    refused = [infeasible(axes | {"batch_size": 8, "sequence_length": 2048}, "out_of_host_memory")]
    spec = chart("throughput-heatmap", ROWS + refused, OPTIONS)
    texts = [point["text"] for unit in layers(spec) for point in unit["data"]["values"]]
    assert ["×", "out of", "memory"] in texts


def test_latency_cliffs_are_framed() -> None:
    rows = [dict(row) for row in ROWS]
    for row in rows:
        if row["sequence_length"] == 1024:
            row["ttft_s_mean"] *= 4
    cliffs = chart("ttft-heatmap", rows, OPTIONS)["usermeta"]["cliffs"]
    assert {cliff["s"] for cliff in cliffs} == {1024}
    assert chart("ttft-heatmap", ROWS, OPTIONS)["usermeta"]["cliffs"] == []


def test_the_pareto_front_joins_configurations_nothing_beats() -> None:
    spec = chart("memory-throughput", ROWS, OPTIONS)
    (line,) = [unit for unit in layers(spec) if unit["mark"].get("interpolate") == "step-after"]
    xs, ys = ([point[axis] for point in line["data"]["values"]] for axis in "xy")
    assert xs == sorted(xs) and ys == sorted(ys)


def test_radar_polygons_are_closed_and_the_best_of_each_spoke_reaches_the_rim() -> None:
    spec = chart("quantization-radar", ROWS, OPTIONS)
    corners = next(u for u in layers(spec) if u["mark"].get("type") == "line" and "color" in u["encoding"])["data"][
        "values"
    ]
    for name in ("fp32", "fp16", "int8"):
        own = [corner for corner in corners if corner["series"] == name]
        assert (own[0]["x"], own[0]["y"]) == (own[-1]["x"], own[-1]["y"]) and len(own) == 4
    for spoke in ("memory", "throughput", "latency"):
        assert max(corner["reach"] for corner in corners if corner["spoke"] == spoke) == pytest.approx(1.0)
    assert "not measured: quality, energy" in " ".join(spec["usermeta"]["caption"])


def test_radar_turns_quality_loss_into_quality_kept_and_the_unquantized_one_reaches_the_rim() -> None:
    losses = {"fp32": 0.0, "int8": 0.01, "int4": 0.25}
    rows = [
        {**row, "quality_loss": loss, "quality_loss_ci95_low": loss - 0.005, "quality_loss_ci95_high": loss + 0.005}
        for name, loss in losses.items()
        for row in invent(Grid(quantization=(name,)))
    ]
    spec = chart("quantization-radar", rows, OPTIONS)
    corners = next(u for u in layers(spec) if u["mark"].get("type") == "line" and "color" in u["encoding"])["data"]
    kept = {c["series"]: (c["reach"], c["low"], c["high"]) for c in corners["values"] if c["spoke"] == "quality"}
    assert spec["usermeta"]["spokes"] == ["memory", "throughput", "latency", "quality"]
    assert kept["fp32"][0] == 1.0
    assert kept["int4"] == pytest.approx((0.8, 1 / 1.255, 1 / 1.245))
    assert "not measured: energy" in " ".join(spec["usermeta"]["caption"])


def test_memory_against_throughput_tells_the_quality_of_a_point_where_it_was_measured() -> None:
    judged = [{**row, "quality_loss": 0.02} for row in ROWS]
    for rows, has_it in ((ROWS, False), (judged, True)):
        spec = chart("memory-throughput", rows, OPTIONS)
        told = [tip["field"] for u in layers(spec) for tip in u["encoding"].get("tooltip", [])]
        assert ("perplexity rise" in told) is has_it


def test_radar_bars_that_would_leave_the_frame_are_cut_in_words() -> None:
    rows = [{**row, "ttft_s_ci95_low": 0.1 * row["ttft_s_mean"]} for row in ROWS]
    spec = chart("quantization-radar", rows, OPTIONS)
    (whiskers,) = [u["data"]["values"] for u in layers(spec) if u["mark"].get("type") == "rule"]
    assert max(c["high"] for c in whiskers) > 5
    assert max(math.hypot(c["hx"], c["hy"]) for c in whiskers) == pytest.approx(1.1)
    assert "95 % intervals where there are any, cut at 110 %" in " ".join(spec["usermeta"]["caption"])


def test_precisions_with_options_have_their_place_beside_their_method() -> None:
    from effillm_server.figures.view import in_precision_order

    labels = [
        "gptq-b3-g64",
        "uniform-b4",
        "int8",
        "fp32",
        "qat-b4",
        "int4",
        "gptq-b4-g128",
        "uniform-b8",
        "made-elsewhere",
    ]
    assert in_precision_order(labels) == [
        "fp32", "int8", "int4", "gptq-b4-g128", "gptq-b3-g64", "uniform-b8", "uniform-b4", "qat-b4", "made-elsewhere",
    ]  # fmt: skip


def at_precisions(count: int, models: int = 1) -> list[dict[str, Any]]:
    """Rows of `models` models at fp32 and made-up methods, `count` precisions in all."""
    labels = ["fp32", *(f"uniform-b{bits}" for bits in range(1, count))]
    return [{**row, "quantization": name} for name in labels for row in invent(Grid(models=tuple(SIZES)[:models]))]


@pytest.mark.parametrize(
    ("name", "most"), [("quantization-radar", 8), ("memory-throughput", 16), ("throughput-by-quantization", 32)]
)
def test_labels_with_options_are_drawn_and_more_than_can_be_told_apart_are_cut_in_words(name: str, most: int) -> None:
    for count in (most, most + 1):
        spec = chart(name, at_precisions(count), OPTIONS)
        validate_jsonschema(spec, SCHEMA)
        meta = spec["usermeta"]
        assert meta["not_enough"] is None and meta["n"] == most
        cut = f"{most} of {count} quantization values shown" in " ".join(meta["caption"])
        assert cut == (count > most)


def test_every_precision_of_a_trade_off_has_a_shape_of_its_own() -> None:
    spec = chart("memory-throughput", at_precisions(16), OPTIONS)
    scale = next(u["encoding"]["shape"]["scale"] for u in layers(spec) if "shape" in u["encoding"])
    assert len(set(scale["range"])) == len(scale["domain"]) == 16
    assert "<svg" in render(spec, "svg").decode()


def test_precisions_are_colours_while_there_are_enough_and_places_on_the_axis_beyond() -> None:
    few, many = (chart("memory-by-quantization", at_precisions(count, models=2), OPTIONS) for count in (8, 9))
    for spec, by, within in ((few, "model", "series"), (many, "series", "model")):
        bars = next(u["encoding"] for u in layers(spec) if u["mark"]["type"] == "bar")
        assert bars["x"]["field"] == by and bars["xOffset"]["field"] == bars["color"]["field"] == within
        # Each bar has a place and a colour of its own: none hides another.
        drawn = spec["data"]["values"]
        assert len({(bar["model"], bar["series"]) for bar in drawn}) == len(drawn) == spec["usermeta"]["n"]
        assert set(bars["color"]["scale"]["domain"]) == {bar[within] for bar in drawn}
    assert many["width"] >= 18 * 14


def test_both_kinds_of_best_batch_are_marked() -> None:
    spec = chart("per-instance-throughput", ROWS, OPTIONS)
    rings = next(u for u in layers(spec) if "strokeDash" in u["encoding"])["data"]["values"]
    assert {ring["mark"] for ring in rings} == {"T(b)/b largest", "largest b keeping 80 % of T(1)"}


def test_cost_names_its_prices_and_shows_purchase_beside_hourly() -> None:
    spec = chart("cost-efficiency", ROWS, OPTIONS)
    assert len(spec["hconcat"]) == 2
    assert "cpu $2,000 and $0.50/h (2026-01-01)" in " ".join(spec["usermeta"]["caption"])


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(
    "rows", [[], ROWS[:1], invent(Grid(fixed={"verdict": "invalid"}))], ids=["none", "one", "invalid"]
)
def test_too_little_data_is_said_in_words_instead_of_an_empty_frame(name: str, rows: list[dict[str, Any]]) -> None:
    spec = chart(name, rows, OPTIONS)
    if name == "cost-efficiency" and rows == ROWS[:1]:
        assert spec["usermeta"]["not_enough"] is None
        return
    assert spec["usermeta"]["not_enough"].startswith("needs ")
    assert spec["data"]["values"][0]["said"][0].startswith("not enough data: needs ")


def test_a_missing_price_is_what_cost_needs() -> None:
    assert "needs a price for cpu, t4" in chart("cost-efficiency", ROWS, Options())["usermeta"]["not_enough"]


def test_simulated_rows_are_left_out_beside_measured_ones_and_labelled_alone() -> None:
    fakes = [{**row, "simulated": True} for row in ROWS]
    assert "simulated" in " ".join(chart("throughput-vs-batch", ROWS + fakes, OPTIONS)["usermeta"]["caption"])
    assert "SIMULATED" in " ".join(chart("throughput-vs-batch", fakes, OPTIONS)["usermeta"]["caption"])


def test_an_unknown_figure_suggests_the_nearest_and_unknown_options_say_what_there_is() -> None:
    with pytest.raises(NotFound, match="did you mean 'throughput-vs-batch'"):
        chart("throughput-by-batch-size", ROWS)
    with pytest.raises(BadInput, match="no theme 'blue'; there are light, dark"):
        chart("throughput-vs-batch", ROWS, Options(theme="blue"))
    with pytest.raises(BadInput, match="no axis 'color' to filter by"):
        chart("throughput-vs-batch", ROWS, Options(filters={"color": ("red",)}))


def test_more_models_than_can_be_told_apart_are_cut_and_the_caption_says_so() -> None:
    many = [{**row, "model": f"lab/m{k}"} for k in range(12) for row in invent(Grid(batch_size=(1, 2, 4)))]
    spec = chart("throughput-vs-batch", many, OPTIONS)
    assert "8 of 12 model values shown" in " ".join(spec["usermeta"]["caption"])


@pytest.mark.parametrize("name", LINES)
def test_fitted_curves_stay_inside_the_measured_range(name: str) -> None:
    spec = chart(name, ROWS, OPTIONS)
    for unit in layers(spec):
        if unit["mark"].get("clip"):
            drawn = [p["x"] for p in unit["data"]["values"]]
            measured = [p["x"] for u in layers(spec) if u["mark"].get("type") == "point" for p in u["data"]["values"]]
            assert min(measured) <= min(drawn) * 1.000001 and max(drawn) <= max(measured) * 1.000001
