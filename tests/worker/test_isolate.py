"""A measuring child seen from the actor: every way it can end, and what is said of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from effillm_server.contract.outcome import (
    Cancelled,
    ChildRecord,
    Fault,
    FaultKind,
    Infeasible,
    InfeasibleReason,
    Measured,
    Verdict,
)
from effillm_worker import isolate, limits
from effillm_worker.isolate import Child, DeviceBusy, attest, lock_file
from effillm_worker.link import marked
from effillm_worker.witness import Instruments
from tests.support.children.play import MIB
from tests.support.fake_nvml import FakeNvml
from tests.support.isolation import await_true, device, is_running, opened, opening, run, spec, started


def test_a_cell_is_measured_with_memory_conditions_verdict_and_fingerprint(tmp_path: Path) -> None:
    with opened(tmp_path, "measure") as child:
        begin = time.monotonic()
        result = child.run(run(), deadline_s=30)
        took_s = time.monotonic() - begin
        assert isinstance(result, Measured)
        assert len(result.samples) == 5
        assert result.fingerprint.software.code_version == "test"
        assert result.child.load_group == "group" and result.child.pid == child.pid
        assert 0 < result.conditions.watched["window_s"] < took_s
        assert result.energy_j is not None or "RAPL" in result.energy_source
        assert not result.simulated


def test_memory_stages_are_the_kernels_own_and_decode_has_a_peak_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path, "measure") as child:
        result = child.run(run(), deadline_s=30)
        assert isinstance(result, Measured)
        memory, baseline, loaded = result.memory, result.child.baseline, result.child.loaded
        assert baseline is not None and baseline.ram_bytes is not None
        assert loaded is not None and loaded.ram_bytes is not None
        assert loaded.ram_bytes - baseline.ram_bytes == pytest.approx(64 * MIB, rel=0.03)
        assert memory.peak_prefill is not None and memory.peak_prefill.ram_peak_bytes is not None
        assert memory.peak_decode is not None and memory.peak_decode.ram_peak_bytes is not None
        assert memory.steady is not None and memory.steady.ram_bytes is not None
        assert memory.peak_prefill.ram_peak_bytes - loaded.ram_bytes == pytest.approx(32 * MIB, abs=2 * MIB)
        assert memory.peak_decode.ram_peak_bytes - loaded.ram_bytes == pytest.approx(8 * MIB, abs=2 * MIB)
        assert memory.steady.ram_bytes - loaded.ram_bytes == pytest.approx(8 * MIB, abs=2 * MIB)
        assert memory.account["weights_bytes"] == 64 * MIB


def test_closing_reads_the_last_stage_and_frees_the_device(tmp_path: Path) -> None:
    with opened(tmp_path, "measure") as child:
        child.run(run(), deadline_s=30)
        record = child.close(deadline_s=10)
        assert record.baseline is not None and record.released is not None
        assert record.baseline.ram_bytes is not None
        assert record.released.ram_bytes == pytest.approx(record.baseline.ram_bytes, rel=0.1)
        assert record.cells_measured == 1
        assert not child.is_alive
        assert attest(device(), tmp_path / "locks") is None


def test_a_child_that_hangs_while_closing_is_ended_and_its_record_kept(tmp_path: Path) -> None:
    with opened(tmp_path, "hang_in_close") as child:
        record = child.close(deadline_s=0.3)
        assert record.loaded is not None and record.released is None
        assert not child.is_alive


def test_a_second_child_is_kept_out_and_told_who_has_the_device(tmp_path: Path) -> None:
    with started(tmp_path, "measure"):
        with pytest.raises(DeviceBusy, match=r"held by another process \(supervisor \d+: device box-cpu"):
            Child.start(spec(tmp_path, "measure"))
        assert "still holds the device" in (attest(device(), tmp_path / "locks") or "")
    with started(tmp_path, "measure") as third:
        assert third.is_alive


def test_simulated_cells_are_not_watched_and_keep_their_declared_memory(tmp_path: Path) -> None:
    with opened(tmp_path, "declare") as child:
        result = child.run(run(), deadline_s=30)
        assert isinstance(result, Measured)
        assert result.simulated and result.verdict is Verdict.VALID
        assert result.memory.peak is not None and result.memory.peak.vram_bytes == 7 * MIB
        assert result.energy_j is None and "simulated" in result.energy_source
        assert set(result.conditions.not_watched) == {"all"}


def test_a_competing_process_makes_the_result_invalid(tmp_path: Path) -> None:
    with opened(tmp_path, "measure_long") as child:
        spinners = [subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(2)]
        try:
            result = child.run(run(), deadline_s=30)
        finally:
            for spinner in spinners:
                spinner.kill()
                spinner.wait()
        assert isinstance(result, Measured)
        assert result.verdict is Verdict.INVALID
        assert any(reason.startswith("other_processes: they used") for reason in result.reasons)
        assert result.conditions.watched["readings"] >= 3


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("crash", FaultKind.CRASHED, "ended by SIGSEGV"),
        ("killed", FaultKind.CRASHED, "ended by SIGKILL"),
        ("leave", FaultKind.CRASHED, "exited with code 3"),
        ("fail", FaultKind.CRASHED, "ValueError: no such layer"),
        ("gibberish", FaultKind.CRASHED, "broke the protocol"),
    ],
)
def test_a_child_that_breaks_is_a_fault_that_says_how(
    tmp_path: Path, behaviour: str, kind: FaultKind, said: str
) -> None:
    with opened(tmp_path, behaviour) as child:
        outcome = child.run(run(), deadline_s=30)
        assert isinstance(outcome, Fault)
        assert outcome.fault is kind and said in outcome.message
        assert outcome.child is not None and outcome.child.loaded is not None
        assert not child.is_alive and not marked(child.record.id)
        if behaviour == "crash":
            assert outcome.exit.signal == "SIGSEGV" and "about to crash" in outcome.exit.log_tail


def test_a_crash_while_loading_is_a_fault_and_a_refusal_an_answer(tmp_path: Path) -> None:
    with started(tmp_path, "crash_in_open") as child:
        assert isinstance(child.open(opening(), deadline_s=30), Fault)
    with started(tmp_path, "refuse_in_open") as child:
        outcome = child.open(opening(), deadline_s=30)
        assert isinstance(outcome, Infeasible)
        assert outcome.reason is InfeasibleReason.OUT_OF_DEVICE_MEMORY and outcome.message == "tried to allocate 9 GB"


def test_a_refusal_in_a_child_that_has_measured_is_warm(tmp_path: Path) -> None:
    with opened(tmp_path, "refuse") as child:
        outcome = child.run(run(), deadline_s=30)
        assert isinstance(outcome, Infeasible) and outcome.warm


def test_standing_still_after_tokens_is_a_hang_long_before_the_deadline(tmp_path: Path) -> None:
    with opened(tmp_path, "hang", hang_s=0.2) as child:
        begin = time.monotonic()
        outcome = child.run(run(), deadline_s=300)
        assert isinstance(outcome, Fault) and outcome.fault is FaultKind.HUNG
        assert time.monotonic() - begin < 150


def test_no_token_by_the_deadline_is_a_hang_even_when_it_ignores_sigterm(tmp_path: Path) -> None:
    with opened(tmp_path, "stubborn") as child:
        begin = time.monotonic()
        outcome = child.run(run(), deadline_s=0.5)
        assert isinstance(outcome, Fault) and outcome.fault is FaultKind.HUNG
        assert outcome.exit.signal == "SIGKILL"
        assert time.monotonic() - begin < 10.5


def test_tokens_still_coming_at_the_deadline_are_a_time_limit(tmp_path: Path) -> None:
    with opened(tmp_path, "slow") as child:
        outcome = child.run(run(), deadline_s=1.5)
        assert isinstance(outcome, Infeasible) and outcome.reason is InfeasibleReason.TIME_LIMIT
        assert "limit of 1.5 s" in outcome.message


def test_a_stopped_supervisor_does_not_stop_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effillm_worker.link.LAST_WORD_S", 0.5)
    with opened(tmp_path, "silent") as child:
        child._link.supervisor.send_signal(19)
        outcome = child.run(run(), deadline_s=0.3)
        assert isinstance(outcome, Fault)
        assert not marked(child.record.id)


def test_a_killed_supervisor_takes_the_child_with_it(tmp_path: Path) -> None:
    with opened(tmp_path, "sleep") as child:
        child.on_progress = lambda _: child._link.supervisor.kill()
        outcome = child.run(run(), deadline_s=60)
        assert isinstance(outcome, Fault) and "supervisor was killed" in outcome.message
        assert not is_running(child.pid)
        assert not any(group.exists() for group in child._groups.all)


def test_a_flood_of_junk_on_stdout_harms_nothing_and_secrets_are_not_kept(tmp_path: Path) -> None:
    with opened(tmp_path, "flood", environment={"HF_TOKEN": "s3cret-token-value"}) as child:
        assert isinstance(child.run(run(), deadline_s=60), Measured)
        tail = child.kill().log
        assert len(tail) <= 60 and max(map(len, tail)) <= 600
        assert "token is *** at postgresql://***@db/lab" in tail
        assert not any("s3cret" in line or "pw12345" in line for line in tail)


def test_growing_beyond_the_memory_limit_is_out_of_host_memory(tmp_path: Path) -> None:
    with opened(tmp_path, "eat", memory_limit_bytes=300 * MIB) as child:
        outcome = child.run(run(), deadline_s=60)
        if isinstance(outcome, Fault):  # no control group here: the allocator said no, in Python a MemoryError
            assert "MemoryError" in "\n".join(outcome.exit.log_tail)
        else:
            assert isinstance(outcome, Infeasible)
            assert outcome.reason is InfeasibleReason.OUT_OF_HOST_MEMORY
            assert "memory limit of 315 MB" in outcome.message and outcome.exit.signal == "SIGKILL"


def test_without_control_groups_the_child_is_under_a_data_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate.limits, "prepare", lambda *_: limits.Groups())
    with opened(tmp_path, "limited", memory_limit_bytes=300 * MIB) as child:
        outcome = child.run(run(), deadline_s=30)
        assert isinstance(outcome, Infeasible) and outcome.message == f"limit {300 * MIB}"


def test_a_fork_bomb_is_over_by_the_deadline_and_ten_seconds(tmp_path: Path) -> None:
    with opened(tmp_path, "rabbits") as child:
        begin = time.monotonic()
        outcome = child.run(run(), deadline_s=1.0)
        assert isinstance(outcome, Fault)
        assert time.monotonic() - begin < 11
        assert not marked(child.record.id)


@pytest.mark.parametrize(("behaviour", "end"), [("rabbits", Fault), ("flood", Measured)])
def test_a_neighbour_of_a_fork_bomb_or_a_flood_is_measured_or_says_that_it_was_disturbed(
    tmp_path: Path, behaviour: str, end: type
) -> None:
    with (
        opened(tmp_path, "measure_long", device=device("box-cpu-2")) as neighbour,
        opened(tmp_path, behaviour) as child,
        ThreadPoolExecutor(1) as pool,
    ):
        other = pool.submit(child.run, run(), deadline_s=2.0 if end is Fault else 60)
        result = neighbour.run(run(), deadline_s=60)
        assert isinstance(other.result(60), end)
    assert isinstance(result, Measured), result
    assert len(result.samples) == 5
    assert (result.verdict is Verdict.VALID) == (not result.reasons)


@pytest.mark.parametrize("behaviour", ["hang_in_open", "sleep", "hang_in_close"])
def test_cancelling_from_another_thread_ends_the_child_in_every_phase(tmp_path: Path, behaviour: str) -> None:
    with started(tmp_path, behaviour) as child:
        began = threading.Event()
        child.on_progress = lambda _: began.set()
        canceller = threading.Thread(target=lambda: (began.wait(10), child.cancel()))
        if behaviour == "hang_in_open":
            began.set()
        canceller.start()
        begin = time.monotonic()
        outcome = child.open(opening(), deadline_s=60)
        if behaviour == "hang_in_close":
            assert isinstance(outcome, ChildRecord)
            began.set()
            child.close(deadline_s=60)
        elif behaviour == "sleep":
            assert isinstance(outcome, ChildRecord)
            outcome = child.run(run(), deadline_s=60)
        canceller.join()
        assert isinstance(outcome, ChildRecord if behaviour == "hang_in_close" else Cancelled)
        assert time.monotonic() - begin < 30
        assert not is_running(child.pid) and not child.is_alive


def test_a_child_cancelled_between_cells_answers_cancelled(tmp_path: Path) -> None:
    with opened(tmp_path, "measure") as child:
        child.cancel()
        assert isinstance(child.run(run(), deadline_s=30), Cancelled)
        child.cancel()  # again, after its end: harmless
        assert isinstance(child.run(run(), deadline_s=30), Cancelled)


def test_the_child_is_given_an_allow_listed_environment_and_nothing_open_but_its_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EFFILLM_DATABASE_URL", "RAY_AUTH_TOKEN", "HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary")
    bound = device(processors=(1,))
    with opened(tmp_path, "environment", device=bound, threads=3) as child:
        outcome = child.run(run(), deadline_s=30)
    assert isinstance(outcome, Infeasible)
    assert "canary" not in outcome.message
    said = outcome.message.splitlines()
    assert {"OMP_NUM_THREADS=3", "MKL_NUM_THREADS=3", "CUDA_VISIBLE_DEVICES=", "affinity=[1]", "oom=1000"} <= set(said)
    open_files = next(line for line in said if line.startswith("open=")).split(",")
    assert len(open_files) <= 8  # three standard ones, lock, two pipes, counter, the listing itself


def test_a_child_is_refused_what_it_must_not_see(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gets no EFFILLM_DATABASE_URL"):
        Child.start(spec(tmp_path, "measure", environment={"EFFILLM_DATABASE_URL": "postgresql://x"}))


def test_an_interpreter_that_does_not_exist_is_a_fault_that_names_it(tmp_path: Path) -> None:
    with started(tmp_path, "measure", command=("/nowhere/python", "-m", "x")) as child:
        outcome = child.open(opening(), deadline_s=30)
        assert isinstance(outcome, Fault)
        assert "cannot start /nowhere/python" in outcome.exit.log_tail[-1]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b"])
def test_a_device_id_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a lock file"):
        lock_file(tmp_path, name)


def test_a_gpu_attests_only_when_nothing_foreign_is_on_it(tmp_path: Path) -> None:
    gpu = device(gpu_uuid="GPU-1")

    def said(probe: FakeNvml) -> str:
        return attest(gpu, tmp_path, Instruments(gpu, probe)) or "fine"

    assert said(FakeNvml(used_bytes=400 * 10**6)) == "fine"
    assert "other processes are on the GPU: 4242" in said(FakeNvml(running={4242: None}))
    assert "3 GB used, expected below 1 GB" in said(FakeNvml(used_bytes=3 * 10**9))
    assert "Not Supported" in said(FakeNvml(silent=frozenset({"processes"})))
    assert "cannot be asked" in (attest(gpu, tmp_path) or "fine")


def test_no_thread_or_descriptor_is_left_by_a_child(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before, threads = descriptors(), threading.active_count()
    for behaviour in ("measure", "crash"):
        with opened(tmp_path, behaviour) as child:
            child.run(run(), deadline_s=30)
    await_true(lambda: threading.active_count() <= threads, 5, "the conditions thread ends")
    gc.collect()
    assert descriptors() <= before
