from __future__ import annotations

import time
from typing import Any

import pytest

from effillm_server.analysis.compare import Options, compare, fails
from effillm_server.analysis.facts import Facts
from effillm_server.errors import BadInput
from tests.support.comparison_rates import false_alarms, power
from tests.support.sweeps import SIZES, Grid, Noise, invent

BATCHES = (1, 2, 4, 8)
MODELS = tuple(SIZES)
FINGERPRINT = {
    "hardware": {"processor": {"model": "x"}, "memory_bytes": 1},
    "software": {"versions": {"torch": "2.13.0", "ray": "2.60"}},
}


def scaled(rows: list[dict[str, Any]], factor: float, *, seed: int = 7) -> list[dict[str, Any]]:
    """The same cells as other jobs, `factor` times as fast."""
    return [
        {**row, "job": row["job"] + seed * 10_000, "throughput_tok_s_mean": row["throughput_tok_s_mean"] * factor}
        for row in rows
    ]


def verdicts(result: dict[str, Any]) -> set[str]:
    return {cell["verdict"] for cell in result["cells"]}


def test_a_clear_change_over_several_processes_is_called_by_its_name() -> None:
    grid = Grid(batch_size=BATCHES, repeats=5)
    a, b = invent(grid, noise=Noise(0.01), seed=1), invent(grid, noise=Noise(0.01), seed=2)
    assert verdicts(compare(a, scaled(b, 1.2))) == {"faster"}
    assert verdicts(compare(a, scaled(b, 0.8))) == {"slower"}
    assert verdicts(compare(a, b, Options(margin=0.05))) == {"same"}


def test_for_times_less_is_faster_and_for_memory_the_words_are_smaller_and_larger() -> None:
    a = invent(Grid(repeats=4), noise=Noise(0.01), seed=1)
    b = [
        {
            **row,
            "job": row["job"] + 99,
            "ttft_s_mean": row["ttft_s_mean"] / 2,
            "ram_peak_bytes": row["ram_peak_bytes"] * 2,
        }
        for row in a
    ]
    assert verdicts(compare(a, b, Options(metric="ttft_s"))) == {"faster"}
    assert verdicts(compare(a, b, Options(metric="memory_bytes"))) == {"larger"}


def test_a_single_process_inside_the_noise_floor_is_unsure_never_faster_or_slower() -> None:
    a = invent(Grid(models=MODELS, batch_size=BATCHES), noise=Noise(0.0, 0.001))
    result = compare(a, scaled(a, 1.10), Options(facts=Facts(noise_floor=0.06)))
    assert verdicts(result) == {"unsure"}
    assert any("single process" in remark for remark in result["remarks"])
    assert verdicts(compare(a, scaled(a, 1.5), Options(facts=Facts(noise_floor=0.06)))) == {"faster"}


@pytest.mark.parametrize(
    ("processes", "floor_from"),
    [(1, None), (1, 10), (3, None)],
    ids=["known floor", "measured floor", "three processes"],
)
def test_false_alarms_on_a_a_sweeps_stay_below_five_percent(processes: int, floor_from: int | None) -> None:
    # 5 % and what a count of 1,000 scatters by: two standard errors.
    assert false_alarms(processes, 1000, floor_from) <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize("processes", [1, 3])
def test_the_stated_minimum_detectable_change_is_found_among_several_cells(processes: int) -> None:
    assert power(processes, 1000) >= 0.80 - 2 * (0.8 * 0.2 / 1000) ** 0.5


def test_axes_that_differ_on_purpose_are_found_and_the_rest_is_held_equal() -> None:
    rows = invent(Grid(quantization=("fp32", "int8"), batch_size=BATCHES))
    for row in rows:
        row["dtype"] = "float32" if row["quantization"] == "fp32" else "float16"
    a, b = ([row for row in rows if row["quantization"] == name] for name in ("fp32", "int8"))
    result = compare(a, b)
    assert set(result["across"]) == {"quantization", "dtype"}
    assert result["across"]["quantization"] == [["fp32"], ["int8"]]
    assert "batch_size" in result["held_equal"] and len(result["cells"]) == len(BATCHES)


def test_cells_only_one_side_has_are_counted_not_compared() -> None:
    a, b = invent(Grid(batch_size=(1, 2, 4)), seed=1), invent(Grid(batch_size=(2, 4, 8, 16)), seed=2)
    result = compare(a, b)
    assert (len(result["cells"]), result["only_in_a"], result["only_in_b"]) == (2, 1, 2)


def test_a_condition_for_ci_picks_the_cells_that_meet_it() -> None:
    a = invent(Grid(batch_size=BATCHES, repeats=5), noise=Noise(0.01), seed=1)
    result = compare(a, scaled(a, 0.9))
    assert (
        len(fails(result, "slower:3%")) == 4 and fails(result, "slower:15%") == [] and fails(result, "faster: 3%") == []
    )
    with pytest.raises(BadInput, match="write slower:3%"):
        fails(result, "worse than before")


def with_fingerprint(rows: list[dict[str, Any]], digest: str, **versions: str) -> list[dict[str, Any]]:
    software = {"versions": FINGERPRINT["software"]["versions"] | versions}
    return [{**row, "job": row["job"] + hash(digest) % 997, "fingerprint": digest,
             "fingerprint_detail": FINGERPRINT | {"software": software}} for row in rows]  # fmt: skip


def test_runs_on_different_libraries_are_said_not_to_be_comparable() -> None:
    rows = invent(Grid(batch_size=BATCHES))
    torch = compare(with_fingerprint(rows, "f1"), with_fingerprint(rows, "f2", torch="2.14.0"))["comparability"]
    assert torch["comparable"] is False
    assert torch["decisive"] == {"software.versions.torch": [["'2.13.0'"], ["'2.14.0'"]]}
    ray = compare(with_fingerprint(rows, "f1"), with_fingerprint(rows, "f2", ray="2.61"))["comparability"]
    assert ray["comparable"] is True and list(ray["minor"]) == ["software.versions.ray"]


def test_differing_fingerprints_of_unknown_content_leave_it_open() -> None:
    rows = invent(Grid())
    other = [{**row, "job": 77, "fingerprint": "f9"} for row in rows]
    assert compare(rows, other)["comparability"]["comparable"] is None


def test_what_cannot_be_compared_says_why() -> None:
    rows = invent(Grid(batch_size=(1, 2)))
    other = invent(Grid(batch_size=(4, 8), hardware=("t4",)), seed=3)
    simulated = [{**row, "job": row["job"] + 9, "simulated": True} for row in rows]
    with pytest.raises(BadInput, match="A and B are the same 2 results"):
        compare(rows, rows)
    with pytest.raises(BadInput, match="one side is simulated and the other measured"):
        compare(rows, simulated)
    with pytest.raises(BadInput, match="B has no valid measured row"):
        compare(rows, [])
    with pytest.raises(BadInput, match="no cell in common: they share no value of batch_size"):
        compare(rows, other)
    with pytest.raises(BadInput, match="no metric 'speed'"):
        compare(rows, other, Options(metric="speed"))
    with pytest.raises(BadInput, match="margin 3 is not a share"):
        compare(rows, other, Options(margin=3))
    with pytest.raises(BadInput, match="no common cell has energy_per_token_j"):
        compare(rows, scaled(rows, 1.0), Options(metric="energy_per_token_j"))


def test_a_thousand_cells_are_compared_in_two_seconds() -> None:
    grid = Grid(models=MODELS, hardware=("cpu", "t4"), quantization=("fp32", "int8", "int4"), batch_size=BATCHES,
                sequence_length=(128, 256, 512, 1024, 2048, 4096))  # fmt: skip
    a = invent(grid)
    assert len(a) == 1008
    b = scaled(a, 1.1)
    started = time.thread_time()
    assert len(compare(a, b)["cells"]) == 1008
    assert time.thread_time() - started < 2
