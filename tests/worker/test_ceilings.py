from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.settings import Settings
from effillm_worker import ceilings, fingerprint
from effillm_worker.engines.base import Environment
from effillm_worker.measure.software import software


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> DeviceDeclaration:
    monkeypatch.setattr("effillm_worker.gpus.found", lambda: ())
    return fingerprint.detected("box")[0]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "locks").mkdir()
    return Settings(data_dir=tmp_path / "data", lock_dir=tmp_path / "locks")


def described(device: DeviceDeclaration) -> Fingerprint:
    return Fingerprint(hardware=device.hardware, software=software(Environment()))


def test_a_ceiling_is_measured_once_for_a_fingerprint_and_kept(
    device: DeviceDeclaration, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ceilings.ceiling(device, settings, described(device))
    assert found is not None
    assert found["copy_bytes_s"] > 1e8
    assert found["matmul_flop_s"]["float32"] > 1e8
    assert found["threads"] == fingerprint.threads(device.processors)
    monkeypatch.setattr(ceilings, "MODULE", "there.is.no.second.measurement")
    assert ceilings.ceiling(device, settings, described(device)) == found


def test_other_hardware_or_another_torch_has_a_ceiling_of_its_own(device: DeviceDeclaration) -> None:
    base = described(device)
    more_memory = base.model_copy(update={"hardware": base.hardware.model_copy(update={"memory_bytes": 1})})
    versions = base.software.versions | {"torch": "1.0"}
    other_torch = base.model_copy(update={"software": base.software.model_copy(update={"versions": versions})})
    other_code = base.model_copy(update={"software": base.software.model_copy(update={"code_version": "next"})})
    keys = [ceilings._key(one) for one in (base, more_memory, other_torch, other_code)]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


def test_a_device_somebody_holds_is_not_measured(
    device: DeviceDeclaration, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with (settings.lock_dir / f"{device.id}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ceilings.ceiling(device, settings, described(device)) is None
    assert json.loads(capsys.readouterr().err)["event"] == "ceiling.busy"


def test_what_is_kept_is_found_by_the_fingerprint_of_a_result_and_by_no_other(
    device: DeviceDeclaration, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_result = described(device)
    assert ceilings.kept(settings, of_result) is None
    path = ceilings._file(settings, of_result)
    path.parent.mkdir(parents=True)
    path.write_text('{"copy_bytes_s": 1e10}')
    assert ceilings.kept(settings, of_result) == {"copy_bytes_s": 1e10}
    other = of_result.model_copy(update={"software": of_result.software.model_copy(update={"kernel": "next"})})
    assert ceilings.kept(settings, other) is None


def test_a_measurement_that_fails_leaves_the_device_without_a_ceiling_and_says_why(
    device: DeviceDeclaration, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceilings, "MODULE", "effillm_worker.no_such_module")
    assert ceilings.ceiling(device, settings, described(device)) is None
    said = json.loads(capsys.readouterr().err)
    assert said["event"] == "ceiling.failed"
    assert "no_such_module" in said["log_tail"][-1]


def test_a_declared_device_has_none(settings: Settings) -> None:
    (claimed,) = fingerprint.declared("box", [("t4", 1)], {})
    assert ceilings.ceiling(claimed, settings, described(claimed)) is None
