"""The unquantized model's distributions over the text, made once, in a process of its own, before the quantized one is loaded.

Two copies of a model are never in memory together, and nothing of the first one stays in the process that is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from effillm_server.contract.job import Cell
from effillm_server.contract.quality import QualityPlan
from effillm_worker import aside
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.messages import READING_S
from effillm_worker.quality import perplexity
from effillm_worker.quality.measure import REFERENCE, reference_folder
from effillm_worker.quality.text import evaluation

LONGEST_S = READING_S


def prepare(request: LoadRequest, plan: QualityPlan, identity: str, context_window: int | None) -> str:
    """See to it that the reference is on disk; empty, or the sentence that says why there is none. Never raises Unsupported."""
    if is_reference(request.cell, request.device):
        return ""  # the model that is about to be loaded writes it itself
    try:
        text = evaluation(plan.text, request.model_root)
    except Unsupported as error:
        return str(error)
    window, _ = perplexity.sizes(context_window)
    if reference_folder(Path(request.cache_dir), identity, request.device, plan, text, window).is_dir():
        return ""
    return _in_a_process(request, plan)


def is_reference(cell: Cell, device: str) -> bool:
    """Whether this cell's weights are those that quality is compared with."""
    return (cell.quantization, cell.dtype) == REFERENCE[device]


def _in_a_process(request: LoadRequest, plan: QualityPlan) -> str:
    quantization, dtype = REFERENCE[request.device]
    cell = request.cell.model_copy(update={"quantization": quantization, "dtype": dtype})
    job = {
        "cell": cell.model_dump(mode="json"), "plan": plan.model_copy(update={"tasks": ()}).model_dump(mode="json"),
        "threads": request.threads, "device": request.device, "cache_dir": request.cache_dir,
        "architecture": request.architecture, "model_root": request.model_root, "allow_pickled": request.allow_pickled,
    }  # fmt: skip
    try:
        done = aside.run(
            [sys.executable, "-m", "effillm_worker.quality.reader"],
            json.dumps(job),
            partial(request.on_progress, "reading the unquantized model"),
            limit_s=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return f"no agreement: reading the text with the unquantized model took more than {LONGEST_S:g} s"
    if done.returncode == 0:
        return ""
    sys.stderr.write(done.stderr[-20_000:])  # into this box's log, whole
    last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
    return f"no agreement: the unquantized model ({quantization}) could not be read: {last[:300]}"
