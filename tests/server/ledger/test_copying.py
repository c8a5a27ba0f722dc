"""COPY written while its rows are made: every value arrives as it was, and a failure half-way is the failure itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from effillm_server.ledger import copying
from effillm_server.ledger.copying import copy_rows

COLUMNS = ("name", "number", "flag", "list", "nothing")
AWKWARD = ["plain", "tab\there", "line\nbreak\r", "back\\slash", "\\N", "quote\"'", "Ünïcödé ☃", ""]


@pytest.fixture
def table(engine: Engine) -> Iterator[Engine]:
    with engine.begin() as c:
        c.exec_driver_sql("DROP TABLE IF EXISTS copied")
        c.exec_driver_sql(
            "CREATE TABLE copied (name text, number int CHECK (number >= 0), flag boolean, list bigint[], nothing text)"
        )
    yield engine
    with engine.begin() as c:
        c.exec_driver_sql("DROP TABLE copied")


def stored(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as c:
        return [tuple(row) for row in c.exec_driver_sql("SELECT * FROM copied ORDER BY number")]


def test_every_value_arrives_as_it_was(table: Engine) -> None:
    rows = [(text, number, number % 2 == 0, [number, 2**60], None) for number, text in enumerate(AWKWARD)]
    with table.begin() as c:
        assert copy_rows(c, "copied", COLUMNS, rows) == len(rows)
    assert stored(table) == rows


def test_rows_of_many_messages_and_statements_are_counted_once(table: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK_ROWS", 50)
    monkeypatch.setattr(copying, "MESSAGE_ROWS", 7)
    rows = [("x", number, True, [], None) for number in range(150)]
    with table.begin() as c:
        assert copy_rows(c, "copied", COLUMNS, iter(rows)) == 150
    assert stored(table) == rows


def test_nothing_to_copy_is_nothing_copied(table: Engine) -> None:
    with table.begin() as c:
        assert copy_rows(c, "copied", COLUMNS, []) == 0


def test_what_making_a_row_raises_comes_out_as_it_is(table: Engine) -> None:
    def rows() -> Iterator[tuple[Any, ...]]:
        yield ("x", 1, True, [], None)
        raise KeyError("no such model")

    with table.connect() as c:
        with pytest.raises(KeyError, match="no such model"):
            copy_rows(c, "copied", COLUMNS, rows())
        c.rollback()
    assert stored(table) == []


@pytest.mark.parametrize(("row", "error"), [
    (("x", "many", True, [], None), DataError), (("x", -1, True, [], None), IntegrityError),
])  # fmt: skip
def test_what_the_server_refuses_is_sqlalchemys_error(table: Engine, row: tuple[Any, ...], error: type) -> None:
    with table.connect() as c:
        with pytest.raises(error):
            copy_rows(c, "copied", COLUMNS, [row])
        c.rollback()
    assert stored(table) == []
