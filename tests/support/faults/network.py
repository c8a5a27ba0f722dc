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


def may_filter() -> bool:
    """Whether single directions and ports of a cable can be cut as well."""
    return is_possible() and shutil.which("iptables") is not None


class Cable:
    """The namespace `name` at address `there`; the box is `here` to it."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.name, self._plug, self._inside = f"ef{tag}", f"ef{tag}0", f"ef{tag}1"
        self.here, self.there = f"{net}.1", f"{net}.2"
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._plug, "type", "veth", "peer", "name", self._inside, "netns", self.name)
            _ip("addr", "add", f"{self.here}/24", "dev", self._plug)
            _ip("link", "set", self._plug, "up")
            _ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", self._inside)
            _ip("-n", self.name, "link", "set", self._inside, "up")
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

    def lose(self, outgoing: bool, spared_port: int) -> None:
        """Packets get lost in one direction, but not those of the connection to `spared_port` of the box."""
        chain, way, port = ("OUTPUT", "-o", "--dport") if outgoing else ("INPUT", "-i", "--sport")
        rule = [chain, way, self._inside, "-p", "tcp", "!", port, str(spared_port), "-j", "DROP"]
        self._filter("-A", *rule)

    def lose_nothing(self) -> None:
        self._filter("-F")

    def _filter(self, *arguments: str) -> None:
        subprocess.run([*self.command(), "iptables", *arguments], check=True, capture_output=True)

    def remove(self) -> None:
        """The cable goes with the namespace."""
        _ip("netns", "del", self.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
