"""GPTQ: registered so that a sweep may name it; it runs once the extra that loads such checkpoints exists."""

from __future__ import annotations

from typing import Any

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import base


class Gptq:
    """Refuses every cell with a sentence, because no GPTQ kernels are part of this version."""

    name = "gptq"

    def check(self, device: str, dtype: str) -> None:
        raise Unsupported("gptq needs a GPTQ library in the runtime, which this version of EffiLLM does not come with")

    def start(self, device: str, dtype: str) -> None:
        self.check(device, dtype)

    def options(self, dtype: str) -> dict[str, Any]:
        self.check("", dtype)
        return {}

    def stored(self, parameter: Any) -> base.Stored:
        return base.plain(parameter)


GPTQ = Gptq()
