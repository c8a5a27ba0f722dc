"""Ports for servers that start a little later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from effillm_server import ports


def test_a_port_is_free_and_out_of_the_reach_of_other_connections() -> None:
    first = int(ports.EPHEMERAL.read_text().split()[0])
    for host in ("", "127.0.0.1"):
        port = ports.free_port(host)
        assert ports.LOWEST <= port < first
        with socket.socket() as server:
            server.bind((host, port))


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("", ports.free_port()))
        taken = held.getsockname()[1]
        monkeypatch.setattr(ports, "LOWEST", taken)
        monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
        (tmp_path / "range").write_text(f"{taken + 2} 60999\n")
        assert {ports.free_port() for _ in range(20)} <= {taken + 1}


def test_where_nothing_is_left_below_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    (tmp_path / "range").write_text("1024 65535\n")
    assert ports.free_port("127.0.0.1") >= 1024


def test_an_address_that_is_not_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.7"):
        ports.free_port("203.0.113.7")
