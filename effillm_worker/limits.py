"""Control groups for one child: a memory limit the kernel enforces, a bound on processes, an end in one write.

Versions 2 and 1 of the interface are tried where this process may create groups; what cannot be made is left out, and the
supervisor then limits the child's memory by RLIMIT_DATA and ends its tree by walking it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "effillm-"
MAX_PROCESSES = 4096  # threads count too: a child on a 256-core box needs some hundreds
ABANDONED_S = 600.0


@dataclass(frozen=True)
class Groups:
    """The directories made for one child; `memory` is the one that limits its memory, if any could."""

    all: tuple[Path, ...] = ()
    memory: Path | None = None

    def remove(self) -> None:
        """Remove what is empty; the supervisor does it first when it can."""
        for group in self.all:
            with contextlib.suppress(OSError):
                group.rmdir()


def prepare(
    name: str,
    memory_limit_bytes: int | None,
    membership: Path = Path("/proc/self/cgroup"),
    mounts: Path = Path("/proc/self/mountinfo"),
) -> Groups:
    """Control groups for the child `name`, limited where possible. Never fails: none is an answer."""
    made: list[Path] = []
    memory: Path | None = None
    for parents, controllers in _places(membership, mounts):
        for parent in parents:
            group = _make(parent, name)
            if group is None:
                continue
            holds = _limit_memory(group, memory_limit_bytes) if memory is None else False
            bounds = _write(group / "pids.max", str(MAX_PROCESSES))
            if holds or bounds or (group / "cgroup.kill").exists():
                made.append(group)
                memory = group if holds else memory
                if not controllers or holds or memory_limit_bytes is None:
                    break  # this place gave all it can; else its parent may delegate what it does not
            else:
                group.rmdir()
    return Groups(tuple(_one_per_hierarchy(made, memory)), memory)


def _one_per_hierarchy(made: list[Path], memory: Path | None) -> Iterator[Path]:
    """A process is in one group per hierarchy: of two made in version 2 keep the one that holds memory."""
    unified = [group for group in made if (group / "cgroup.controllers").exists()]
    keep = memory if memory in unified else (unified[0] if unified else None)
    for group in made:
        if group in unified and group != keep:
            group.rmdir()
        else:
            yield group


def _places(membership: Path, mounts: Path) -> Iterator[tuple[list[Path], str]]:
    """Directories to try, per hierarchy: our own group first, then its parent (a scope cannot hold groups beside processes)."""
    try:
        own = [line.split(":", 2) for line in membership.read_text().splitlines()]
        mounted = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return
    for fields in mounted:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        for _, controllers, path in own:
            wanted = (kind == "cgroup2" and not controllers) or (
                kind == "cgroup" and controllers in ("memory", "pids") and controllers in options
            )
            root, mount = fields[3], Path(fields[4])
            if wanted and path.startswith(root.rstrip("/")):
                below = mount / path[len(root.rstrip("/")) :].lstrip("/")
                parents = [below] if kind == "cgroup" or below == mount else [below, below.parent]
                yield parents, controllers


def _make(parent: Path, name: str) -> Path | None:
    for old in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > ABANDONED_S:
                old.rmdir()  # succeeds only on an empty one: both its owners were killed
    _write(parent / "cgroup.subtree_control", "+memory +pids")
    group = parent / f"{PREFIX}{name}"
    try:
        group.mkdir()
    except OSError:
        return None
    return group


def _limit_memory(group: Path, limit: int | None) -> bool:
    if limit is None:
        return False
    if _write(group / "memory.max", str(limit)):
        _write(group / "memory.swap.max", "0")
        _write(group / "memory.oom.group", "1")
        return True
    if _write(group / "memory.limit_in_bytes", str(limit)):
        _write(group / "memory.memsw.limit_in_bytes", str(limit))
        return True
    return False


def _write(path: Path, text: str) -> bool:
    try:
        with path.open("r+b", buffering=0) as file:
            file.write(text.encode())
    except OSError:
        return False
    return True
