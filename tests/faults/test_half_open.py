"""A client that vanishes without a word: what it held must be free again in seconds, not after TCP's two hours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from effillm_server.ledger.engine import connect
from tests.support.faults.database import Database
from tests.support.faults.network import Cable, is_possible
from tests.support.waiting import until

HOLD = """
import os, sys, signal
from effillm_server.ledger.engine import connect
from effillm_worker.fleet.leadership import Leadership
leadership = Leadership(connect(os.environ["URL"], "fleet"))
assert leadership.is_held()
print("leads", flush=True)
signal.pause()
"""


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, int]]:
    """A Postgres of its own that also listens on TCP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(f"/tmp/ef-tcp-{os.getpid()}-{port}")
    made = Database(folder, tcp_port=port)
    try:
        yield made, port
    finally:
        made.close()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_server_asks_an_idle_client_within_seconds_whether_it_lives(database: tuple[Database, int]) -> None:
    engine = connect(f"postgresql://effillm@127.0.0.1:{database[1]}/postgres", "fleet")
    with engine.connect() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
        }
    engine.dispose()
    assert shown == {
        "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3", "tcp_user_timeout": "10000",
    }  # fmt: skip


if is_possible():

    def test_the_lead_of_an_unplugged_fleet_is_free_within_half_a_minute(database: tuple[Database, int]) -> None:
        server, port = database
        cable = Cable()
        try:
            holder = subprocess.Popen(
                [*cable.command(), sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True,
                env=os.environ | {"URL": f"postgresql://effillm@{cable.here}:{port}/postgres"},
            )  # fmt: skip
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "leads\n"
                cable.unplug()
                until("the lead is free", lambda: server.scalar(HELD) == 0, within_s=30)
                assert holder.poll() is None
            finally:
                holder.kill()
                holder.communicate()
        finally:
            cable.remove()


HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
