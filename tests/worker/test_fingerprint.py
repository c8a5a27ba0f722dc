from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from effillm_worker import fingerprint, gpus
from tests.support.fake_pynvml import Board, FakePynvml


def box(root: Path, *, sockets: int, cores: int, siblings: int, caches: bool = True) -> Path:
    """A /proc and /sys of a machine: `cores` per socket, `siblings` hardware threads per core, numbered as Linux does."""
    total = sockets * cores
    for cpu in range(total * siblings):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        core = cpu % total
        (topology / "physical_package_id").write_text(f"{core // cores}\n")
        (topology / "core_id").write_text(f"{core % cores}\n")
        (topology / "thread_siblings_list").write_text(",".join(str(core + total * n) for n in range(siblings)) + "\n")
    for node in range(sockets):
        (root / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    if caches:
        for index, (level, kind, size) in enumerate(
            [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "1M"), (3, "Unified", "32M")]
        ):
            cache = root / f"sys/devices/system/cpu/cpu0/cache/index{index}"
            cache.mkdir(parents=True)
            for name, value in (("level", level), ("type", kind), ("size", size)):
                (cache / name).write_text(f"{value}\n")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Example 9000\nflags\t\t: sse2 avx2\n\nprocessor\t: 1\n"
    )
    return root


def test_sockets_cores_and_hardware_threads_are_counted_apart(tmp_path: Path) -> None:
    found = fingerprint.processor(box(tmp_path, sockets=2, cores=4, siblings=2))
    assert (found.sockets, found.physical_cores, found.logical_cores, found.numa_nodes) == (2, 8, 16, 2)
    assert found.model == "Example 9000"
    assert found.features == ("avx2", "sse2")


def test_each_kind_of_cache_is_named_with_its_bytes(tmp_path: Path) -> None:
    found = fingerprint.processor(box(tmp_path, sockets=1, cores=2, siblings=1))
    assert found.caches_bytes == {"L1d": 32768, "L1i": 65536, "L2": 1048576, "L3": 33554432}


def test_one_thread_per_physical_core_of_those_given(tmp_path: Path) -> None:
    root = box(tmp_path, sockets=2, cores=4, siblings=2)
    assert fingerprint.threads(range(16), root) == 8
    assert fingerprint.threads([0, 8], root) == 1
    assert fingerprint.threads([0, 1, 2], root) == 3


def test_a_processor_quota_limits_the_threads(tmp_path: Path) -> None:
    root = box(tmp_path, sockets=1, cores=8, siblings=1)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text("250000 100000\n")
    assert fingerprint.threads(range(8), root) == 2
    (root / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert fingerprint.threads(range(8), root) == 1
    (root / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert fingerprint.threads(range(8), root) == 8


def test_memory_is_the_boxs_or_the_lower_limit_of_the_control_group(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert fingerprint.memory_bytes(tmp_path) == total
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1073741824\n")
    assert fingerprint.memory_bytes(tmp_path) == 2**30
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert fingerprint.memory_bytes(tmp_path) == total


def test_this_boxs_processor_agrees_with_psutil() -> None:
    found = fingerprint.processor()
    assert found.logical_cores == psutil.cpu_count()
    assert found.physical_cores == psutil.cpu_count(logical=False)
    assert found.architecture == os.uname().machine


def test_a_machine_keeps_its_key_and_another_has_another(tmp_path: Path) -> None:
    keys = set()
    for name in ("one", "two"):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/machine-id").write_text(name)
        assert fingerprint.machine_key(tmp_path / name) == fingerprint.machine_key(tmp_path / name)
        keys.add(fingerprint.machine_key(tmp_path / name))
    assert len(keys) == 2


def test_containers_of_one_image_on_two_hosts_have_different_keys(tmp_path: Path) -> None:
    keys = set()
    for board in ("aaaa", "bbbb"):
        root = tmp_path / board
        for folder in ("etc", "sys/class/dmi/id"):
            (root / folder).mkdir(parents=True)
        (root / ".dockerenv").touch()
        (root / "etc/machine-id").write_text("from the image")
        (root / "sys/class/dmi/id/product_uuid").write_text(board)
        keys.add(fingerprint.machine_key(root))
    assert len(keys) == 2


def test_a_box_without_a_gpu_offers_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: ())
    (device,) = fingerprint.detected("box1")
    assert (device.hardware_class, device.declared, device.gpu_uuid, device.node) == ("cpu", False, None, "box1")
    assert device.id == f"cpu-{fingerprint.machine_key()}"
    assert device.processors == fingerprint.processors()


def test_a_box_with_gpus_offers_its_processors_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([Board("NVIDIA A100-SXM4-40GB"), Board("Tesla T4")]).install(monkeypatch)
    assert [device.hardware_class for device in fingerprint.detected("box1")] == ["a100", "t4"]
    assert [device.hardware_class for device in fingerprint.detected("box1", with_cpu=True)] == ["a100", "t4", "cpu"]


def test_a_gpu_is_named_by_its_uuid_and_described_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([Board("NVIDIA GeForce RTX 4090", memory_bytes=24 * 2**30)]).install(monkeypatch)
    (device,) = fingerprint.detected("box1")
    assert (device.id, device.gpu_uuid, device.hardware_class) == ("GPU-0000", "GPU-0000", "rtx-4090")
    assert device.memory_bytes == 24 * 2**30
    assert device.hardware.gpu is not None
    assert (device.hardware.gpu.driver, device.hardware.gpu.cuda) == ("570.10", "12.8")
    assert device.hardware.gpu.power_limit_w == 450.0
    assert device.hardware.gpu.max_clocks_mhz == {"graphics": 2100, "sm": 2101, "memory": 2102}


def test_what_a_board_does_not_support_is_unknown_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([Board("Tesla T4", unsupported=frozenset({"ecc", "power", "mig", "capability"}))]).install(monkeypatch)
    (device,) = fingerprint.detected("box1")
    assert device.hardware.gpu is not None
    assert (device.hardware.gpu.ecc, device.hardware.gpu.power_limit_w, device.hardware.gpu.mig) == (None, None, None)


def test_slices_of_a_partitioned_board_are_devices_of_a_class_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([Board("NVIDIA A100-SXM4-40GB", slices=("1g.5gb", "2g.10gb"))]).install(monkeypatch)
    devices = fingerprint.detected("box1")
    assert [device.hardware_class for device in devices] == ["a100-mig-1g.5gb", "a100-mig-2g.10gb"]
    assert len({device.gpu_uuid for device in devices}) == 2


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("GPU-0001", [1]), ("0,-1,2", [0]), ("", [])],
)
def test_cuda_visible_devices_is_heeded(
    visible: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePynvml([Board("Tesla T4")] * 3).install(monkeypatch)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [found.gpu.uuid for found in gpus.found(environment)] == [f"GPU-000{index}" for index in expected]


def test_a_box_without_nvidias_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([], has_driver=False).install(monkeypatch)
    assert gpus.found({}) == ()


def test_gpus_share_the_processors_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePynvml([Board("Tesla T4")] * 2).install(monkeypatch)
    monkeypatch.setattr(fingerprint, "processors", lambda: tuple(range(8)))
    assert [device.processors for device in fingerprint.detected("box1")] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_declared_devices_say_so_and_have_the_memory_of_their_class() -> None:
    devices = fingerprint.declared("n1", [("a100", 2), ("cpu", 1)], {"a100": 40 * 10**9, "cpu": None})
    assert [device.id for device in devices] == ["a100-n1-0", "a100-n1-1", "cpu-n1-0"]
    assert all(device.declared and device.hardware.declared and device.gpu_uuid is None for device in devices)
    assert [device.memory_bytes for device in devices] == [40 * 10**9, 40 * 10**9, fingerprint.memory_bytes()]
