"""GPTQ: registered so that a sweep may name it; it runs once the extra that loads such checkpoints exists."""

from __future__ import annotations

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import base


class Gptq(base.Method):
    """Refuses every cell with a sentence, because no GPTQ kernels are part of this version."""

    def check(self, device: str, dtype: str) -> None:
        raise Unsupported("gptq needs a GPTQ library in the runtime, which this version of EffiLLM does not come with")
