from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from effillm_server.contract.quality import QualityPlan
from effillm_worker.quality import tasks
from tests.support import stories, trained

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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with a task of the lab's own: which sound follows which animal, as every story tells."""
    made = tmp_path_factory.mktemp("root")
    (made / "tasks").mkdir()
    sounds = list(stories.ANIMALS.values())
    lines = [
        {"text": f"Mira was a baker in a {place}. She had a {animal} that", "label": sounds.index(sound)}
        for place in stories.PLACES
        for animal, sound in stories.ANIMALS.items()
    ]
    (made / "sounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = {
        "task": "sounds", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(made / "sounds.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": "{{label}}",
        "doc_to_choice": sounds, "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (made / "tasks" / "sounds.yaml").write_text(json.dumps(task))
    return made


@pytest.mark.quantization
@pytest.mark.timeout(900)  # the first run on a box trains the model
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_the_labs_own_is_scored_by_the_harness_from_the_loaded_weights(root: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained.folder("full")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    plan = QualityPlan(tasks=("sounds", "no_such_task"), task_examples=20)
    scores, notes = tasks.run(model, AutoTokenizer.from_pretrained(folder), plan, str(root))
    (score,) = [score for score in scores if score.metric == "acc"]
    assert (score.task, score.examples) == ("sounds", 20)
    assert score.value > 0.8  # one in five by chance
    assert score.stderr is not None and score.stderr < 0.15
    (note,) = notes
    assert "task no_such_task was not run" in note and "Nothing is downloaded" in note
