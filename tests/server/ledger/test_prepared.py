"""Prepared statements on the driver's own cursor: part of SQLAlchemy's transaction, and failing as its statements fail."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DataError, OperationalError

from effillm_server.ledger.prepared import Statement
from tests.support.ledger import end_session

INSERT = Statement("test_insert", "INSERT INTO event (kind, data) VALUES (:kind, :data)", kind="text", data="jsonb")
DIVIDE = Statement("test_divide", "SELECT 12 / :by AS twelfth, :by::text AS written", by="int")
STORED = text("SELECT kind FROM event ORDER BY id")


def test_rows_come_by_name(engine: Engine) -> None:
    with engine.connect() as c:
        assert DIVIDE(c, {"by": 4, "unused": "x"}) == [{"twelfth": 3, "written": "4"}]


def test_a_statement_without_rows_says_how_many_it_wrote(engine: Engine) -> None:
    with engine.begin() as c:
        assert INSERT.count(c, {"kind": "told", "data": '{"a": "50 %"}'}) == 1
    with engine.connect() as c:
        assert c.execute(text("SELECT data->>'a' FROM event")).scalar_one() == "50 %"


def test_what_it_writes_is_committed_and_rolled_back_with_the_connection(engine: Engine) -> None:
    with engine.connect() as c:
        INSERT.count(c, {"kind": "kept", "data": "{}"})
        c.commit()
        INSERT.count(c, {"kind": "dropped", "data": "{}"})
        c.rollback()
        # Prepared still, though the transaction in which it was is gone.
        INSERT.count(c, {"kind": "kept too", "data": "{}"})
        c.commit()
    with engine.connect() as c:
        assert list(c.execute(STORED).scalars()) == ["kept", "kept too"]


def test_an_error_of_the_server_is_sqlalchemys(engine: Engine) -> None:
    with engine.connect() as c:
        with pytest.raises(DataError, match="division by zero"):
            DIVIDE(c, {"by": 0})
        c.rollback()
        assert DIVIDE(c, {"by": 12})[0]["twelfth"] == 1


def test_a_lost_connection_is_given_up_and_the_next_one_works(engine: Engine) -> None:
    with engine.connect() as c, engine.connect() as other:
        pid = c.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        end_session(other, pid)
        with pytest.raises(OperationalError) as lost:
            DIVIDE(c, {"by": 3})
        assert lost.value.connection_invalidated
        assert c.invalidated
        c.rollback()
        assert DIVIDE(c, {"by": 3})[0]["twelfth"] == 4


def test_parameters_must_be_those_the_statement_uses() -> None:
    with pytest.raises(ValueError, match=r"\['other'\]"):
        Statement("test_mismatch", "SELECT :one", one="int", other="int")
