"""What to say when the database's schema is not the one this code was written for."""

from __future__ import annotations

from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from effillm_server.errors import Unavailable
from effillm_server.ledger.engine import SchemaState, configuration, schema_state

MIGRATE = "`python -m effillm_server.ledger.roles` as the database's owner, with compose `docker compose up migrate`"


def check_schema(engine: Engine) -> None:
    """Raises Unavailable, in one sentence, unless the database has this code's schema."""
    state = schema_state(engine)
    if not state.is_current:
        raise Unavailable(mismatch(state))


def mismatch(state: SchemaState) -> str:
    """Which of the two is older, and what to do about it."""
    if is_newer(state):
        return (
            f"the database is at revision {state.current}, which this version (revision {state.head}) does not know: it was "
            "migrated by a newer EffiLLM; install that version here too"
        )
    return f"the database is at revision {state.current or 'none'}, this code needs {state.head}: run the migration first ({MIGRATE})"


def is_newer(state: SchemaState) -> bool:
    """Whether the database is at a revision that this code has never heard of."""
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    return state.current is not None and state.current not in known
