"""Connections to the ledger's database, its migration, and whether its schema is the one this code expects."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, OperationalError
from sqlalchemy.pool import NullPool

from effillm_server.errors import BadInput, Unavailable

Role = Literal["api", "fleet", "worker", "migrate"]

HERE = Path(__file__).parent
# Nobody waits longer than these for one statement, or holds a transaction open without working in it. Large work
# (storing a sweep) is cut into statements that fit.
STATEMENT_TIMEOUT_S: dict[Role, int] = {"api": 15, "fleet": 10, "worker": 10, "migrate": 0}
IDLE_IN_TRANSACTION_TIMEOUT_S: dict[Role, int] = {"api": 10, "fleet": 10, "worker": 10, "migrate": 60}
POOL_SIZE: dict[Role, int] = {"api": 10, "fleet": 4, "worker": 2, "migrate": 1}
CONNECT_TIMEOUT_S = 5
# A connection that was used so recently is not asked first whether it lives: an actor goes from one job to the next on it.
FRESH_S = 0.2
# The server's side of the same: without it a fleet whose box lost its power keeps the lead for TCP's two hours.
SERVER_KEEPALIVES = (
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10000"
)
# An actor looks for single rows only. Plans are made once per session; made while a table had one page they would walk through
# it when it has a thousand, until somebody analyses it.
POINT_LOOKUPS = " -c enable_seqscan=off"
MIGRATION_LOCK = 0x0EFF111


@dataclass(frozen=True)
class SchemaState:
    """Revision the database is at (None: empty) and the one this code was written for."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def connect(url: str, role: Role) -> Engine:
    """Engine for `role`: READ COMMITTED, time-outs on statements and idle transactions, dead peers noticed in 15 s."""
    timeouts = (
        f"-c statement_timeout={STATEMENT_TIMEOUT_S[role] * 1000}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_S[role] * 1000}"
        f" {SERVER_KEEPALIVES}{POINT_LOOKUPS if role in ('worker', 'fleet') else ''}"
    )
    arguments = {
        "application_name": f"effillm-{role}",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": timeouts,
    }
    if role == "migrate":
        return create_engine(_with_driver(url), connect_args=arguments, poolclass=NullPool)
    engine = create_engine(
        _with_driver(url),
        connect_args=arguments,
        isolation_level="READ COMMITTED",
        # Who asks on every check-out pays a round trip for it; actors are told apart, for they try again by themselves.
        pool_pre_ping=role != "worker",
        pool_size=POOL_SIZE[role],
        max_overflow=POOL_SIZE[role],
        pool_timeout=CONNECT_TIMEOUT_S,
    )
    if role == "worker":
        _ask_what_was_idle(engine)
    return engine


def _ask_what_was_idle(engine: Engine) -> None:
    """A connection that nobody used for a while is asked whether it lives before it is given out."""

    @event.listens_for(engine, "checkin")
    def note(_: Any, record: Any) -> None:
        record.info["checked_in"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("checked_in", time.monotonic()) < FRESH_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            raise DisconnectionError from None


def migrate(url: str) -> None:
    """Bring the database to this code's schema; several processes may call it at once. Raises Unavailable."""
    engine = connect(url, "migrate")
    try:
        with engine.connect() as connection:
            # Held by the session, not the transaction, because a migration may commit in between.
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
            connection.commit()
            config = configuration()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except OperationalError as error:
        raise Unavailable(unreachable(url, error)) from error
    finally:
        engine.dispose()


def schema_state(engine: Engine) -> SchemaState:
    """Where the schema stands. Raises Unavailable when the database does not answer."""
    head = ScriptDirectory.from_config(configuration()).get_current_head()
    if head is None:
        raise RuntimeError(f"no migration under {HERE / 'migrations'}: the installation is incomplete")
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    except OperationalError as error:
        raise Unavailable(unreachable(engine.url.render_as_string(hide_password=True), error)) from error
    return SchemaState(current=current, head=head)


def configuration() -> Config:
    """The alembic configuration that ships with the package."""
    config = Config(str(HERE / "alembic.ini"))
    config.set_main_option("script_location", str(HERE / "migrations").replace("%", "%%"))
    return config


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadInput(
            "the database URL cannot be read: expected postgresql://user:password@host:5432/database",
            field="EFFILLM_DATABASE_URL",
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise BadInput(
            f"the database is {parsed.get_backend_name()!r}: expected a postgresql:// URL", field="EFFILLM_DATABASE_URL"
        )
    return parsed.set(drivername="postgresql+psycopg2")


def unreachable(url: str, error: OperationalError) -> str:
    """What to say of a database that does not answer, or not to us: where it is, why, what to do. Without the password."""
    place = make_url(url).render_as_string(hide_password=True)
    cause = str(error.orig).strip().splitlines()[0] if error.orig is not None else "no answer"
    return f"the database at {place} does not answer ({cause}): start it or correct EFFILLM_DATABASE_URL"
