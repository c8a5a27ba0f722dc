"""The fleet process: `python -m effillm_worker.fleet`, configured by the environment."""

from __future__ import annotations

import os
import signal
import sys

from sqlalchemy import Engine

from effillm_server.errors import BadInput, EffillmError, Unavailable
from effillm_server.ledger.engine import connect, schema_state
from effillm_server.settings import Settings
from effillm_worker import head
from effillm_worker.fleet.loop import Fleet
from effillm_worker.node import check_head


def main() -> int:
    """Run until told to stop. Exit code 2: wrong configuration; 1: something does not answer, start it again later."""
    try:
        return _run(Settings.from_environment())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EffillmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    if not settings.ray_address:
        raise BadInput(
            "EFFILLM_RAY_ADDRESS is not set: the head of the Ray cluster, HOST:PORT", field="EFFILLM_RAY_ADDRESS"
        )
    engine = _ledger(settings)
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        path = head.token_file(settings.data_dir)
        head.use_token(os.environ, path if path.exists() else None)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    check_head(settings.ray_address)
    # Ray reads its environment when it is imported.
    from effillm_worker.fleet.pool import RayPool

    pool = RayPool(settings.ray_address)
    pool.connect()
    fleet = Fleet(engine, pool, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: fleet.stop())
    try:
        return fleet.run()
    finally:
        pool.close()


def _ledger(settings: Settings) -> Engine:
    if not settings.database_url:
        raise BadInput("EFFILLM_DATABASE_URL is not set: the lab's Postgres", field="EFFILLM_DATABASE_URL")
    engine = connect(settings.database_url, "fleet")
    state = schema_state(engine)
    if not state.is_current:
        raise Unavailable(
            f"the database is at revision {state.current or 'none'}, this code needs {state.head}: run the migration first"
        )
    return engine


if __name__ == "__main__":
    sys.exit(main())
