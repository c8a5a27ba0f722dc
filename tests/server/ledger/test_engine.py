"""The schema and the connections to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from effillm_server.errors import BadInput, Unavailable
from effillm_server.ledger.engine import Role, configuration, connect, migrate, schema_state
from effillm_server.ledger.tables import metadata
from tests.support.ledger import end_session, ledger

CATALOG = """
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    UNION ALL SELECT 'column', table_name, column_name, concat_ws(' ', data_type, udt_name, is_nullable, column_default, is_identity)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
    UNION ALL SELECT 'option', relname, '', reloptions::text FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
    ORDER BY 1, 2, 3
"""


def _plain(url: str) -> Engine:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1), poolclass=NullPool)


def _catalog(url: str) -> list[tuple[Any, ...]]:
    with _plain(url).connect() as connection:
        return [tuple(row) for row in connection.execute(text(CATALOG))]


def test_alembic_finds_no_difference_between_the_migrations_and_the_tables(database_url: str) -> None:
    with _plain(database_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrations_build_the_same_constraints_and_indexes_as_the_tables(
    database_url: str, empty_database_url: str
) -> None:
    # compare_metadata sees neither CHECKs nor the predicates of partial indexes.
    metadata.create_all(_plain(empty_database_url))
    assert _catalog(database_url) == _catalog(empty_database_url)


def test_downgrading_to_base_leaves_nothing_behind(database_url: str) -> None:
    with _plain(database_url).connect() as connection:
        config = configuration()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    assert _catalog(database_url) == []


def test_processes_that_migrate_at_once_do_not_disturb_each_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [empty_database_url] * 4))
    engine = connect(empty_database_url, "api")
    assert schema_state(engine).is_current
    engine.dispose()


def test_an_empty_database_is_told_apart_from_a_migrated_one(empty_database_url: str) -> None:
    engine = connect(empty_database_url, "api")
    state = schema_state(engine)
    engine.dispose()
    assert state.current is None
    assert not state.is_current


def test_every_role_reads_committed_and_has_time_outs(database_url: str) -> None:
    for role, seconds in (("api", "15s"), ("fleet", "10s"), ("worker", "10s")):
        engine = connect(database_url, role)  # type: ignore[arg-type]
        with engine.connect() as connection:
            found = [
                connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("transaction_isolation", "statement_timeout", "idle_in_transaction_session_timeout")
            ]
        engine.dispose()
        assert found == ["read committed", seconds, "10s"]


def test_a_statement_that_takes_too_long_is_ended(database_url: str) -> None:
    engine = connect(database_url, "worker")
    with engine.connect() as connection, pytest.raises(DBAPIError, match="statement timeout"):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 20")
        connection.exec_driver_sql("SELECT pg_sleep(10)")
    engine.dispose()


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/.* does not answer") as caught:
        migrate("postgresql://someone:secret@127.0.0.1:1/effillm")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["not a url", "mysql://localhost/effillm"])
def test_a_url_of_another_kind_is_refused_with_what_is_expected(url: str) -> None:
    with pytest.raises(BadInput, match="postgresql://"):
        connect(url, "api")


@pytest.mark.parametrize(("role", "shown"), [("worker", "off"), ("fleet", "off"), ("api", "on")])
def test_who_looks_for_single_rows_never_walks_through_a_table(database_url: str, role: Role, shown: str) -> None:
    with ledger(database_url, role) as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW enable_seqscan").scalar_one() == shown


def test_an_actors_connection_that_died_while_it_was_idle_is_replaced_unseen(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effillm_server.ledger.engine.FRESH_S", 0.0)
    with ledger(database_url, "worker") as engine, ledger(database_url) as other:
        first = _end_session_of(engine, other)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() != first


def test_one_that_was_used_a_moment_ago_is_not_asked_and_fails_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effillm_server.ledger.engine.FRESH_S", 3600.0)
    with ledger(database_url, "worker") as engine, ledger(database_url) as other:
        _end_session_of(engine, other)
        with engine.connect() as connection, pytest.raises(OperationalError):
            connection.exec_driver_sql("SELECT 1")
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


def _end_session_of(engine: Engine, other: Engine) -> int:
    """The session in the pool of `engine`, ended by somebody else."""
    with engine.connect() as connection:
        pid = int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    with other.connect() as connection:
        end_session(connection, pid)
    return pid
