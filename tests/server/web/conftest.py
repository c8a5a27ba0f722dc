"""A lab behind a running server: an empty one, and one with a sweep that was really run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import make_url

from effillm_server.ledger import queue
from tests.support.api import Api, add_device, declaration, serving
from tests.support.pages import measure
from tests.support.postgres import run_sql

NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Lab:
    """A server, the id of its finished sweep, and one measured and one infeasible cell of it."""

    api: Api
    sweep: str
    measured: int
    infeasible: int

    def page(self, path: str) -> str:
        answer = self.api.http.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:2000]}"
        return answer.text


@pytest.fixture(scope="session", autouse=True)
def no_model_hub() -> Iterator[None]:
    """The hub is an address where nothing listens, so that no test depends on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", NOBODY)
        yield


@contextmanager
def served(postgres_url: str, template: str, **settings: Any) -> Iterator[Api]:
    """A server over a database of its own."""
    name = f"web_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        with serving(
            make_url(postgres_url).set(database=name).render_as_string(hide_password=False), **settings
        ) as api:
            yield api
    finally:
        run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def empty(postgres_url: str, template_database: str, no_model_hub: None) -> Iterator[Api]:
    """A server over a lab in which nothing has happened; for tests that change nothing."""
    with served(postgres_url, template_database) as api:
        yield api


@pytest.fixture(scope="session")
def lab(
    postgres_url: str, template_database: str, no_model_hub: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A server over a lab with one finished sweep, a free device and one that vanished; for tests that keep them."""
    with served(postgres_url, template_database) as api:
        sweep = measure(api, tmp_path_factory.mktemp("lab"))
        add_device(api.engine, declaration("gone-1", node="far-box"))
        with api.engine.begin() as connection:
            queue.mark_lost(connection, "gone-1", "its box does not answer")
        jobs = api.jobs(sweep["id"])
        by_state = {job["state"]: job["id"] for job in jobs}
        yield Lab(api, sweep["id"], by_state["measured"], by_state["infeasible"])


@pytest.fixture
def fresh(postgres_url: str, template_database: str, no_model_hub: None) -> Iterator[Lab]:
    """A server over a lab of the test's own in which nothing has happened; for tests that measure."""
    with served(postgres_url, template_database) as api:
        yield Lab(api, "", 0, 0)
