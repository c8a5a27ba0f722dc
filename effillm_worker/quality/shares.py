"""Where a quantized model's time goes, by torch's profiler: how much of it is spent on turning codes back into numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from effillm_server.contract.quality import TimeShares

PROMPT = 128
STEPS = 8
SHOWN = 8
LEAST = 0.005  # smaller shares are not named
RANGE = "effillm::dequantize"
# Methods by which layers of ours and of GPTQ libraries unpack a whole matrix before they multiply.
UNPACKING = ("matrix", "dequantize_weight")
DEQUANTIZING = re.compile(r"dequant|" + re.escape(RANGE), re.IGNORECASE)


def measure(model: Any, ids: Sequence[int], window: int | None) -> TimeShares:
    """Shares over one prefill of up to 128 tokens and over eight decoding steps behind it, batch 1; both warmed up first."""
    import torch

    length = max(1, min(PROMPT, len(ids), (window or PROMPT + STEPS) - STEPS))
    device = model.get_input_embeddings().weight.device
    prompt = torch.tensor([list(ids[:length])], device=device)
    with torch.inference_mode(), _ranges(model):
        _decode(model, _prefill(model, prompt))
        prefill, _ = _profiled(lambda: _prefill(model, prompt), device.type)
        state = _prefill(model, prompt)
        decode, operations = _profiled(lambda: _decode(model, state), device.type)
    return TimeShares(
        prompt_tokens=length, decode_steps=STEPS, prefill_dequantization=prefill, decode_dequantization=decode,
        decode_operations=operations,
    )  # fmt: skip


def _prefill(model: Any, prompt: Any) -> Any:
    return model(input_ids=prompt, attention_mask=prompt.new_ones(prompt.shape), use_cache=True)


def _decode(model: Any, state: Any) -> None:
    """Greedy steps on the cache that the prefill left."""
    for _ in range(STEPS):
        token = state.logits[:, -1:].argmax(dim=-1)
        state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)


def _profiled(action: Callable[[], Any], device: str) -> tuple[float, dict[str, float]]:
    """Share of dequantization in the time of all operations, and the largest operations' own shares by name."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        action()
    own: dict[str, float] = defaultdict(float)
    dequantizing = 0.0
    for event in profiler.events():
        time = _own_time(event, device)
        own[event.name] += time
        if _is_dequantizing(event):
            dequantizing += time
    total = sum(own.values())
    if total <= 0:
        return 0.0, {}
    by_size = sorted(own.items(), key=lambda pair: -pair[1])[:SHOWN]
    largest = {name: round(time / total, 4) for name, time in by_size if time / total >= LEAST}
    return dequantizing / total, largest


def _own_time(event: Any, device: str) -> float:
    """Microseconds of the event less its children's; on a GPU those of the kernels it started itself."""
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)


def _is_dequantizing(event: Any) -> bool:
    """Whether the event, or one that called it, unpacks a matrix."""
    while event is not None:
        if DEQUANTIZING.search(event.name):
            return True
        event = event.cpu_parent
    return False


@contextmanager
def _ranges(model: Any) -> Iterator[None]:
    """Methods that unpack a matrix carry a named range while the context is open."""
    import torch

    marked: list[tuple[Any, str]] = []

    def mark(module: Any, name: str) -> None:
        unpack = getattr(module, name)

        def ranged(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(RANGE):
                return unpack(*args, **kwargs)

        module.__dict__[name] = ranged
        marked.append((module, name))

    for module in model.modules():
        for name in UNPACKING:
            if callable(getattr(type(module), name, None)):
                mark(module, name)
    try:
        yield
    finally:
        for module, name in marked:
            del module.__dict__[name]
