"""Runs a command that cannot outlive the process that asked for it: `python tether.py PARENT_PID SIGNAL USER COMMAND…`.

Standard library only and run by path, so that it costs milliseconds. USER is `-`, or, for root, whom to become first.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns: becomes the command, or exits when the parent is gone already."""
    parent, death_signal, user = int(arguments[0]), int(arguments[1]), arguments[2]
    if user != "-":
        become(user)
    # The kernel clears the request when credentials change, so it comes after `become`; exec keeps it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that asked for this one has ended")
    os.execvp(arguments[3], arguments[3:])  # noqa: S606 - the command comes from our own code, no shell


def become(user: str) -> None:
    """Drops root for good: groups, then group, then user."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user)


if __name__ == "__main__":
    main(sys.argv[1:])
