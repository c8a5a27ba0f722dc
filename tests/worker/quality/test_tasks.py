from __future__ import annotations

import math
import os

import pytest

from effillm_server.contract.quality import QualityPlan
from effillm_worker.quality import tasks

PLAN = QualityPlan(tasks=("trades", "no_such_task"), task_examples=12)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "NEEDED", ("nonesuch_package",))
    scores, notes = tasks.run(None, None, PLAN, None)
    assert scores == ()
    assert notes == ("no tasks (trades, no_such_task): this runtime lacks nonesuch_package: install effillm[quality]",)


def test_scores_are_read_with_their_error_and_their_number_of_examples() -> None:
    results = {
        "results": {"lambada": {
            "alias": "lambada", "acc,none": 0.5, "acc_stderr,none": 0.05, "perplexity,none": 7.5,
            "perplexity_stderr,none": "N/A", "exact,strict": math.nan, "f1,strict": 0.25, "sample_len": 100,
        }},
        "n-samples": {"lambada": {"original": 5153, "effective": 100}},
    }  # fmt: skip
    found = {(score.metric, score.value, score.stderr, score.examples) for score in tasks._scores("lambada", results)}
    assert found == {("acc", 0.5, 0.05, 100), ("perplexity", 7.5, None, 100), ("f1 (strict)", 0.25, None, 100)}


def test_nothing_may_be_fetched_while_tasks_run_and_the_environment_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = hub.HF_HUB_OFFLINE
    with tasks._offline():
        assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"], hub.HF_HUB_OFFLINE) == ("1", "1", True)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert hub.HF_HUB_OFFLINE is before
