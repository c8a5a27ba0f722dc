"""What this box is: its processor, memory and GPUs, and the devices a node offers from it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from effillm_server.contract.fingerprint import DeviceDeclaration, Hardware, Processor
from effillm_worker import gpus

ROOT = Path("/")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
# cgroup v1 says "no limit" with a number close to 2^63.
NO_LIMIT = 2**60


def processor(root: Path = ROOT) -> Processor:
    """The processors of the whole box as /proc/cpuinfo and sysfs describe them."""
    info = _cpuinfo(root)
    topology = _topology(root)
    cores = set(topology.values())
    frequency = _number(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return Processor(
        model=info.get("model name") or info.get("Model") or info.get("CPU part") or platform.machine(),
        architecture=platform.machine(),
        sockets=len({package for package, _ in cores}) or 1,
        physical_cores=len(cores) or psutil.cpu_count(logical=False) or 1,
        logical_cores=len(topology) or psutil.cpu_count() or 1,
        numa_nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or 1,
        caches_bytes=_caches(root),
        max_mhz=None if frequency is None else frequency / 1000,
        features=tuple(sorted(set((info.get("flags") or info.get("Features") or "").split()))),
    )


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may use: the box's, or its control group's limit where that is lower."""
    limits = (root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = [limit for limit in map(_number, limits) if limit is not None and limit < NO_LIMIT]
    return min([psutil.virtual_memory().total, *found])


def processors() -> tuple[int, ...]:
    """The logical processors this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def threads(given: Sequence[int], root: Path = ROOT) -> int:
    """Threads to compute with on these logical processors: one per physical core, no more than the processor quota allows."""
    topology = _topology(root)
    cores = len({topology.get(cpu, (0, cpu)) for cpu in given})
    quota = _quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def container(root: Path = ROOT) -> str | None:
    """Which kind of container this is, None on a bare box."""
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def machine_key(root: Path = ROOT) -> str:
    """Short key of this machine, the same after a restart.

    A container's /etc/machine-id comes with its image and may be the same on every host, so there the board's own id
    is used, or the host name beside the image's.
    """
    identity = _text(root / "etc/machine-id")
    if container(root) is not None or not identity:
        identity = _text(root / "sys/class/dmi/id/product_uuid") or f"{identity}@{socket.gethostname()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def detected(node: str, *, with_cpu: bool = False) -> tuple[DeviceDeclaration, ...]:
    """The devices of this box: its GPUs; its processors when there is no GPU or `with_cpu` asks for them."""
    box, memory, cpus, boards = processor(), memory_bytes(), processors(), gpus.found()
    devices = [
        DeviceDeclaration(
            id=board.gpu.uuid,
            hardware_class=board.hardware_class,
            node=node,
            memory_bytes=board.gpu.memory_bytes,
            gpu_uuid=board.gpu.uuid,
            processors=_share(cpus, index, len(boards)),
            hardware=Hardware(hardware_class=board.hardware_class, processor=box, memory_bytes=memory, gpu=board.gpu),
        )
        for index, board in enumerate(boards)
    ]
    if with_cpu or not boards:
        devices.append(
            DeviceDeclaration(
                id=f"cpu-{machine_key()}",
                hardware_class="cpu",
                node=node,
                memory_bytes=memory,
                processors=cpus,
                hardware=Hardware(hardware_class="cpu", processor=box, memory_bytes=memory),
            )
        )
    return tuple(devices)


def declared(
    node: str, classes: Iterable[tuple[str, int]], memory_of: Mapping[str, int | None]
) -> tuple[DeviceDeclaration, ...]:
    """Devices this box only claims to have, for test clusters; they take nothing but simulated jobs."""
    box, memory, cpus = processor(), memory_bytes(), processors()
    return tuple(
        DeviceDeclaration(
            id=f"{hardware_class}-{node}-{index}",
            hardware_class=hardware_class,
            node=node,
            memory_bytes=memory_of.get(hardware_class) or memory,
            declared=True,
            processors=cpus,
            hardware=Hardware(hardware_class=hardware_class, declared=True, processor=box, memory_bytes=memory),
        )
        for hardware_class, count in classes
        for index in range(count)
    )


def _share(cpus: Sequence[int], index: int, of: int) -> tuple[int, ...]:
    """The part of the processors that feeds GPU `index` of `of`; at least one."""
    size = max(1, len(cpus) // of)
    start = index * size % len(cpus)
    return tuple(cpus[start : start + size])


def _topology(root: Path) -> dict[int, tuple[int, int]]:
    """Logical processor -> (socket, first sibling of its core); core ids alone repeat between dies."""
    places = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        siblings = _text(folder / "topology/thread_siblings_list")
        if siblings:
            package = _number(folder / "topology/physical_package_id") or 0
            places[int(folder.name[3:])] = (package, int(re.split("[-,]", siblings)[0]))
    return places


def _caches(root: Path) -> dict[str, int]:
    """Size of one cache of each kind: L1d, L1i, L2, L3."""
    caches = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
        if size:
            kind = {"Data": "d", "Instruction": "i"}.get(_text(index / "type"), "")
            caches[f"L{_text(index / 'level')}{kind}"] = int(size[1]) * UNITS.get(size[2], 1)
    return caches


def _quota(root: Path) -> float | None:
    """Processors' worth of time the control group grants, None when it sets no limit."""
    limit = _text(root / "sys/fs/cgroup/cpu.max").split()
    if len(limit) == 2 and limit[0] != "max":
        return int(limit[0]) / int(limit[1])
    quota = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _cpuinfo(root: Path) -> dict[str, str]:
    """Fields of the first processor (and, on ARM, of the board) in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None
