"""Leaves the network: a network namespace of its own for a process that has nothing to download.

The supervisor runs this file by path in the process that is about to become the measuring child: standard library only, before
exec, with one thread. What comes of it is `network`: `none`, or `host` and why. It never fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

LIBC = ctypes.CDLL(None, use_errno=True)


def leave() -> str:
    """`none` when this process has no network but a loopback of its own from now on, else `host: ` and why not."""
    try:
        enter_namespace()
    except OSError as error:
        return f"host: no network namespace to be had ({error.strerror})"
    with contextlib.suppress(OSError):
        loopback_up()
    return "none"


def enter_namespace() -> None:
    """A new network namespace, as root or by way of a user namespace. Raises OSError."""
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        # A user namespace cannot be left again, so another process tries it first.
        if not is_user_namespace_usable():
            raise
        enter_user_namespace()


def unshare(flags: int) -> None:
    """As os.unshare of Python 3.12. Raises OSError."""
    if LIBC.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_user_namespace_usable() -> bool:
    """Whether a forked process comes through `enter_user_namespace`: some systems let it in and then take its rights away."""
    trial = os.fork()
    if trial == 0:
        try:
            enter_user_namespace()
            loopback_up()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(trial, 0)[1] == 0


def enter_user_namespace() -> None:
    """Without the network, in a user namespace where this user and group keep their numbers: files, signals and what the
    parent reads of this process stay as they are. Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def loopback_up() -> None:
    """Some libraries talk to themselves. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


if __name__ == "__main__":
    network = leave()
