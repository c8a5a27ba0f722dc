"""What processes are called and whose children they are, also of those that end while they are asked."""

from __future__ import annotations

import psutil


def command(process: psutil.Process) -> list[str]:
    """Its arguments; none when it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def lineage(process: psutil.Process) -> set[int]:
    """Its process id and those of its ancestors; its own alone when it has ended."""
    try:
        return {process.pid, *(parent.pid for parent in process.parents())}
    except psutil.Error:
        return {process.pid}
