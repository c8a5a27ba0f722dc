from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from effillm_server.errors import BadInput
from effillm_worker.fleet import __main__ as fleet
from effillm_worker.fleet.companion import Companion
from effillm_worker.head import free_port
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


def test_a_fleet_and_its_own_node_end_together_whichever_ends_first(database_url: str, folder: Path) -> None:
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EFFILLM_"))},
        "EFFILLM_DATABASE_URL": database_url,
        "EFFILLM_DATA_DIR": str(folder / "data"),
        "EFFILLM_RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    options = ["--node", "--head", "--port", str(port), "--no-devices", "--temp-dir", str(folder / "ray")]
    ready = folder / "ray/ready"

    started = LoggedProcess("fleet", "effillm_worker.fleet", options, environment, folder)
    started.wait_for("fleet.active")
    assert ready.exists()
    (node,) = [
        child for child in psutil.Process(started.process.pid).children() if "effillm_worker.node" in child.cmdline()
    ]
    node.send_signal(signal.SIGTERM)
    assert started.process.wait(60) == 1
    assert started.events("companion.ended")
    assert not ready.exists()

    again = LoggedProcess("fleet", "effillm_worker.fleet", options, environment, folder)
    again.wait_for("fleet.active")
    below = psutil.Process(again.process.pid).children(recursive=True)
    assert again.stop(signal.SIGTERM) == 0
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []
