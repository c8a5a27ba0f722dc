"""Accuracy on small task sets by lm-evaluation-harness, an optional extra, from data that is already on the box."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effillm_server.contract.quality import QualityPlan, TaskScore
from effillm_worker.quantization.base import remedy

OWN_TASKS = "tasks"  # folder below the model root with the lab's own task files
BOOTSTRAP = 100  # for errors of metrics that are no means; those of means have a closed form
NEEDED = ("lm_eval", "datasets")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def run(
    model: Any, tokenizer: Any, plan: QualityPlan, model_root: str | None
) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
    """Scores of the plan's tasks, and a sentence for each task that could not be run. Nothing is downloaded."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        names = ", ".join(plan.tasks)
        return (), (
            f"no tasks ({names}): this runtime lacks {', '.join(missing)}: install {remedy(missing, 'quality')}",
        )
    scores: list[TaskScore] = []
    notes: list[str] = []
    with _offline():
        for name in plan.tasks:
            try:
                scores += _scores(name, _results(name, model, tokenizer, plan.task_examples, model_root))
            except Exception as error:  # noqa: BLE001  a task's own code and data: whatever it was, the others still run
                traceback.print_exc(file=sys.stderr)
                said = " ".join(f"{type(error).__name__}: {error}".split())[:240]
                notes.append(
                    f"task {name} was not run: {said}. Nothing is downloaded during a measurement: if its data is missing, fetch it "
                    "beforehand with lm-evaluation-harness on this box"
                )
    return tuple(scores), tuple(notes)


def _results(name: str, model: Any, tokenizer: Any, examples: int, model_root: str | None) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = None if model_root is None else Path(model_root) / OWN_TASKS
    manager = TaskManager(include_path=str(own) if own is not None and own.is_dir() else None)
    subject = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    found = lm_eval.simple_evaluate(
        model=subject, tasks=[name], limit=examples, bootstrap_iters=BOOTSTRAP, log_samples=False, task_manager=manager
    )  # fmt: skip
    return found or {}


def _scores(name: str, results: Mapping[str, Any]) -> list[TaskScore]:
    """Every finite metric of the task, by the harness's name less its filter `none`."""
    examples = (results.get("n-samples") or {}).get(name, {}).get("effective")
    found = []
    for key, value in results["results"][name].items():
        metric, _, filtered = key.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not filtered or metric.endswith("_stderr") or not is_number or not math.isfinite(value):
            continue
        stderr = results["results"][name].get(f"{metric}_stderr,{filtered}")
        shown = metric if filtered == "none" else f"{metric} ({filtered})"
        found.append(
            TaskScore(
                task=name, metric=shown, value=float(value), examples=examples,
                stderr=float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
            )
        )  # fmt: skip
    return found


@contextmanager
def _offline() -> Iterator[None]:
    """Neither the hub nor the library of data sets opens a connection while the context is open."""
    import huggingface_hub.constants as hub

    before = {name: os.environ.get(name) for name in OFFLINE}
    was_offline = hub.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = was_offline
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
