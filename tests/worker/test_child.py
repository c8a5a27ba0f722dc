from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract import timeline
from effillm_server.contract.outcome import InfeasibleReason, Phase
from effillm_worker.messages import (
    Acknowledge,
    CellRecord,
    Close,
    Closed,
    Failed,
    Opened,
    Progress,
    Refused,
    Stage,
    Window,
)  # fmt: skip
from tests.support.child import REPOSITORY, child_process, opening, run
from tests.support.fake_engine import cell


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One synthetic cache for the module: what the children of one box share."""
    return tmp_path_factory.mktemp("cache")


def simulated(**changes: Any) -> Any:
    return cell(engine="simulated", **({"model": "simulated/70"} | changes))


def test_child_loads_once_and_measures_every_cell_of_its_group(cache: Path) -> None:
    group = [cell(batch_size=1, generate_tokens=5), cell(batch_size=2, sequence_length=24, generate_tokens=3)]
    with child_process() as child:
        child.say(opening(group[0], cache))
        opened = child.answer(Opened)
        assert child.stages() == ["baseline", "loaded"]
        assert opened.model.bits_per_weight == 32.0
        assert opened.model.kernels["Linear"] == 9
        assert opened.software.threads["intra_op"] == 1
        assert opened.software.threads["inter_op"] == 1
        assert opened.software.versions["torch"] == version("torch")
        assert not opened.simulated
        for each in group:
            child.say(run(each))
            record = child.answer(CellRecord)
            full = [sample for sample in record.samples if sample.phase is Phase.MEASURED]
            alone = [sample for sample in record.samples if sample.phase is Phase.TTFT]
            assert {len(sample.timestamps_ns) for sample in full} == {each.generate_tokens + 1}
            assert {len(sample.timestamps_ns) for sample in alone} == {2}
            assert {sample.prompt_tokens for sample in record.samples} == {each.batch_size * each.sequence_length}
            assert all(timeline.e2e_s(sample.timestamps_ns) > 0 for sample in record.samples)
        child.say(Close())
        assert child.answer(Closed).cells_measured == 2
        assert child.process.wait(60) == 0
        assert child.stages().count("loaded") == 1
        assert child.stages()[-1] == "released"
        tokens = sum(
            len(sample.timestamps_ns) - 1
            for report in child.heard if isinstance(report, CellRecord) for sample in report.samples
        )  # fmt: skip
        assert child.tokens == tokens


@pytest.mark.parametrize(("quantization", "kernel"), [("int8", "Linear8bitLt"), ("int4", "Linear4bit")])
def test_quantized_child_runs_bitsandbytes_kernels_and_survives_their_warnings(
    cache: Path, quantization: str, kernel: str
) -> None:
    with child_process(PYTHONWARNINGS="error") as child:
        child.say(opening(cell(quantization=quantization), cache))
        opened = child.answer(Opened)
        assert opened.model.kernels[kernel] == 8
        assert opened.model.kernels["Linear"] == 1
        child.say(run(cell(quantization=quantization, batch_size=1, generate_tokens=2)))
        record = child.answer(CellRecord)
        assert {len(sample.timestamps_ns) for sample in record.samples if sample.phase is Phase.MEASURED} == {3}


def test_memory_stages_come_after_the_timed_window(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(), cache))
        child.answer(Opened)
        child.say(run(simulated()))
        child.answer(CellRecord)
        told = [report for report in child.heard if not isinstance(report, Opened | CellRecord)]
        windows = [index for index, report in enumerate(told) if isinstance(report, Window)]
        stages = [index for index, report in enumerate(told) if isinstance(report, Stage)]
        assert [told[index].stage for index in stages[2:4]] == ["prefill_begin", "prefill_end"]  # type: ignore[union-attr]
        assert all(index < windows[0] or index > windows[1] for index in stages)
        assert any(isinstance(report, Progress) for report in told[windows[0] : windows[1]])


def test_simulated_child_says_so(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(), cache))
        assert child.answer(Opened).simulated


def test_child_does_not_go_on_before_its_stage_is_acknowledged(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(), cache))
        assert child.next() == Stage(stage="baseline")
        child.say(Acknowledge())
        assert child.next() == Stage(stage="loaded")


def test_out_of_memory_is_an_answer_and_says_that_the_child_was_warm(cache: Path) -> None:
    model = "simulated/oom-above-100"
    with child_process() as child:
        child.say(opening(simulated(model=model), cache))
        child.answer(Opened)
        for batch_size, warm in ((8, False), (2, None), (8, True)):
            child.say(run(simulated(model=model, batch_size=batch_size)))
            if warm is None:
                child.answer(CellRecord)
                continue
            refused = child.answer(Refused)
            assert refused.reason is InfeasibleReason.OUT_OF_DEVICE_MEMORY
            assert refused.warm is warm


def test_host_allocator_beyond_the_memory_limit_is_out_of_host_memory(cache: Path) -> None:
    large = cell(batch_size=4096, sequence_length=120, generate_tokens=2)
    with child_process() as child:
        child.say(opening(large, cache, memory_limit_bytes=1_500_000_000))
        child.answer(Opened)
        child.say(run(large))
        refused = child.answer(Refused)
        assert refused.reason is InfeasibleReason.OUT_OF_HOST_MEMORY
        assert "allocate" in refused.message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization": "int9"}, "no quantization 'int9' in this runtime"),
        ({"quantization": "fp16", "dtype": "float32"}, "fp16 stores and computes in float16"),
    ],
)
def test_what_this_runtime_cannot_do_is_refused_with_a_reason(
    cache: Path, changes: dict[str, Any], sentence: str
) -> None:
    with child_process() as child:
        child.say(opening(cell(**changes), cache))
        refused = child.answer(Refused)
        assert refused.reason is InfeasibleReason.UNSUPPORTED
        assert sentence in refused.message
        assert child.process.wait(60) == 0


def test_gpu_that_is_not_there_is_refused(cache: Path) -> None:
    with child_process(CUDA_VISIBLE_DEVICES="") as child:
        child.say(opening(cell(), cache, device="cuda"))
        assert "sees none" in child.answer(Refused).message


def test_model_type_transformers_does_not_know_is_unsupported_and_runs_no_code(cache: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    folder = tmp_path / "lab" / "odd"
    folder.mkdir(parents=True)
    (folder / "modeling_odd.py").write_text(f"open({str(canary)!r}, 'w')")
    config = (
        '{"model_type": "odd", "auto_map": {"AutoConfig": "modeling_odd.C", "AutoModelForCausalLM": "modeling_odd.M"}}'
    )
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"")
    with child_process() as child:
        child.say(
            opening(cell(model="lab/odd", weights="pretrained"), cache, model_root=str(tmp_path), architecture=None)
        )
        refused = child.answer(Refused)
    assert refused.reason is InfeasibleReason.UNSUPPORTED
    assert not canary.exists()


def test_error_without_an_answer_is_reported_whole_and_ends_the_child(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(model="simulated/fail"), cache))
        child.answer(Opened)
        child.say(run(simulated(model="simulated/fail")))
        assert "RuntimeError: the simulated model declares an error" in child.answer(Failed).message
        assert child.process.wait(60) == 1


def test_command_out_of_turn_is_a_failure(cache: Path) -> None:
    with child_process() as child:
        child.say(run(simulated()))
        assert "expected Open, found Run" in child.answer(Failed).message


def test_child_ends_quietly_when_its_parent_is_gone(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(), cache))
        child.answer(Opened)
        child.hang_up()
        assert child.process.wait(60) == 0
        assert not any(isinstance(report, Failed) for report in child.heard)


def test_parent_gone_at_a_memory_stage_ends_the_child(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(), cache))
        assert isinstance(child.next(), Stage)
        child.hang_up()
        assert child.process.wait(60) == 0


@pytest.mark.parametrize(("fault", "code"), [("crash", -signal.SIGABRT), ("exit", 3)])
def test_declared_ends_end_the_child_without_a_word(cache: Path, fault: str, code: int) -> None:
    model = f"simulated/{fault}"
    with child_process() as child:
        child.say(opening(simulated(model=model), cache))
        child.answer(Opened)
        child.say(run(simulated(model=model)))
        assert child.next() is None
        assert child.process.wait(60) == code


def test_junk_on_standard_output_harms_nothing(cache: Path) -> None:
    with child_process() as child:
        child.say(opening(simulated(model="simulated/flood"), cache))
        child.answer(Opened)
        child.say(run(simulated(model="simulated/flood")))
        assert child.answer(CellRecord).samples


def test_child_started_by_hand_says_that_it_is_not_meant_to_be() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EFFILLM_")}
    done = subprocess.run(
        [sys.executable, "-m", "effillm_worker"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "started by EffiLLM's worker" in done.stderr


def test_child_needs_no_control_plane_and_no_ray_to_start() -> None:
    code = (
        "import sys, effillm_worker.__main__, effillm_worker.engines.simulated, effillm_worker.measure.session\n"
        "foreign = {'ray', 'sqlalchemy', 'psycopg2', 'fastapi', 'torch', 'numpy', 'scipy', 'httpx'} & set(sys.modules)\n"
        "assert not foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
