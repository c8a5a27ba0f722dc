from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_worker import fingerprint
from effillm_worker.doctor import __main__ as doctor
from effillm_worker.doctor import report, steadiness
from tests.support.commands import effillm


@pytest.fixture(autouse=True)
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DeviceDeclaration:
    monkeypatch.setenv("EFFILLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EFFILLM_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr("effillm_worker.gpus.found", lambda: ())
    monkeypatch.setattr(steadiness, "LOOK_S", 0.05)
    return fingerprint.detected("box")[0]


def test_the_command_looks_quickly_and_prints_one_json_object(tmp_path: Path) -> None:
    done = effillm("doctor", "--quick", "--json", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_LOCK_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {device["hardware_class"] for device in document["devices"]} >= {"cpu"}
    assert document["noise_floor"] == {"not_measured": report.SKIPPED}
    assert "doctor: looking" in done.stderr


def test_the_text_answers_every_check_and_says_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--quick"]) == 0
    text = capsys.readouterr().out
    assert "What can be watched" in text and "For steadier numbers" in text
    assert text.count(f"not measured: {report.SKIPPED}") == 3
    assert "device locks" in text


def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    box: DeviceDeclaration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--quick", "--device", "h100"]) == 2
    said = capsys.readouterr().err
    assert "'h100' is not on this box" in said and box.id in said


def test_quick_and_measure_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--quick", "--measure"])
    assert stopped.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_device_in_use_is_not_measured_and_its_holder_named(
    box: DeviceDeclaration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    with (locks / f"{box.id}.lock").open("w+") as lock:
        lock.write("supervisor 1234: a child")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert doctor.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for name in ("ceiling", "noise_floor", "probe_overhead"):
        assert "supervisor 1234" in document[name]["not_measured"]


def test_a_whole_report_reads_as_sentences() -> None:
    document: dict[str, Any] = {
        "device": "cpu-1", "is_gpu": False,
        "devices": [{"id": "cpu-1", "hardware_class": "cpu", "memory_bytes": 16 * 10**9, "name": "a processor"}],
        "ceiling": {"copy_bytes_s": 2e10, "matmul_flop_s": {"float32": 1e11}, "not_measured_dtypes": {"bfloat16": "no"},
                    "threads": 2, "source": "measured now"},
        "noise_floor": {"noise_floor": 0.02, "noise_floor_ci95": [0.01, 0.05], "relative_sd": 0.014,
                        "relative_sd_ci95": [0.007, 0.035], "within_relative_sd": 0.01, "cell": "a cell",
                        "processes": [{"throughput_tok_s": 70.0, "verdict": "invalid", "reasons": ["steal: 9 %"]}] * 2},
        "probe_overhead": {"verdict": "undecided", "overhead": 0.004, "overhead_ci95": [-0.01, 0.02], "pairs": 7,
                           "cell": "a cell"},
    }  # fmt: skip
    check = report.Check("energy", can=False, why="nobody counts", change="a counter")
    text = "\n".join(report.lines(document, [check], []))
    busy = report.Advice("other load", "a backup runs", "wait")
    assert "--measure takes it anew" in "\n".join(report.lines(document, [check], [busy]))
    assert "takes it anew" not in text
    assert "--noise-floor" not in text  # nobody should compare by the noise of a busy machine
    for process in document["noise_floor"]["processes"]:
        process["verdict"] = "valid"
    assert "--noise-floor 2.0%" in "\n".join(report.lines(document, [check], []))
    for part in (
        "energy  no, because nobody counts; to change that: a counter", "copy            20.0 GB/s", "2.00 %: two runs",
        "95 % interval 1.00 to 5.00 %, from 2 fresh processes", "steal: 9 %", "undecided: +0.40 %", "nothing to change",
    ):  # fmt: skip
        assert part in text
