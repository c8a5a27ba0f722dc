"""An engine on an empty ledger: one database for all of these tests, emptied before each, since cloning costs more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from effillm_server.ledger.tables import metadata
from tests.support.ledger import ledger
from tests.support.postgres import cloned


@pytest.fixture(scope="session")
def ledger_url(postgres_url: str, template_database: str) -> Iterator[str]:
    with cloned(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    with ledger(ledger_url) as engine:
        # An engine of its own: the test's has prepared nothing yet and keeps no connection from here.
        emptying = create_engine(engine.url, poolclass=NullPool)
        with emptying.begin() as c:
            c.exec_driver_sql(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE")
        yield engine
