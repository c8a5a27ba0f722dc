"""The metrics of one iteration, computed from its timestamps: the only place where they are defined.

An iteration that generates n tokens leaves n + 1 timestamps t_0 ... t_n in nanoseconds: t_0 when the prompt was handed
over, t_k when token k of every sequence of the batch existed on the device. Symbols as in the EffiLLM paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

NS = 1e-9


def ttft_s(timestamps_ns: Sequence[int]) -> float:
    """Time to first token, t_1 - t_0, seconds."""
    return (timestamps_ns[1] - timestamps_ns[0]) * NS


def itl_s(timestamps_ns: Sequence[int]) -> list[float]:
    """Inter-token latencies t_k - t_(k-1), k = 2 ... n, seconds; empty when one token was generated."""
    return [(later - earlier) * NS for earlier, later in pairwise(timestamps_ns[1:])]


def tpot_s(timestamps_ns: Sequence[int]) -> float | None:
    """Time per output token after the first, (t_n - t_1) / (n - 1), seconds; None when n = 1."""
    n = len(timestamps_ns) - 1
    return None if n < 2 else (timestamps_ns[-1] - timestamps_ns[1]) * NS / (n - 1)


def e2e_s(timestamps_ns: Sequence[int]) -> float:
    """Whole generation, t_n - t_0, seconds."""
    return (timestamps_ns[-1] - timestamps_ns[0]) * NS


def throughput_tok_s(timestamps_ns: Sequence[int], batch_size: int) -> float:
    """The paper's T = n * b / (t_g - t_s), tokens per second."""
    return (len(timestamps_ns) - 1) * batch_size / e2e_s(timestamps_ns)


def decode_tok_s(timestamps_ns: Sequence[int], batch_size: int) -> float | None:
    """(n - 1) * b / (t_n - t_1), tokens per second; None when n = 1."""
    per_token = tpot_s(timestamps_ns)
    return None if per_token is None else batch_size / per_token


def prefill_tok_s(timestamps_ns: Sequence[int], prompt_tokens: int) -> float:
    """Prompt tokens of the whole batch / (t_1 - t_0), tokens per second."""
    return prompt_tokens / ttft_s(timestamps_ns)
