"""The timeline of one iteration: n + 1 marks in the device's own order, read once everything is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effillm_worker.engines.base import Batch, Engine


class WrongTokenCount(Exception):
    """The engine did not generate exactly the tokens it was asked for, so no metric of this iteration would be true."""


def timeline(engine: Engine, batch: Batch, tokens: int, on_token: Callable[[], None]) -> tuple[int, ...]:
    """Nanoseconds t_0 ... t_n of one generation of `tokens` tokens per sequence, `tokens` + 1 of them.

    Between t_0 and t_n nothing of ours happens but a mark and `on_token` per token. Raises WrongTokenCount.
    """
    marks: list[Any] = []  # a list of its own for every iteration: nothing can be carried over

    def mark() -> None:
        marks.append(engine.mark())
        on_token()

    engine.synchronize()
    marks.append(engine.mark())
    engine.generate(batch, tokens, mark)
    engine.synchronize()
    if len(marks) != tokens + 1:
        raise WrongTokenCount(f"asked the engine for exactly {tokens} tokens, it marked {len(marks) - 1}")
    return tuple(engine.resolve(marks))
