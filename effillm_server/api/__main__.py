"""`python -m effillm_server.api`: the API on one address, with the reaper beside it, until a signal ends it."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import signal
import socket
import sys

import sqlalchemy

from effillm_server import credentials
from effillm_server.api import logs
from effillm_server.api.admission import admit
from effillm_server.api.reaper import Reaper
from effillm_server.api.server import Server
from effillm_server.api.services import Tally
from effillm_server.errors import BadInput, EffillmError, Unavailable
from effillm_server.ledger import queue
from effillm_server.ledger.clock import clock_off
from effillm_server.ledger.engine import connect, migrate, schema_state
from effillm_server.ledger.revisions import is_newer, mismatch
from effillm_server.redaction import Redaction
from effillm_server.settings import Settings

BACKLOG = 2048
INTERRUPTED = 130

SWITCH_INTERVAL_S = 0.0005
log = logging.getLogger("effillm.api")


def main() -> int:
    """Exit code: 0 after a signal, 1 when something needed does not answer or the port is taken, 2 for bad settings."""
    try:
        settings = Settings.from_environment()
        url = _database_url(settings)
        with _listening(settings) as listener:
            engine = _migrated(url)
            try:
                admit(engine, settings)
                _serve(settings, engine, listener)
            finally:
                engine.dispose()
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except EffillmError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise BadInput(
            "EFFILLM_DATABASE_URL is not set: expected postgresql://user:password@host:5432/database; "
            "`effillm up` starts an embedded database instead",
            field="EFFILLM_DATABASE_URL",
        )
    return settings.database_url


def _listening(settings: Settings) -> socket.socket:
    """The socket that the API listens on, bound before anything else starts. Raises Unavailable when it is taken."""
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol, which accepted ones do not; without
        # it an answer's body waits 40 ms for the other side to acknowledge its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise Unavailable(
            f"port {settings.port} on {settings.host} {taken}: end what listens there or choose another with EFFILLM_PORT"
        ) from None
    return listener


def _migrated(url: str) -> sqlalchemy.Engine:
    """The engine of a database whose schema is this code's. Raises Unavailable."""
    engine = connect(url, "api")
    try:
        state = schema_state(engine)
        if is_newer(state):
            raise Unavailable(mismatch(state))
        if not state.is_current:
            migrate(url)
    except sqlalchemy.exc.ProgrammingError:
        # A login of its own may not change the schema.
        engine.dispose()
        raise Unavailable(mismatch(state)) from None
    except EffillmError:
        engine.dispose()
        raise
    return engine


def _serve(settings: Settings, engine: sqlalchemy.Engine, listener: socket.socket) -> None:
    # Here, not above: it pulls in much that a start which fails does not need.
    from effillm_server.api.app import create_app

    password = sqlalchemy.make_url(settings.database_url or "").password if settings.database_url else None
    logs.install(redaction=Redaction(None, credentials.admin_key(settings), str(password) if password else None))
    _check_clock(engine)
    app = create_app(settings, engine)
    server = Server(app)
    # The loop that serves everybody takes turns with threads that make answers: at Python's 5 ms a turn it would wait most of its time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What has been loaded stays: looking through all of it for garbage again and again stops everybody for tens of milliseconds.
    gc.collect()
    gc.freeze()

    def end(*_: object) -> None:
        server.should_exit = True

    # In force until uvicorn has handlers of its own, and again when it raises the signal it was ended by once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    host, port = listener.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    tally: Tally = app.state.services.tally

    def count(leases: int) -> None:
        tally.leases_reaped += leases

    reaper = Reaper(engine, settings.lease_ttl_s, on_reaped=count)
    reaper.start()
    try:
        server.run(sockets=[listener])
    finally:
        reaper.stop()


def _check_clock(engine: sqlalchemy.Engine) -> None:
    """Say it once when this box's clock is off. A database that went away meanwhile is told by /readyz."""
    with contextlib.suppress(sqlalchemy.exc.OperationalError), engine.connect() as connection:
        off = clock_off(queue.database_time(connection))
        if off is not None:
            log.warning("clock.off", extra=off)


if __name__ == "__main__":
    sys.exit(main())
