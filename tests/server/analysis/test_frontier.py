from __future__ import annotations

from effillm_server.analysis.frontier import frontier
from tests.support.sweeps import Grid, infeasible, invent

AXES = {"model": "facebook/opt-125m", "hardware": "cpu", "quantization": "fp32"}


def test_the_frontier_is_the_largest_that_ran_and_what_stopped_the_next() -> None:
    rows = invent(Grid(batch_size=(1, 2, 4), sequence_length=(128, 512)))
    rows += [
        infeasible(AXES | {"batch_size": 8, "sequence_length": s, "job": 900 + s}, "out_of_host_memory")
        for s in (128, 512)
    ]
    rows += [infeasible(AXES | {"batch_size": 16, "sequence_length": 512, "job": 990}, "implied")]
    (entry,) = frontier(rows)
    assert entry["largest_batch"][0] == {
        "sequence_length": 128,
        "batch_size": 4,
        "next_refused": 8,
        "reason": "out_of_host_memory",
    }
    assert entry["largest_batch"][1]["reason"] == "out_of_host_memory"
    assert entry["largest_sequence"][0] == {
        "batch_size": 1,
        "sequence_length": 512,
        "next_refused": None,
        "reason": None,
    }
    assert (entry["ran"], entry["infeasible"], entry["limited_by"]) == (6, 3, "out_of_host_memory")


def test_a_configuration_that_never_ran_has_no_largest_but_a_reason() -> None:
    (entry,) = frontier([infeasible(AXES | {"batch_size": 1, "sequence_length": 128}, "unsupported")])
    assert entry["largest_batch"] == [
        {"sequence_length": 128, "batch_size": None, "next_refused": 1, "reason": "unsupported"}
    ]


def test_simulated_rows_have_a_frontier_of_their_own() -> None:
    rows = invent(Grid(batch_size=(1, 2)))
    rows[1]["simulated"] = True
    assert [entry["simulated"] for entry in frontier(rows)] == [False, True]


def test_pending_and_failed_jobs_say_nothing_about_the_frontier() -> None:
    rows = invent(Grid(batch_size=(1, 2)))
    rows[1]["state"] = "failed"
    assert frontier(rows)[0]["largest_batch"][0]["batch_size"] == 1
