from __future__ import annotations

import random
from typing import Any

import pytest

from effillm_server import catalog
from effillm_server.contract.outcome import Phase
from effillm_server.contract.sweep import MeasurementPlan
from effillm_worker.engines.base import Unsupported
from effillm_worker.measure.prompts import CUT_RULE, passes, prepare, synthetic_tokens
from effillm_worker.measure.refusal import Refusal
from effillm_worker.measure.session import measure
from effillm_worker.messages import Run
from tests.support.fake_engine import FakeEngine, cell
from tests.support.recorder import RecordingChannel

QA = {"workload": "short-qa", "sequence_length": None}


def test_synthetic_prompts_have_exactly_the_length_asked_for() -> None:
    prompts = prepare(FakeEngine(), cell(batch_size=3, sequence_length=17), None)
    assert prompts.batches[0].lengths == (17, 17, 17)
    assert prompts.batches[0].prompt_tokens == 51
    assert prompts.record["lengths"] == [17]


def test_synthetic_tokens_are_ordinary_and_the_same_every_time() -> None:
    ordinary = range(3, 103)
    first = synthetic_tokens(ordinary, 200, 0)
    assert first == synthetic_tokens(ordinary, 200, 0)
    assert set(first) <= set(ordinary)
    generator = random.Random("effillm synthetic prompt 0")
    assert first == [ordinary[int(generator.random() * len(ordinary))] for _ in range(200)]


def test_sequences_of_a_batch_differ_and_do_not_depend_on_its_size() -> None:
    one = prepare(FakeEngine(), cell(batch_size=1), None).batches[0].tokens
    four = prepare(FakeEngine(), cell(batch_size=4), None).batches[0].tokens
    assert four[0] == one[0]
    assert len({tuple(sequence) for sequence in four}) == 4


def test_one_pass_covers_every_prompt_and_fills_its_last_batch_from_the_beginning() -> None:
    assert passes(5, 2) == [[0, 1], [2, 3], [4, 0]]
    assert passes(4, 2) == [[0, 1], [2, 3]]
    assert passes(2, 5) == [[0, 1, 0, 1, 0]]


def test_text_workload_records_the_tokenised_length_of_every_prompt() -> None:
    prompts = prepare(FakeEngine(), cell(batch_size=8, **QA), None)
    texts = [prompt.render() for prompt in catalog.load().workloads["short-qa"].prompts]
    assert prompts.record["lengths"] == [len(text.encode()) for text in texts]
    assert prompts.record["prompts"] == [prompt.id for prompt in catalog.load().workloads["short-qa"].prompts]
    assert prompts.per_pass == -(-len(texts) // 8)
    assert "cut" not in prompts.record


def test_prompt_beyond_the_window_keeps_its_end_and_says_so() -> None:
    prompts = prepare(FakeEngine(window=40), cell(batch_size=1, generate_tokens=8, **QA), None)
    text = catalog.load().workloads["short-qa"].prompts[0].render().encode()
    assert prompts.batches[0].tokens[0] == list(text[-32:])
    assert prompts.record["cut_rule"] == CUT_RULE
    assert prompts.record["cut_to"] == 32
    assert catalog.load().workloads["short-qa"].prompts[0].id in prompts.record["cut"]
    assert prompts.warnings == ("prompts_cut",)


def test_window_without_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(Refusal, match="at most 7 fit"):
        prepare(FakeEngine(window=8), cell(generate_tokens=8, **QA), None)


def test_the_parents_context_window_comes_before_the_engines() -> None:
    with pytest.raises(Refusal, match="context window of 20"):
        prepare(FakeEngine(window=2048), cell(sequence_length=16, generate_tokens=8), 20)


def test_unknown_workload_names_those_that_exist() -> None:
    with pytest.raises(Unsupported, match="short-qa"):
        prepare(FakeEngine(), cell(workload="short-qs", sequence_length=None), None)


def test_synthetic_workload_without_a_length_is_refused() -> None:
    with pytest.raises(Unsupported, match="needs a sequence_length"):
        prepare(FakeEngine(), cell(sequence_length=None), None)


def text_session(plan: dict[str, Any], **changes: Any) -> tuple[Any, FakeEngine]:
    engine = FakeEngine()
    run = Run(cell=cell(**(QA | changes)), plan=MeasurementPlan.model_validate({"warmup": 3, **plan}))
    return measure(engine, RecordingChannel(), run, clock=engine.seconds), engine


def test_text_workload_is_measured_in_whole_passes() -> None:
    record, _ = text_session({"iterations": {"min": 5, "max": 6}}, batch_size=8)
    count = len(catalog.load().workloads["short-qa"].prompts)
    measured = [sample for sample in record.samples if sample.phase is Phase.MEASURED]
    assert len(measured) == -(-count // 8)
    assert record.details["passes"] == 1
    assert record.warnings == ()


def test_pass_cut_short_by_the_time_limit_says_so() -> None:
    record, _ = text_session({"iterations": {"min": 5, "max": 6}, "time_limit_s": 30}, batch_size=1)
    assert "partial_pass" in record.warnings
    assert record.details["passes"] < 1


def test_a_pass_cut_short_does_not_count_towards_the_five_iterations_of_a_result() -> None:
    record, _ = text_session({"iterations": {"min": 5, "max": 6}, "time_limit_s": 14}, batch_size=17)
    measured = [sample for sample in record.samples if sample.phase is Phase.MEASURED]
    assert (record.prompts["iterations_per_pass"], len(measured)) == (3, 5)
    assert record.warnings == ("partial_pass", "few_iterations: 3 count (0 of 3 marked), limit 5")


def test_warm_up_repeats_the_batch_with_the_longest_prompt() -> None:
    record, _ = text_session({"iterations": 5}, batch_size=1)
    lengths = record.prompts["lengths"]
    warm = [sample.prompt_tokens for sample in record.samples if sample.phase in (Phase.WARMUP, Phase.MEMORY)]
    assert warm == [max(lengths)] * 4
