from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest

from effillm_server.contract import timeline
from effillm_server.contract.outcome import InfeasibleReason, Phase, Sample, StopReason
from effillm_server.contract.sweep import MeasurementPlan
from effillm_worker.engines.base import CacheCount
from effillm_worker.measure.refusal import Refusal
from effillm_worker.measure.session import measure, steady_tokens
from effillm_worker.messages import CellRecord, Run
from effillm_worker.meters.heap import Heap, HeapStages
from effillm_worker.meters.latency import WrongTokenCount
from tests.support.fake_engine import NS, FakeEngine, cell
from tests.support.recorder import RecordingChannel

PLAN: dict[str, Any] = {"warmup": {"min": 3, "max": 10}, "iterations": {"min": 5, "max": 8}}


def session(
    engine: FakeEngine, plan: dict[str, Any] | None = None, **changes: Any
) -> tuple[CellRecord, RecordingChannel]:
    channel = RecordingChannel()
    run = Run(cell=cell(**changes), plan=MeasurementPlan.model_validate(PLAN | (plan or {})))
    return measure(engine, channel, run, clock=engine.seconds), channel


def of(record: CellRecord, phase: Phase) -> list[Sample]:
    return [sample for sample in record.samples if sample.phase is phase]


def outlier_in(generation: int, seconds: float) -> Callable[[int], float]:
    return lambda number: seconds if number == generation else 0.1


def test_every_metric_equals_its_closed_form() -> None:
    record, _ = session(FakeEngine(), batch_size=2, sequence_length=16, generate_tokens=8)
    for sample in of(record, Phase.MEASURED):
        stamps = sample.timestamps_ns
        assert len(stamps) == 9
        assert sample.prompt_tokens == 32
        assert timeline.ttft_s(stamps) == pytest.approx(0.5)
        assert timeline.itl_s(stamps) == pytest.approx([0.1] * 7)
        assert timeline.tpot_s(stamps) == pytest.approx(0.1)
        assert timeline.e2e_s(stamps) == pytest.approx(0.5 + 7 * 0.1)
        assert timeline.throughput_tok_s(stamps, 2) == pytest.approx(8 * 2 / 1.2)
        assert timeline.decode_tok_s(stamps, 2) == pytest.approx(7 * 2 / 0.7)
        assert timeline.prefill_tok_s(stamps, sample.prompt_tokens) == pytest.approx(32 / 0.5)


def test_phases_come_in_order_and_are_all_kept() -> None:
    record, _ = session(FakeEngine())
    phases = [sample.phase for sample in record.samples]
    assert phases == [Phase.WARMUP] * 3 + [Phase.MEASURED] * 5 + [Phase.TTFT] * 5 + [Phase.MEMORY]
    assert [sample.iteration for sample in of(record, Phase.MEASURED)] == [0, 1, 2, 3, 4]
    assert record.stop_reason is StopReason.CONVERGED


def test_first_token_is_measured_by_generations_of_one_token_only() -> None:
    """Caught here: a first-token latency divided out of, or read off, a longer run."""
    engine = FakeEngine(prefill_s=lambda generation: 0.5 if generation < 8 else 0.3)
    record, _ = session(engine)
    assert engine.generations[8:13] == [(2, 1)] * 5
    alone = [timeline.ttft_s(sample.timestamps_ns) for sample in of(record, Phase.TTFT)]
    assert alone == pytest.approx([0.3] * 5)
    assert all(len(sample.timestamps_ns) == 2 for sample in of(record, Phase.TTFT))


def test_no_token_times_are_carried_over_from_one_iteration_to_the_next() -> None:
    """Each iteration's gaps are its own: here generation g takes 0.1 s x (g + 1) a token."""
    engine = FakeEngine(step_s=lambda generation: 0.1 * (generation + 1))
    record, _ = session(engine, {"warmup": {"min": 3, "max": 3}})
    for number, sample in enumerate([*of(record, Phase.WARMUP), *of(record, Phase.MEASURED)]):
        assert timeline.itl_s(sample.timestamps_ns) == pytest.approx([0.1 * (number + 1)] * 7)


def test_prefill_is_no_gap_between_tokens() -> None:
    record, _ = session(FakeEngine(prefill_s=lambda generation: 60.0))
    gaps = [gap for sample in of(record, Phase.MEASURED) for gap in timeline.itl_s(sample.timestamps_ns)]
    assert max(gaps) == pytest.approx(0.1)
    assert len(gaps) == 7 * len(of(record, Phase.MEASURED))


def test_timestamps_of_iterations_never_overlap() -> None:
    record, _ = session(FakeEngine())
    ends = [sample.timestamps_ns[-1] for sample in record.samples]
    begins = [sample.timestamps_ns[0] for sample in record.samples]
    assert all(begin >= end for begin, end in zip(begins[1:], ends, strict=False))


def test_an_engine_that_generates_too_many_tokens_is_not_measured() -> None:
    with pytest.raises(WrongTokenCount, match="exactly 8 tokens, it marked 9"):
        session(FakeEngine(extra_tokens=1))


def test_warm_up_goes_on_until_it_is_steady() -> None:
    record, _ = session(FakeEngine(step_s=lambda generation: 1.0 / (generation + 1) if generation < 4 else 0.1))
    assert len(of(record, Phase.WARMUP)) == 7
    assert record.warnings == ()


def test_warm_up_that_never_settles_ends_at_its_maximum_with_a_warning() -> None:
    record, _ = session(FakeEngine(step_s=lambda generation: 0.1 * (1 + generation % 2)))
    assert len(of(record, Phase.WARMUP)) == 10
    assert record.warnings == ("unstable_warmup",)


def test_outlier_is_marked_kept_and_replaced() -> None:
    engine = FakeEngine(step_s=lambda generation: 0.5 if generation == 5 else 0.1 + 0.0001 * (generation % 3))
    record, _ = session(engine)
    measured = of(record, Phase.MEASURED)
    assert [sample.outlier for sample in measured] == [False, False, True, False, False, False]
    assert record.details["outliers"] == 1


def test_unmarked_samples_of_other_phases_stay_unmarked() -> None:
    record, _ = session(FakeEngine(step_s=outlier_in(5, 0.5)))
    assert not any(sample.outlier for sample in record.samples if sample.phase is not Phase.MEASURED)


def test_measuring_stops_at_the_maximum_when_the_interval_stays_wide() -> None:
    record, _ = session(FakeEngine(step_s=lambda generation: 0.1 * (1 + generation % 2)))
    assert len(of(record, Phase.MEASURED)) == 8
    assert record.stop_reason is StopReason.MAX_ITERATIONS


def test_two_outliers_in_a_plan_of_six_are_replaced_until_five_iterations_count() -> None:
    slow = {7: 0.5, 8: 0.6}
    engine = FakeEngine(step_s=lambda generation: slow.get(generation, 0.1 + 0.0001 * (generation % 3)))
    record, channel = session(engine, {"iterations": {"min": 5, "max": 6}})
    marks = [sample.outlier for sample in of(record, Phase.MEASURED)]
    assert marks == [False] * 4 + [True, True, False]
    assert record.warnings == ()
    assert len(of(record, Phase.TTFT)) == 7
    assert all(progress.iteration < progress.at_most for progress in channel.reports.progress())


def test_a_result_that_rests_on_fewer_than_five_iterations_says_so() -> None:
    slow = {7: 0.5, 8: 0.9, 9: 1.7}
    engine = FakeEngine(step_s=lambda generation: slow.get(generation, 0.1 + 0.0001 * (generation % 3)))
    record, _ = session(engine, {"iterations": {"min": 5, "max": 5}})
    assert len(of(record, Phase.MEASURED)) == 7
    assert record.warnings == ("few_iterations: 4 count (3 of 7 marked), limit 5",)


def test_time_budget_ends_measuring_with_enough_left_for_first_tokens_and_memory() -> None:
    engine = FakeEngine(step_s=lambda generation: 1.0 + 0.2 * (generation % 3))
    record, _ = session(
        engine, {"iterations": {"min": 5, "max": 100}, "warmup": 3, "time_limit_s": 120, "relative_half_width": 0.001}
    )
    assert record.stop_reason is StopReason.TIME_BUDGET
    assert 5 <= len(of(record, Phase.MEASURED)) < 20
    assert len(of(record, Phase.TTFT)) == len(of(record, Phase.MEASURED))
    assert engine.seconds() <= 120


def test_time_limit_too_small_for_the_minimum_says_how_much_is_needed() -> None:
    engine = FakeEngine(step_s=lambda generation: 10.0)
    with pytest.raises(Refusal, match=r"set measurement\.time_limit_s to at least 7[0-9][0-9]") as refused:
        session(engine, {"time_limit_s": 60})
    assert refused.value.reason is InfeasibleReason.TIME_LIMIT
    assert len(engine.generations) == 1


def test_the_time_the_refusal_asks_for_is_enough() -> None:
    with pytest.raises(Refusal) as refused:
        session(FakeEngine(step_s=lambda generation: 10.0), {"time_limit_s": 60})
    needed = int(str(refused.value).partition("at least ")[2].partition(",")[0])
    record, _ = session(FakeEngine(step_s=lambda generation: 10.0), {"time_limit_s": needed})
    assert len(of(record, Phase.MEASURED)) == 5


def test_a_cold_first_generation_does_not_refuse_a_cell_that_fits() -> None:
    engine = FakeEngine(step_s=lambda generation: 5.0 if generation == 0 else 0.1)
    record, _ = session(engine, {"time_limit_s": 80})
    assert len(of(record, Phase.MEASURED)) == 5


def test_memory_is_taken_in_an_iteration_of_its_own() -> None:
    record, channel = session(FakeEngine())
    assert [stage.stage for stage in channel.reports.stages()] == [
        "prefill_begin", "prefill_end", "decode_begin", "steady", "steady", "steady", "steady", "decode_end",
    ]  # fmt: skip
    kinds = [report.kind for report in channel.reports.all]
    assert kinds.index("stage") > len(kinds) - 1 - kinds[::-1].index("window")
    assert len(of(record, Phase.MEMORY)) == 1


def test_decode_has_a_peak_of_its_own() -> None:
    """Caught here: decode memory copied from the whole generation, whose peak is the prefill's."""
    _, channel = session(FakeEngine(), generate_tokens=8)
    at = {stage.stage: stage.allocator for stage in channel.reports.stages()}
    assert at["prefill_end"]["peak_allocated"] == 9000
    assert at["decode_begin"]["peak_allocated"] == 5000
    assert at["decode_end"]["peak_allocated"] == 5000
    assert at["steady"]["allocated"] == 2008


def test_operations_are_followed_in_the_memory_iteration_only_and_never_on_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for device_bytes, entered in ((False, 1), (True, 0)):
        engine, generations = FakeEngine(device_bytes=device_bytes), list[int]()

        def follow(
            then: Callable[[], None], engine: FakeEngine = engine, generations: list[int] = generations
        ) -> AbstractContextManager[None]:
            generations.append(len(engine.generations))
            return nullcontext()

        monkeypatch.setattr(engine, "each_operation", follow)
        record, _ = session(engine)
        assert generations == [len(record.samples) - 1] * entered


def test_one_generated_token_has_no_decode() -> None:
    record, channel = session(FakeEngine(), generate_tokens=1)
    assert [stage.stage for stage in channel.reports.stages()] == ["prefill_begin", "prefill_end", "steady"]
    assert all(timeline.tpot_s(sample.timestamps_ns) is None for sample in record.samples)


@pytest.mark.parametrize(
    ("tokens", "read_after"),
    [(1, {1}), (2, {2}), (3, {2, 3}), (8, {5, 6, 7, 8}), (32, {20, 23, 26, 29, 32}), (256, {154, 180, 205, 231, 256})],
)
def test_steady_is_read_in_the_second_half_of_the_generation(tokens: int, read_after: set[int]) -> None:
    assert steady_tokens(tokens) == read_after


def test_cache_prediction_covers_prompt_and_generated_tokens_but_the_last() -> None:
    record, _ = session(FakeEngine(), batch_size=2, sequence_length=16, generate_tokens=8)
    assert record.memory.account["kv_cache_predicted_bytes"] == 10 * 2 * (16 + 8 - 1)


class CountingEngine(FakeEngine):
    """Its cache takes what `held` says, whatever is predicted, and is counted while the context is open."""

    held = 777
    counted_in: list[int]

    @contextmanager
    def counting_cache(self) -> Iterator[CacheCount]:
        count = CacheCount()
        before = len(self.generations)
        yield count
        self.counted_in = list(range(before, len(self.generations)))
        count.bytes = self.held


def test_the_cache_is_counted_in_the_memory_iteration_alone_and_stands_beside_its_prediction() -> None:
    engine = CountingEngine()
    record, _ = session(engine, batch_size=2, sequence_length=16, generate_tokens=8)
    assert engine.counted_in == [len(engine.generations) - 1]
    assert record.samples[-1].phase is Phase.MEMORY
    account = record.memory.account
    assert (account["kv_cache_bytes"], account["kv_cache_predicted_bytes"]) == (777, 10 * 2 * (16 + 8 - 1))


def test_an_engine_that_cannot_count_its_cache_leaves_the_prediction_alone() -> None:
    record, _ = session(FakeEngine())
    assert record.memory.account["kv_cache_bytes"] is None
    assert record.memory.account["kv_cache_predicted_bytes"] is not None


def test_activations_are_the_growth_of_the_heap_beyond_the_counted_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effillm_worker.meters.heap.read", lambda: Heap(footprint=5000, free=0))
    stages = HeapStages(baseline=Heap(1000, 30), loaded=Heap(2000, 130))
    engine = CountingEngine(device_bytes=False)
    run = Run(cell=cell(), plan=MeasurementPlan.model_validate(PLAN))
    account = measure(engine, RecordingChannel(), run, heap=stages, clock=engine.seconds).memory.account
    assert (account["heap_loading_bytes"], account["heap_free_loading_bytes"]) == (1000, 100)
    assert account["activations_bytes"] == 5000 - 2000 - 777


def test_window_holds_the_timed_iterations_and_nothing_else() -> None:
    _, channel = session(FakeEngine())
    kinds = [(report.kind, getattr(report, "phase", None)) for report in channel.reports.all]
    opened = [index for index, (kind, _) in enumerate(kinds) if kind == "window"]
    inside = [phase for _, phase in kinds[opened[0] + 1 : opened[1]]]
    assert channel.reports.windows() == [True, False]
    assert inside == [Phase.MEASURED] * 5 + [Phase.TTFT] * 5


def test_tokens_in_the_window_are_counted_for_energy_per_token() -> None:
    record, _ = session(FakeEngine(), batch_size=2, generate_tokens=8)
    assert record.details["tokens_in_window"] == 5 * 2 * 8 + 5 * 2 * 1


def test_progress_counts_every_token() -> None:
    engine = FakeEngine()
    _, channel = session(engine)
    assert channel.ticks == sum(tokens for _, tokens in engine.generations)


def test_synthetic_prompt_longer_than_the_window_says_what_fits() -> None:
    with pytest.raises(Refusal, match="at most 4 generated tokens fit") as refused:
        session(FakeEngine(window=20), sequence_length=16, generate_tokens=8)
    assert refused.value.reason is InfeasibleReason.CONTEXT_WINDOW


def test_errors_of_the_framework_pass_through() -> None:
    with pytest.raises(RuntimeError, match="kernel"):
        session(FakeEngine(error_at={4: RuntimeError("kernel fault")}))


def test_times_are_whole_nanoseconds() -> None:
    record, _ = session(FakeEngine(step_s=lambda generation: 1 / NS))
    assert timeline.itl_s(of(record, Phase.MEASURED)[0].timestamps_ns) == pytest.approx([1e-9] * 7)
