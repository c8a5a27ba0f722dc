"""A network namespace with one cable to this box, so that a node can be cut off as a pulled plug does it. Needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess


def is_possible() -> bool:
    """Whether this process may make namespaces and cables."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        Cable().remove()
    except subprocess.CalledProcessError:
        return False
    return True


class Cable:
    """The namespace `name` at address `there`; the box is `here` to it."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.name, self._plug = f"ef{tag}", f"ef{tag}0"
        self.here, self.there = f"{net}.1", f"{net}.2"
        inside = f"ef{tag}1"
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._plug, "type", "veth", "peer", "name", inside, "netns", self.name)
            _ip("addr", "add", f"{self.here}/24", "dev", self._plug)
            _ip("link", "set", self._plug, "up")
            _ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", inside)
            _ip("-n", self.name, "link", "set", inside, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
            _ip("-n", self.name, "route", "add", "default", "via", self.here)
        except subprocess.CalledProcessError:
            self.remove()
            raise

    def command(self) -> list[str]:
        """What to put before a command so that it runs behind the cable."""
        return ["ip", "netns", "exec", self.name]

    def unplug(self) -> None:
        _ip("link", "set", self._plug, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self._plug, "up")

    def remove(self) -> None:
        """The cable goes with the namespace."""
        _ip("netns", "del", self.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
