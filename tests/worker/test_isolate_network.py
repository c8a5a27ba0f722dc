"""A measuring child and the network: none where it has nothing to download, and what it then still can."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.outcome import Infeasible, Measured
from effillm_worker import isolate
from tests.support.children.play import MIB
from tests.support.isolation import opened, run


@pytest.fixture
def box_port() -> Iterator[int]:
    """A port of this box's loopback where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def connecting(folder: Path, port: int, **changes: Any) -> tuple[str, str, str, str]:
    """The child's network, what came of connecting to the box and to itself, and whether the hub is off for its libraries."""
    with opened(folder, "connect", environment={"BOX_PORT": str(port)}, **changes) as child:
        outcome = child.run(run(), deadline_s=60)
    assert isinstance(outcome, Infeasible)
    box, own, offline = outcome.message.split("|")
    return child.network, box, own, offline


def test_a_child_that_has_nothing_to_download_reaches_nothing_but_itself(tmp_path: Path, box_port: int) -> None:
    network, *said = connecting(tmp_path, box_port, network=False)
    if network != "none":
        pytest.skip(f"this kernel lets no process leave the network: {network}")
    assert said == ["ECONNREFUSED", "connected", "1"]


def test_a_child_that_must_download_reaches_the_network(tmp_path: Path, box_port: int) -> None:
    assert connecting(tmp_path, box_port) == ("host", "connected", "connected", "")


def test_a_child_whose_kernel_refuses_to_let_it_go_measures_with_the_network_and_says_so(
    tmp_path: Path, box_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = isolate.LEAVE_NETWORK.read_text()
    refusing = "def unshare(flags: int) -> None:\n    raise PermissionError(1, 'Operation not permitted')\n"
    changed = tmp_path / "offline.py"
    changed.write_text(source.replace('if __name__ == "__main__":', refusing + '\n\nif __name__ == "__main__":'))
    monkeypatch.setattr(isolate, "LEAVE_NETWORK", changed)
    network, *said = connecting(tmp_path, box_port, network=False)
    assert network == "host: no network namespace to be had (Operation not permitted)"
    assert said == ["connected", "connected", "1"]
    with opened(tmp_path, "measure", network=False) as child:
        result = child.run(run(), deadline_s=30)
        assert isinstance(result, Measured) and result.details["network"] == network


def test_memory_and_conditions_of_a_child_without_network_are_read_as_ever(tmp_path: Path) -> None:
    with opened(tmp_path, "measure", network=False) as child:
        result = child.run(run(), deadline_s=30)
        assert isinstance(result, Measured)
        assert result.details["network"] == child.network
        loaded, peak = result.child.loaded, result.memory.peak_prefill
        assert loaded is not None and loaded.ram_bytes is not None and loaded.ram_pss_bytes is not None
        assert peak is not None and peak.ram_peak_bytes is not None
        assert peak.ram_peak_bytes - loaded.ram_bytes == pytest.approx(32 * MIB, abs=2 * MIB)
        assert "others_cpus" in result.conditions.watched
