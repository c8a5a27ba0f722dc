"""The driver's own cursor inside SQLAlchemy's transaction: for COPY and for statements that run a thousand times a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


@contextmanager
def cursor(c: Connection, statement: str) -> Iterator[Any]:
    """A cursor in the transaction of `c`. What it raises comes out as SQLAlchemy's error, as from any other statement."""
    if not c.in_transaction():
        c.begin()  # SQLAlchemy must know of it: its commit would otherwise do nothing
    opened = c.connection.cursor()
    driver_error = c.dialect.loaded_dbapi.Error
    try:
        yield opened
    except driver_error as error:
        is_lost = c.dialect.is_disconnect(error, c.connection, opened)
        if is_lost:
            c.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, driver_error, connection_invalidated=is_lost, dialect=c.dialect
        ) from error
    finally:
        opened.close()
