"""Run the migrations on the connection handed over by engine.migrate(), or on EFFILLM_DATABASE_URL from the shell."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection

from effillm_server.errors import BadInput
from effillm_server.ledger.engine import connect
from effillm_server.ledger.tables import metadata


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


def run_from_shell() -> None:
    url = os.environ.get("EFFILLM_DATABASE_URL")
    if not url:
        raise BadInput("EFFILLM_DATABASE_URL is not set: expected the postgresql:// URL of the database to migrate")
    with connect(url, "migrate").connect() as connection:
        run(connection)


handed_over = context.config.attributes.get("connection")
if handed_over is None:
    run_from_shell()
else:
    run(handed_over)
