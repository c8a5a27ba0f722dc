from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from effillm_server.errors import BadInput
from effillm_server.ports import free_port
from effillm_worker.fleet import __main__ as fleet
from effillm_worker.fleet.companion import FOLLOW_WITHIN_S, Companion
from tests.support.ray_cluster import LoggedProcess


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="ef-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_options_that_are_not_the_nodes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet.main(["--head"]) == 2
    assert "the fleet takes nothing, or --node" in capsys.readouterr().err


def test_a_node_that_cannot_start_ends_the_fleet_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    companion = Companion(["--address", "nowhere"])
    with pytest.raises(BadInput, match="its reason stands above"):
        companion.start()
    assert "--address 'nowhere' is not HOST:PORT" in capfd.readouterr().err
    assert companion.has_ended


# A fleet that hangs in a call, beside a node that says it is ready and waits.
HANGING = """
import sys, threading
from effillm_worker.fleet.companion import FOLLOW_WITHIN_S, Companion
node = "import json, time; print(json.dumps({'event': 'node.ready'}), flush=True); time.sleep(600)"
companion = Companion([], (sys.executable, "-c", node))
companion.start()
companion.watch(lambda: print("told", flush=True))
threading.Event().wait()
"""


def test_a_fleet_follows_its_node_even_out_of_a_call_that_hangs() -> None:
    fleet = subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True)
    assert fleet.stdout is not None
    with fleet.stdout as said:
        assert "node.ready" in said.readline()
        (node,) = psutil.Process(fleet.pid).children()
        node.kill()
        assert said.readline() == "told\n"
    assert fleet.wait(3 * FOLLOW_WITHIN_S) == 1


def test_a_fleet_that_is_told_to_stop_takes_its_node_with_it(database_url: str, folder: Path) -> None:
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EFFILLM_"))},
        "EFFILLM_DATABASE_URL": database_url,
        "EFFILLM_DATA_DIR": str(folder / "data"),
        "EFFILLM_RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    options = ["--node", "--head", "--port", str(port), "--no-devices", "--temp-dir", str(folder / "ray")]
    started = LoggedProcess("fleet", "effillm_worker.fleet", options, environment, folder)
    started.wait_for("fleet.active")
    assert (folder / "ray/ready").exists()
    below = psutil.Process(started.process.pid).children(recursive=True)
    assert any("effillm_worker.node" in process.cmdline() for process in below)
    assert started.stop(signal.SIGTERM) == 0
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []
    assert not (folder / "ray/ready").exists()
