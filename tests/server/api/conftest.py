"""A running API for every test of its routes: one server for all of them, its tables empty for each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from effillm_server.ledger import tables
from tests.support.api import Api, serving
from tests.support.postgres import run_sql

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="session", autouse=True)
def no_model_hub() -> Iterator[None]:
    """The hub is an address where nothing listens, so that no test depends on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", NOBODY)
        yield


@pytest.fixture(scope="session")
def long_lived(postgres_url: str, template_database: str, no_model_hub: None) -> Iterator[Api]:
    """Starting a server costs as much as twenty requests, so it is started once."""
    name = f"api_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}"')
    try:
        with serving(make_url(postgres_url).set(database=name).render_as_string(hide_password=False)) as served:
            yield served
    finally:
        run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def api(long_lived: Api) -> Api:
    """The server over empty tables. Ids go on counting: a stream that follows must not see one twice."""
    with long_lived.engine.begin() as c:
        for table in reversed(tables.metadata.sorted_tables):
            c.execute(table.delete())
    return long_lived
