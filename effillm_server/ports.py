"""A port for a server that is started a little later, perhaps by another process."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Above the ports of Ray's workers, which end at 19,999.
LOWEST = 20_000
TRIES = 100


def free_port(host: str = "") -> int:
    """A port of `host` ("": all addresses) that nobody listens on now.

    Drawn below those the kernel gives to whoever asks for any: until its server listens, no connection of another process
    can be given it. Where nothing is left below, one of the kernel's.
    """
    dice = random.SystemRandom()
    highest = _first_ephemeral() - 1
    for _ in range(TRIES if highest > LOWEST else 0):
        if (port := _bound(host, dice.randint(LOWEST, highest))) is not None:
            return port
    port = _bound(host, 0)
    if port is None:
        raise OSError(f"no port can be bound on {host or 'this machine'}")
    return port


def _bound(host: str, port: int) -> int | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _first_ephemeral() -> int:
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
