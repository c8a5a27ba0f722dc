"""The matrix: every cell in its place, its state told apart, its number on one scale."""

from __future__ import annotations

from typing import Any

import pytest

from effillm_server.ledger.read_grid import GridCell, GridSlice
from effillm_server.lifecycle import JobState
from effillm_server.web.grid import MOST_CELLS, Scale, Square, choose, grid
from tests.support.definitions import definition

SLICE = GridSlice("cpu", "transformers", "default", "synthetic", 256, 1, ["m/a", "m/b"], [1, 4], [128, 512])


def cell(number: int, **changes: Any) -> GridCell:
    values: dict[str, Any] = {
        "id": number, "ordinal": number, "model": "m/a", "weights": "pretrained", "revision": None, "quantization": "fp32",
        "batch_size": 1, "sequence_length": 128, "state": JobState.MEASURED, "reason": None, "implied_by": None,
        "verdict": "valid", "throughput_tok_s": 100.0, "ttft_s": 0.05, "e2e_s": 2.0, "memory_bytes": 10**9, "energy_j": None,
        "simulated": False,
    }  # fmt: skip
    return GridCell(**values | changes)


def squares(*cells: GridCell, colour: str = "throughput") -> dict[int, Square]:
    found = grid(cells, SLICE, colour)
    return {square.id: square for line in found.lines for square in line.squares if square is not None}


def test_a_cell_stands_in_the_row_of_its_model_and_precision_and_the_column_of_its_shape() -> None:
    found = grid(
        [cell(1), cell(2, batch_size=4, sequence_length=512), cell(3, model="m/b", quantization="int8")], SLICE, "state"
    )
    assert found.columns == [(1, 128), (1, 512), (4, 128), (4, 512)]
    assert found.batches == [(1, 2), (4, 2)]
    placed = [
        (line.model, line.quantization, [square and square.id for square in line.squares]) for line in found.lines
    ]
    assert placed == [("m/a", "fp32", [1, None, None, 2]), ("m/b", "int8", [3, None, None, None])]


def test_the_precisions_of_a_model_share_its_name() -> None:
    found = grid([cell(1), cell(2, model="m/b"), cell(3, quantization="int8")], SLICE, "state")
    assert [(line.model, line.first_of_model) for line in found.lines] == [("m/a", 2), ("m/a", 0), ("m/b", 1)]


def test_states_verdicts_and_what_is_implied_are_told_apart() -> None:
    found = squares(
        cell(1), cell(2, verdict="suspect"), cell(3, verdict="invalid"),
        cell(4, state=JobState.INFEASIBLE, reason="out_of_device_memory"), cell(5, state=JobState.INFEASIBLE, reason="implied"),
        cell(6, state=JobState.FAILED, reason="crashed"), cell(7, state=JobState.PENDING), cell(8, state=JobState.LEASED),
        cell(9, state=JobState.CANCELLED), colour="state",
    )  # fmt: skip
    assert len(found) == 1
    alone = [squares(one, colour="state")[one.id] for one in (
        cell(1), cell(2, verdict="suspect"), cell(3, verdict="invalid"),
        cell(4, state=JobState.INFEASIBLE, reason="out_of_device_memory"), cell(5, state=JobState.INFEASIBLE, reason="implied"),
        cell(6, state=JobState.FAILED, reason="crashed"), cell(7, state=JobState.PENDING), cell(8, state=JobState.LEASED),
        cell(9, state=JobState.CANCELLED),
    )]  # fmt: skip
    assert len({square.css for square in alone}) == len(alone)
    assert len({square.text for square in alone}) == len(alone)
    assert "out of device memory" in alone[3].title
    assert "suspect" in alone[1].title


def test_a_colour_is_a_step_of_equal_ratios_between_the_least_and_the_most() -> None:
    scale = Scale.of([1.0, 64.0])
    assert [scale.step(value) for value in (1, 1.9, 2.1, 4.1, 8.1, 16.1, 32.1, 64)] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert Scale.of([5.0, 5.0]).step(5.0) == 0
    assert Scale.of([]).step(1.0) == 0


def test_the_legend_covers_every_measured_value() -> None:
    found = grid([cell(1, throughput_tok_s=10.0), cell(2, batch_size=4, throughput_tok_s=640.0)], SLICE, "throughput")
    assert [step for step, _ in found.legend] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert found.legend[0][1].startswith("10 to 20 ")
    assert found.legend[-1][1] == "320 to 640 tokens/s"


def test_a_cell_without_the_number_asked_for_is_measured_all_the_same() -> None:
    assert squares(cell(1, memory_bytes=None), colour="memory")[1] == Square(
        1, "measured", "done", "b = 1, s = 128: 100 tokens/s, first token 50 ms, –, valid"
    )


def test_what_is_asked_for_is_shown_and_what_does_not_exist_is_the_first_of_its_axis() -> None:
    of = definition(hardware=["cpu", "t4"], generate_tokens=[16, 64], batch_size=[8, 1], sequence_length=[512, 128])
    chosen = choose(of, {"hardware": "t4", "generate_tokens": "99", "colour": "memory", "models": "7"})
    assert (chosen.slice.hardware, chosen.slice.generate_tokens, chosen.colour) == ("t4", 16, "memory")
    assert (chosen.slice.batch_sizes, chosen.slice.sequence_lengths) == ([1, 8], [128, 512])
    assert chosen.options.keys() == {"hardware", "generate_tokens"}
    assert choose(of, {"colour": "nonsense"}).colour == "state"


@pytest.mark.parametrize("text", ["-1", "x", "９", "99999999999", ""])
def test_a_place_that_is_no_number_is_the_beginning(text: str) -> None:
    assert choose(definition(), {"models": text, "columns": text}).models_at == 0


def test_a_large_matrix_is_shown_in_parts_that_meet() -> None:
    of = definition(
        models=[f"m/{n}" for n in range(100)], quantization=["fp32", "int8"], batch_size=list(range(1, 101))
    )
    seen, at = [], 0
    while True:
        chosen = choose(of, {"models": str(at)})
        assert len(chosen.slice.models) * 2 * len(chosen.slice.batch_sizes) <= MOST_CELLS
        seen += chosen.slice.models
        if chosen.models_after is None:
            break
        at = chosen.models_after
    assert seen == [f"m/{n}" for n in range(100)]


def test_a_workload_of_texts_has_a_column_per_batch_size() -> None:
    chosen = choose(definition(workload=["short-qa"]), {})
    found = grid([cell(1, sequence_length=None)], GridSlice(**vars(chosen.slice) | {"models": ["m/a"]}), "state")
    assert found.columns == [(1, None)]
    assert found.lines[0].squares[0] is not None
