from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import psutil
import pytest
import ray
from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

from effillm_server.errors import BadInput
from effillm_server.ports import free_port
from effillm_worker import fingerprint, head, node
from effillm_worker.head import Versions, check_versions
from effillm_worker.ledger_check import check_ledger
from tests.support.clock import a_clock_off_by
from tests.support.fake_ray_head import fake_ray_head
from tests.support.processes import command
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.waiting import until

# Of a database that does not answer: a node says so, and joins all the same.
DATABASE = "postgresql://nobody@127.0.0.1:1/none"
# A node leaves its cluster after this long without a head.
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "2"}


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of an operator's shell; its data directory."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "EFFILLM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EFFILLM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EFFILLM_DATABASE_URL", DATABASE)
    # `main` changes the environment of its process; let it change a copy.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path


@pytest.fixture
def token(box: Path) -> str:
    return head.ensure_token(head.token_file(box)).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "--declare", "T4:two"], "--declare 'T4:two' is not CLASS:COUNT"),
        (["--head", "--declare", "t4:0"], "is not CLASS:COUNT"),
        (["--address", "127.0.0.1:6379", "--port", "5"], "--port is the head's"),
        (["--address", "gpubox"], "'gpubox' is not HOST:PORT"),
        (["--address", "127.0.0.1:6379", "--declare", "t4"], "no token file at"),
        (["--head", "--temp-dir", "/tmp/" + "x" * 50], "too long for Ray's sockets"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(
    arguments: list[str], message: str, box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_node_without_a_database_is_refused(
    box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(os.environ, "EFFILLM_DATABASE_URL")
    assert node.main(["--head"]) == 2
    assert "EFFILLM_DATABASE_URL is not set" in capsys.readouterr().err


def test_a_database_that_does_not_answer_is_said_at_once_with_what_to_do(
    box: Path, token: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "EFFILLM_DATABASE_URL", DATABASE.replace("nobody@", "nobody:wrong@"))
    with fake_ray_head("2.0.0") as address:
        assert node.main(["--address", address, "--declare", "t4"]) == 2
    said = capsys.readouterr().err
    (away,) = (json.loads(line) for line in said.splitlines() if "database.away" in line)
    assert away["why"].startswith("the database at postgresql://***@127.0.0.1:1/none does not answer (")
    assert away["why"].endswith("start it or correct EFFILLM_DATABASE_URL")
    assert "Ray is" in said, "and goes on to the head"
    assert "wrong" not in said


def test_a_node_without_devices_asks_no_database(box: Path, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_ray_head("2.0.0") as address:
        assert node.main(["--address", address, "--no-devices"]) == 2
    assert "database.away" not in capsys.readouterr().err


def test_a_node_whose_clock_is_off_says_so_once(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_ledger(database_url)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("effillm_server.ledger.clock.datetime", a_clock_off_by(timedelta(minutes=-5)))
    check_ledger(database_url)
    (said,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (said["event"], said["off_s"]) == ("clock.off", -300)
    assert "clock is 300 s behind the database's: set it by NTP" in said["why"]


def test_a_taken_port_is_refused(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert node.main(["--head", "--port", str(port)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


def test_a_head_that_does_not_answer_is_reported(box: Path, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.main(["--address", f"127.0.0.1:{free_port()}"]) == 1
    assert "no Ray head answers at 127.0.0.1:" in capsys.readouterr().err


def test_a_head_with_another_ray_is_refused(box: Path, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_ray_head("2.9.0", token) as address:
        assert node.main(["--address", address]) == 2
    assert f"Ray is {ray.__version__} here and 2.9.0 on the head" in capsys.readouterr().err


def test_a_head_with_another_token_is_refused(box: Path, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_ray_head(ray.__version__, "another") as address:
        assert node.main(["--address", address]) == 2
    assert "refuses our token" in capsys.readouterr().err


def test_a_cluster_that_asks_for_no_token_is_refused_unless_it_is_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_ray_head(ray.__version__) as address:
        head.check_token(address)
        monkeypatch.setattr(head, "is_loopback", lambda _: False)
        with pytest.raises(BadInput, match="without a token"):
            head.check_token(address)
    with fake_ray_head(ray.__version__, "secret") as address:
        head.check_token(address)


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.7:1", False), ("gpubox:1", False)],
)
def test_loopback_addresses_are_told_from_others(address: str, is_loopback: bool) -> None:
    assert head.is_loopback(address) is is_loopback


def test_equal_versions_may_join_and_a_patch_release_of_python_may_not() -> None:
    check_versions(Versions("2.60.0", "3.11.7"), Versions("2.60.0", "3.11.7"))
    with pytest.raises(BadInput, match=r"Python is 3\.11\.8 here and 3\.11\.7 on the head.*ray==2\.60\.0"):
        check_versions(Versions("2.60.0", "3.11.7"), Versions("2.60.0", "3.11.8"))
    with pytest.raises(BadInput, match=r"Ray is 2\.61\.0 here and 2\.60\.0 on the head and Python is 3\.12"):
        check_versions(Versions("2.60.0", "3.11.7"), Versions("2.61.0", "3.12.1"))


def test_the_token_is_random_kept_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = head.ensure_token(tmp_path / "one" / "ray-token")
    first = path.read_text()
    assert len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert head.ensure_token(path).read_text() == first
    assert head.ensure_token(tmp_path / "two" / "ray-token").read_text() != first


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster({"head": ["a100:2"], "box": ["t4", "rtx-4090"]}, DATABASE, PATIENCE) as running:
        yield running


def test_a_node_says_what_it_offers_once_the_head_knows_it(cluster: RayCluster) -> None:
    ready = cluster.nodes["box"].wait_for("node.ready")
    assert ready["devices"] == ["t4-box-0", "rtx-4090-box-0"]
    seen = in_cluster(cluster, "print([n['Resources'] for n in ray.nodes()], [n['Labels'] for n in ray.nodes()])")
    for expected in (
        "'effillm_device:a100:a100-head-1': 1.0", "'effillm_device:rtx-4090:rtx-4090-box-0': 1.0",
        "'effillm.io/hardware': 'a100'", "'effillm.io/hardware': 'rtx-4090_t4'",
    ):  # fmt: skip
        assert expected in seen


def test_an_actors_environment_has_the_declarations_and_no_gpu_index_of_rays(cluster: RayCluster) -> None:
    code = """
@ray.remote(num_gpus=1, num_cpus=0, resources={"effillm_device:a100:a100-head-0": 1})
def look():
    import os
    from effillm_worker.node import own_declarations
    return [device.id for device in own_declarations()], os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["RAY_memory_monitor_refresh_ms"]
print(ray.get(look.remote()))
"""
    assert "(['a100-head-0', 'a100-head-1'], None, '0')" in in_cluster(cluster, code)


def test_a_cluster_offers_its_classes_and_keeps_what_it_is_asked_for(cluster: RayCluster) -> None:
    """Without an autoscaler: the head keeps the request, which is what an autoscaler reads."""
    code = f"""
import json, ray
from effillm_worker.fleet.pool import RayPool
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get
pool = RayPool({cluster.address!r})
pool.connect()
for wanted in ([{{"effillm_class:t4": 1}}] * 2, []):
    pool.request(wanted)
    print(json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)))
print(sorted((name, count) for name, count in ray.cluster_resources().items() if name.startswith("effillm_class")))
"""
    asked, released, offered = _python(cluster, code).splitlines()
    assert asked == "[{'effillm_class:t4': 1}, {'effillm_class:t4': 1}]"
    assert released == "[]"
    assert "('effillm_class:a100', 2.0)" in offered
    assert "('effillm_class:rtx-4090', 1.0)" in offered


def test_a_python_other_than_the_heads_is_refused_by_a_real_head(cluster: RayCluster) -> None:
    """The head's own word about its version is changed; a second Python would have to be installed otherwise."""
    real = platform.python_version()
    set_python(cluster, "3.10.4")
    try:
        refused = cluster.start_node("old", ["t4"])
        assert refused.process.wait(60) == 2
        assert f"Python is {real} here and 3.10.4 on the head" in refused.errors()
    finally:
        set_python(cluster, real)
        del cluster.nodes["old"]


def test_a_driver_without_the_clusters_token_does_not_get_in(cluster: RayCluster) -> None:
    code = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False); print('inside')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=cluster.environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Failed to connect to Ray cluster" in done.stderr
    assert in_cluster(cluster, "print('inside')") == "inside\n", "with it, it does"


def test_a_client_without_the_clusters_token_does_not_get_in(cluster: RayCluster) -> None:
    """A head starts Ray's client server unasked, which runs whatever code a client brings."""
    found = [re.search(r"ray\.util\.client\.server .*--port=(\d+)", " ".join(p.cmdline())) for p in cluster.processes()]
    (port,) = (one[1] for one in found if one)
    right = head.token_file(cluster.data_dir).read_text()
    assert asked_by_client(port, None) == asked_by_client(port, "f" * 64) == grpc.StatusCode.UNAUTHENTICATED
    assert asked_by_client(port, right) == grpc.StatusCode.OK


def asked_by_client(port: str, token: str | None) -> grpc.StatusCode:
    """What the client server answers to a client's first question."""
    metadata = [("client_id", "test"), *([("authorization", f"Bearer {token}")] if token else [])]
    request = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_head_serves_no_dashboard(cluster: RayCluster) -> None:
    listening: dict[str, set[int]] = {}
    for one in cluster.processes():
        ports = {c.laddr.port for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        listening[" ".join(one.cmdline())] = ports
    assert int(cluster.address.rpartition(":")[2]) in set().union(*listening.values())
    # What is left of it counts usage, which is off, and serves nobody, its own metrics (port 44227) included.
    assert [ports for line, ports in listening.items() if "dashboard/dashboard.py" in line] == [set()]
    assert 8265 not in set().union(*listening.values())


def test_a_node_rejoins_when_its_head_comes_back(cluster: RayCluster) -> None:
    box = cluster.nodes["box"]
    joined = len(box.events("node.ready"))
    cluster.nodes.pop("head").stop(signal.SIGTERM)
    box.wait_for("node.left", within_s=40)
    kept = dict(cluster.nodes)
    cluster.nodes.clear()
    cluster.start_node("head", ["a100:2"]).wait_for("node.ready")
    cluster.nodes.update(kept)
    until("the node has joined again", lambda: len(box.events("node.ready")) > joined, 40)


def test_a_node_told_to_stop_leaves_nothing_behind(cluster: RayCluster) -> None:
    extra = cluster.start_node("extra", ["t4"])
    extra.wait_for("node.ready")
    assert extra.stop(signal.SIGINT) == 0
    of_extra = str(cluster.folder / "extra")
    until("nothing of it is left", lambda: not [p for p in cluster.processes() if of_extra in " ".join(command(p))])
    del cluster.nodes["extra"]


def in_cluster(cluster: RayCluster, code: str) -> str:
    """What a driver of the cluster prints."""
    start = f"import ray\nray.init(address={cluster.address!r}, log_to_driver=False, logging_level='ERROR')\n"
    return _python(cluster, start + code)


def set_python(cluster: RayCluster, version: str) -> None:
    """Have the head say that it runs this Python."""
    code = f"""
import json
from ray._common.usage import usage_lib, usage_constants
from ray._private import ray_constants
from ray._raylet import GcsClient
client = GcsClient(address={cluster.address!r})
metadata = usage_lib.get_cluster_metadata(client) | {{"python_version": {version!r}}}
client.internal_kv_put(
    usage_constants.CLUSTER_METADATA_KEY, json.dumps(metadata).encode(), True, ray_constants.KV_NAMESPACE_CLUSTER
)
"""
    _python(cluster, code)


def _python(cluster: RayCluster, code: str) -> str:
    environment = dict(cluster.environment)
    head.use_token(environment, head.token_file(cluster.data_dir))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_that_cannot_be_written_is_named(
    box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (box / "file").write_text("")
    for setting in ("EFFILLM_DATA_DIR", "EFFILLM_LOCK_DIR"):
        monkeypatch.setitem(os.environ, setting, str(box / "file"))
        assert node.main(["--head", "--declare", "t4"]) == 2
        assert f"{setting}={box / 'file'} cannot be written" in capsys.readouterr().err
        monkeypatch.setitem(os.environ, setting, str(box / "fine"))


def test_a_box_that_is_to_offer_gpus_and_has_none_is_refused() -> None:
    processors = tuple(one for one in fingerprint.detected("box", with_cpu=True) if one.hardware_class == "cpu")
    with pytest.raises(BadInput, match="no GPU is visible here"):
        node._gpus_of(processors)
