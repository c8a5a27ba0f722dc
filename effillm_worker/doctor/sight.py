"""What can be watched here: one check per instrument, each tried as the meters use it, none by guessing from names."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.units import format_bytes
from effillm_server.settings import Settings
from effillm_worker import limits
from effillm_worker.meters import energy, host
from effillm_worker.meters.memory import TreeMeter
from effillm_worker.meters.nvml import NvmlError, NvmlGpu

ROOT = Path("/")
PROBE_BYTES = 2**25
NO_PROC = "mount /proc of a Linux kernel with CONFIG_PROC_PAGE_MONITOR; sandboxes such as gVisor have none"


@dataclass(frozen=True)
class Check:
    """One instrument. `found` is what it shows when it can be used, else `why` it cannot and what would `change` that."""

    name: str
    can: bool
    found: str = ""
    why: str = ""
    change: str = ""

    @property
    def text(self) -> str:
        """`yes …` or `no, because …; to change that: …`."""
        if self.can:
            return f"yes: {self.found}" if self.found else "yes"
        return f"no, because {self.why}; to change that: {self.change}"


def look(device: DeviceDeclaration, settings: Settings, root: Path = ROOT) -> tuple[Check, ...]:
    """Every check for one device of this box. Takes well under a second and leaves nothing behind."""
    return (
        nvml(device),
        device_energy(device, root),
        *memory(root),
        frequency(device, root),
        throttling(root),
        steal(device, root),
        swapping(root),
        *control_groups(),
        folder(
            "device locks", settings.lock_dir, "EFFILLM_LOCK_DIR", "; every user and cluster of this box must share it"
        ),
        folder("data directory", settings.data_dir, "EFFILLM_DATA_DIR", ""),
        real_clock(root),
        framework(),
    )


def nvml(device: DeviceDeclaration) -> Check:
    """GPU memory, clocks, throttling and foreign processes, by the driver's library."""
    name = "GPU through NVML"
    advice = (
        "install NVIDIA's driver so that `nvidia-smi` lists the GPU, in a container start it with `--gpus all`; "
        "a box without an NVIDIA GPU needs none"
    )
    try:
        import pynvml
    except ImportError as error:
        return Check(name, can=False, why=f"nvidia-ml-py is missing ({error})", change="pip install 'effillm[worker]'")
    try:
        if device.gpu_uuid is None:
            pynvml.nvmlInit()
            count = int(pynvml.nvmlDeviceGetCount())
            pynvml.nvmlShutdown()
            return Check(name, can=True, found=f"{count} on this box; the device looked at is not one of them")
        probe = NvmlGpu(device.gpu_uuid)
        found = f"{len(probe.processes())} processes, {format_bytes(probe.memory_used_bytes())} in use"
        return Check(name, can=True, found=found)
    except (pynvml.NVMLError, NvmlError) as error:
        return Check(name, can=False, why=f"the driver's library says: {error}", change=advice)


def device_energy(device: DeviceDeclaration, root: Path = ROOT) -> Check:
    """Energy by a counter of the hardware: NVML of a GPU, RAPL of processors."""
    if device.gpu_uuid is not None:
        return _gpu_energy(device.gpu_uuid)
    powercap = root / "sys/class/powercap"
    counter = energy.find_counter(None, powercap)
    if not isinstance(counter, str):
        return Check("energy (RAPL)", can=True, found=counter.source)
    change = (
        f"as root, `chmod a+r {powercap}/intel-rapl:*/energy_uj` (a udev rule keeps it over a restart)"
        if "not readable" in counter
        else "measure on bare metal with the kernel's module intel_rapl_common; virtual machines show no counters"
    )
    return Check("energy (RAPL)", can=False, why=counter, change=change)


def _gpu_energy(uuid: str) -> Check:
    name = "energy (NVML)"
    try:
        counter = energy.find_counter(NvmlGpu(uuid))
    except NvmlError as error:
        counter = str(error)
    if not isinstance(counter, str):
        return Check(name, can=True, found=counter.source)
    return Check(
        name, can=False, why=counter, change="a data-centre board since Volta counts energy, older ones do not"
    )


def memory(root: Path = ROOT) -> tuple[Check, Check]:
    """Proportional memory of a process, and whether its high-water mark can be set back for each stage."""
    meter = TreeMeter(os.getpid(), proc=root / "proc")
    reading = meter.read({})
    share = reading.ram_pss_bytes
    pss = (
        Check("proportional memory (PSS)", can=True, found=f"{format_bytes(share)} of this process")
        if share is not None
        else Check(
            "proportional memory (PSS)", can=False, why="/proc/<pid>/smaps_rollup shows no Pss", change=NO_PROC
        )
    )  # fmt: skip
    before = reading.ram_peak_bytes
    ballast = bytearray(b"\1") * PROBE_BYTES  # written to, so that the mark really rises
    raised = meter.read({}).ram_peak_bytes
    del ballast
    done = meter.reset_peak()
    after = meter.read({}).ram_peak_bytes
    name = "peak of each stage (clear_refs)"
    if done and before and raised and after and after < raised:
        return pss, Check(name, can=True, found="the kernel's high-water mark can be set back")
    why = "/proc/<pid>/clear_refs cannot be written to" if not done else "the high-water mark does not fall"
    return pss, Check(name, can=False, why=f"{why}; peaks are then those since the process began", change=NO_PROC)


def frequency(device: DeviceDeclaration, root: Path = ROOT) -> Check:
    """The processors' present clock."""
    mhz = host.clock_mhz(device.processors, root / "sys")
    if mhz is not None:
        return Check("processor clock", can=True, found=f"{mhz:.0f} MHz now")
    return Check(
        "processor clock", can=False, why="there is no cpufreq below /sys: a virtual machine or no frequency driver",
        change="measure on bare metal with a cpufreq driver (intel_pstate, amd-pstate, acpi-cpufreq)",
    )  # fmt: skip


def throttling(root: Path = ROOT) -> Check:
    """How often the processors were slowed down by their temperature."""
    events = host.throttle_events(root / "sys")
    if events is not None:
        return Check("processor throttling", can=True, found=f"{events} times since the start of the machine")
    return Check(
        "processor throttling", can=False, why="there are no thermal_throttle counters below /sys",
        change="measure on bare metal; Intel processors count, most others and virtual machines do not",
    )  # fmt: skip


def steal(device: DeviceDeclaration, root: Path = ROOT) -> Check:
    """Time the hypervisor gave to other guests."""
    try:
        times = host.cpu_times(device.processors, root / "proc")
    except (OSError, ValueError) as error:
        return Check("steal", can=False, why=f"/proc/stat cannot be read: {error}", change="mount /proc")
    share = times.steal / times.total if times.total else 0.0
    found = f"{share:.1%} since the start of the machine"
    if is_virtual(root) and not times.steal:
        found += "; a virtual machine whose hypervisor hides it shows 0 as well"
    return Check("steal", can=True, found=found)


def swapping(root: Path = ROOT) -> Check:
    """Pages the machine moved to and from disk."""
    pages = host.swapped_pages(root / "proc")
    if pages is not None:
        return Check("swapping", can=True, found=f"{pages:,} pages since the start of the machine")
    return Check(
        "swapping", can=False, why="/proc/vmstat counts no pswpin and pswpout", change="a kernel with CONFIG_SWAP"
    )


def control_groups() -> tuple[Check, Check]:
    """Whether a child's memory and number of processes can be bounded by the kernel's control groups."""
    groups = limits.prepare(f"doctor-{uuid.uuid4().hex[:8]}", 2**40)
    try:
        bounded = any(_reads(group / "pids.max", str(limits.MAX_PROCESSES)) for group in groups.all)
        change = (
            "start it where control groups are delegated: `systemd-run --user --scope -p Delegate=yes effillm up`, or in a container "
            "with a writable cgroup mount of its own"
        )
        why = "no control group with that controller may be made here"
        kernel = Check("memory limit by the kernel", can=True, found=f"control group {groups.memory}")
        pids = Check("bound on processes", can=True, found=f"{limits.MAX_PROCESSES} for each child")
        return (
            kernel if groups.memory
            else Check(kernel.name, can=False, why=f"{why}: a child is limited by RLIMIT_DATA instead", change=change),
            pids if bounded else Check(pids.name, can=False, why=why, change=change),
        )  # fmt: skip
    finally:
        groups.remove()


def folder(name: str, path: Path, setting: str, more: str) -> Check:
    """Whether files can be written into this folder, and how much room there is."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Check(
            name, can=False, why=f"{path} cannot be written to: {error.strerror or error}",
            change=f"give this user the folder, or name another one in {setting}{more}",
        )  # fmt: skip
    room = os.statvfs(path)
    return Check(name, can=True, found=f"{path}, {format_bytes(room.f_bavail * room.f_frsize)} free")


def real_clock(root: Path = ROOT) -> Check:
    """Whether times are the machine's own: a library that fakes them falsifies every number."""
    name = "the machine's own clock"
    maps = _text(root / "proc/self/maps") + os.environ.get("LD_PRELOAD", "")
    if "libfaketime" in maps:
        return Check(
            name, can=False, why="libfaketime is loaded into this process and falsifies every time",
            change="start without it: unset LD_PRELOAD, look into /etc/ld.so.preload",
        )  # fmt: skip
    source = _text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
    return Check(name, can=True, found=f"clock source {source}, no libfaketime" if source else "no libfaketime")


def framework() -> Check:
    """Whether the measuring child has what it needs; looked up, not imported."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if not missing:
        return Check("torch and transformers", can=True, found="installed")
    return Check(
        "torch and transformers", can=False, why=f"{' and '.join(missing)} cannot be found by {sys.executable}",
        change="pip install 'effillm[worker]'",
    )  # fmt: skip


def is_virtual(root: Path = ROOT) -> bool:
    """Whether the processor says that a hypervisor is below it."""
    lines = _text(root / "proc/cpuinfo").splitlines()
    return any("hypervisor" in line.split() for line in lines if line.startswith("flags"))


def _reads(path: Path, expected: str) -> bool:
    return _text(path).strip() == expected


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
