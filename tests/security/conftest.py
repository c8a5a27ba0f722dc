"""A lab of several people on a server that asks for keys: one for the whole suite, which changes nothing on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from tests.support.api import serving
from tests.support.keys import ADMIN_KEY
from tests.support.people import Lab, furnished
from tests.support.postgres import run_sql

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="session", autouse=True)
def no_model_hub() -> Iterator[None]:
    """The hub is an address where nothing listens, so that no test depends on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", NOBODY)
        yield


@pytest.fixture(scope="session")
def lab(postgres_url: str, template_database: str, no_model_hub: None) -> Iterator[Lab]:
    """Ada's two sweeps, each with a measured job, on one device that now measures the private one."""
    name = f"security_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}"')
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    try:
        with serving(url, require_keys=True, admin_key=ADMIN_KEY, rate_per_key=0, rate_per_address=0) as api:
            yield furnished(api)
    finally:
        run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')
