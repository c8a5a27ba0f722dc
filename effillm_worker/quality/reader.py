"""The process that loads the unquantized model and writes its distributions over the text: `python -m effillm_worker.quality.reader`."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.contract.quality import QualityPlan
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.measure.refusal import answer
from effillm_worker.quality.reference import LONGEST_S

REFUSED = 3  # exit code: the last line of standard error is an answer


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
    engine = TransformersEngine()
    engine.start(request)
    engine.load(request)
    quality = engine.judge(plan, LONGEST_S)
    if quality.agreement is None:
        raise Unsupported("; ".join(quality.notes) or "it gave no finite distribution")


if __name__ == "__main__":
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  whatever a library prints is for nobody
    sys.exit(main())
