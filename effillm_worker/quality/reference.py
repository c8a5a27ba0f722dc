"""The unquantized model's distributions over the text, made once, in a process of its own, before the quantized one is loaded.

Two copies of a model are never in memory together, and nothing of the first one stays in the process that is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.contract.quality import QualityPlan
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.measure.refusal import answer
from effillm_worker.quality import perplexity
from effillm_worker.quality.measure import REFERENCE, reference_folder
from effillm_worker.quality.text import evaluation

REFUSED = 3  # exit code: the last line of standard error is an answer
LONGEST_S = 3600.0


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
        done = subprocess.run(
            [sys.executable, "-m", "effillm_worker.quality.reference"],
            input=json.dumps(job), text=True, capture_output=True, check=False, timeout=LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no agreement: reading the text with the unquantized model took more than {LONGEST_S:g} s"
    if done.returncode == 0:
        return ""
    sys.stderr.write(done.stderr[-20_000:])  # into this box's log, whole
    last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
    return f"no agreement: the unquantized model ({quantization}) could not be read: {last[:300]}"


def main() -> int:
    """Load the model that the JSON on standard input names and write its distributions; REFUSED with a sentence."""
    warnings.simplefilter("ignore")
    job: dict[str, Any] = json.load(sys.stdin)
    cell, plan = Cell.model_validate(job.pop("cell")), QualityPlan.model_validate(job.pop("plan"))
    try:
        _write(LoadRequest(cell=cell, **job), plan)
    except Exception as error:  # noqa: BLE001  the process's edge: the caller reads the last line
        traceback.print_exc()
        refusal = answer(error)
        print(refusal[1] if refusal else f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return REFUSED
    return 0


def _write(request: LoadRequest, plan: QualityPlan) -> None:
    from effillm_worker.engines.transformers import TransformersEngine

    engine = TransformersEngine()
    engine.start(request)
    engine.load(request)
    quality = engine.judge(plan, LONGEST_S)
    if quality.agreement is None:
        raise Unsupported("; ".join(quality.notes) or "it gave no finite distribution")


if __name__ == "__main__":
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  whatever a library prints is for nobody
    sys.exit(main())
