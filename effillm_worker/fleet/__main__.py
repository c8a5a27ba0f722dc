"""The fleet process: `python -m effillm_worker.fleet`, configured by the environment.

A fleet needs a Ray node on its own box. `--node …` starts one beside it, with the options of `effillm node` that follow.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from sqlalchemy import Engine

from effillm_server.errors import BadInput, EffillmError
from effillm_server.ledger.engine import connect
from effillm_server.ledger.revisions import check_schema
from effillm_server.settings import Settings
from effillm_worker import head
from effillm_worker.fleet.companion import Companion
from effillm_worker.fleet.loop import Fleet
from effillm_worker.node import check_head


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop. Exit code 2: wrong configuration; 1: something does not answer, start it again later."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] != "--node":
            raise BadInput(
                f"{given[0]!r}: the fleet takes nothing, or --node and behind it the options of `effillm node`"
            )
        settings = Settings.from_environment()
        return _run_beside(Companion(given[1:]), settings) if given else _run(settings)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EffillmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run_beside(node: Companion, settings: Settings) -> int:
    # A signal before the fleet has its own handlers ends the node too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        node.start()
        code = _run(settings, node)
        return 1 if node.has_ended else code
    finally:
        node.stop()


def _run(settings: Settings, node: Companion | None = None) -> int:
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
    if node is not None:
        node.watch(fleet.stop)
    try:
        return fleet.run()
    finally:
        pool.close()


def _ledger(settings: Settings) -> Engine:
    if not settings.database_url:
        raise BadInput("EFFILLM_DATABASE_URL is not set: the lab's Postgres", field="EFFILLM_DATABASE_URL")
    engine = connect(settings.database_url, "fleet")
    check_schema(engine)
    return engine


if __name__ == "__main__":
    sys.exit(main())
