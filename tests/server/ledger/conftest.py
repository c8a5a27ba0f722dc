"""An engine on a fresh ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.support.ledger import ledger


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with ledger(database_url) as engine:
        yield engine
