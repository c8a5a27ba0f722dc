"""`up` and `run` end to end: real Postgres, real Ray, real children; devices declared, time simulated."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet
import pytest

from tests.support.commands import MARK, Up, belonging, effillm, up
from tests.support.waiting import until

SWEEP = """
name: story
models: [facebook/opt-125m]
hardware: [{hardware}]
quantization: [fp16, int8]
batch_size: [1, 4]
generate_tokens: 8
engine: simulated
measurement: {{warmup: 3, iterations: 5}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that other users may pass, for Ray's sockets and Postgres's own user."""
    path = Path(tempfile.mkdtemp(prefix="effillm-up-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def sweep_file(folder: Path, hardware: str) -> str:
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(hardware=hardware))
    return str(file)


def submitted(server: Up, folder: Path, hardware: str) -> str:
    done = server.effillm("submit", sweep_file(folder, hardware), "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def test_up_measures_stops_without_a_trace_and_goes_on_with_what_was_pending(folder: Path) -> None:
    with up(folder, "--declare", "t4:1") as server:
        watched = server.effillm("submit", sweep_file(folder, "t4"), "--watch")
        assert watched.returncode == 0, watched.stderr
        assert "4 of 4 done: 4 measured" in watched.stderr
        assert watched.stdout.count("measured") == 4

        pending = submitted(server, folder, "a10")
        jobs = server.effillm("jobs", pending)
        assert jobs.stdout.count("pending") == 4
        first = json.loads(server.effillm("jobs", pending, "--json").stdout)[0]
        assert "no device of class a10" in server.effillm("job", str(first["id"])).stdout

        second = effillm("up", "--port", "0", **server.settings)
        assert second.returncode == 2
        assert f"EffiLLM already runs on {folder}/data (process {server.process.pid}, {server.url})" in second.stderr

        assert server.stop() == 0, server.said()
        assert "what was pending goes on" in server.said()
        assert server.left_behind() == []

    with up(folder, "--declare", "a10:1") as server:
        watched = server.effillm("watch", pending[:6], "--json")
        assert watched.returncode == 0, watched.stderr
        assert [row["state"] for row in json.loads(watched.stdout)] == ["measured"] * 4
        a_killed_child_is_replaced(server)
        killing_up_itself_leaves_nothing(server)


def a_killed_child_is_replaced(server: Up) -> None:
    [api] = [
        child for child in psutil.Process(server.process.pid).children() if "effillm_server.api" in child.cmdline()
    ]
    api.kill()
    psutil.wait_procs([api], timeout=10)
    transport = httpx.HTTPTransport(retries=8)  # waits 0, 0.5, 1, 2, 4 … seconds between connections
    with httpx.Client(transport=transport) as http:
        assert http.get(f"{server.url}/readyz", timeout=30).is_success
    assert "api was ended by SIGKILL" in server.said()


def killing_up_itself_leaves_nothing(server: Up) -> None:
    server.process.kill()
    server.process.wait()
    until("everything is gone", lambda: not server.left_behind(), within_s=60, every_s=0.2)


def test_run_saves_the_results_of_one_sweep_and_leaves_nothing_behind(folder: Path) -> None:
    output = folder / "out"
    settings = {MARK: folder.name, "EFFILLM_DATA_DIR": str(folder / "data"), "EFFILLM_LOCK_DIR": str(folder / "locks")}
    done = effillm("run", sweep_file(folder, "t4"), "-o", str(output), "--declare", "t4:1", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("valid, simulated") == 4
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["measured"] * 4
    assert [row["job"] for row in json.loads((output / "results.json").read_text())] == [
        int(row["job"]) for row in rows
    ]
    assert pyarrow.parquet.read_table(output / "results.parquet").num_rows == 4
    assert "SIMULATED" in (output / "report.html").read_text()
    assert sorted(log.name for log in (output / "logs").iterdir()) == [
        "api.log",
        "database.log",
        "fleet.log",
        "node.log",
    ]
    assert not (folder / "data").exists()
    assert belonging(settings) == []
