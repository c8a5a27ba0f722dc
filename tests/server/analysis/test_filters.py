from __future__ import annotations

import pytest

from effillm_server.analysis.filters import matching, parse_filters
from effillm_server.errors import BadInput
from tests.support.sweeps import Grid, invent


def test_values_get_the_type_of_their_column() -> None:
    assert parse_filters({"batch_size": "1, 4", "hardware": ["cpu", "t4"]}) == {
        "batch_size": (1, 4),
        "hardware": ("cpu", "t4"),
    }


def test_rows_match_when_every_axis_does() -> None:
    rows = invent(Grid(hardware=("cpu", "t4"), batch_size=(1, 2, 4)))
    kept = matching(rows, parse_filters({"batch_size": "2,4", "hardware": "t4"}))
    assert [(row["hardware"], row["batch_size"]) for row in kept] == [("t4", 2), ("t4", 4)]
    assert matching(rows, {}) == rows


def test_an_unknown_axis_suggests_the_nearest_and_a_word_is_no_number() -> None:
    with pytest.raises(BadInput, match="did you mean 'batch_size'"):
        parse_filters({"batchsize": "1"})
    with pytest.raises(BadInput, match="batch_size 'four' is not a whole number"):
        parse_filters({"batch_size": "four"})
