"""Where a cell's memory went: an account that adds up, with what it cannot explain as a line of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effillm_server.contract.account import Line, predicted_weights
from effillm_server.contract.outcome import LoadedModel, MemoryReading


@dataclass(frozen=True)
class Mapped:
    """Growth of the resident pages of mapped files while loading, and from there to the peak."""

    loading: int | None
    since_loaded: int | None


def account(
    model: LoadedModel,
    said: Mapping[str, int | None],
    baseline: MemoryReading | None,
    loaded: MemoryReading | None,
    peak: MemoryReading | None,
    mapped: Mapped | None = None,
    bits: float | None = None,
) -> dict[str, int | None]:
    """growth = weights + key-value cache + other + unexplained, from `baseline` to `peak`.

    Weights and cache are counted from the tensors (the cache predicted where an engine cannot count it), each beside its
    prediction. `other` is the sum of what instruments say that the growth itself does not come from. On a CPU, where the growth is
    the kernel's resident set: pages of mapped files that became resident, while loading and since (a library's code is paged in
    when it first runs), and the C library's count of the heap, what loading added to it beyond the weights (freed blocks it keeps
    among it: `heap_free_loading_bytes`) and `activations_bytes`, its growth from there to its peak beyond the cache; negative when
    the cache fits into freed blocks. On a GPU, where everything is the allocator's, and where the heap cannot be asked:
    loaded - baseline - weights. `other` is thus a remainder: a wrong weight or cache moves it and not `unexplained`, and shows
    beside its prediction. `said` are the child's own entries, which are kept; a line that cannot be known is None.
    """
    lines: dict[str, int | None] = dict(said)
    at_baseline, at_loaded, at_peak = _used(baseline), _used(loaded), _used(peak, peak=True)
    lines[Line.WEIGHTS] = model.weight_bytes
    lines[Line.WEIGHTS_PREDICTED] = predicted_weights(model.parameters, bits)
    cache = lines.setdefault(Line.KV_CACHE, None)
    predicted_cache = lines.setdefault(Line.KV_CACHE_PREDICTED, None)
    lines[Line.GROWTH] = None if at_peak is None or at_baseline is None else at_peak - at_baseline
    on_device = peak is not None and peak.vram_bytes is not None
    lines[Line.MAPPED_LOADING] = None if on_device or mapped is None else mapped.loading
    lines[Line.MAPPED] = None if on_device or mapped is None else mapped.since_loaded
    loading = None if at_baseline is None or at_loaded is None else at_loaded - at_baseline
    lines[Line.OTHER] = _other(lines, model, loading)
    parts = [lines[Line.WEIGHTS], predicted_cache if cache is None else cache, lines[Line.OTHER]]
    growth = lines[Line.GROWTH]
    known = [part for part in parts if part is not None]
    lines[Line.UNEXPLAINED] = growth - sum(known) if growth is not None and len(known) == len(parts) else None
    return {str(name): size for name, size in lines.items()}


def _other(lines: Mapping[str, int | None], model: LoadedModel, loading: int | None) -> int | None:
    heap, mapped = lines.get(Line.HEAP_LOADING), lines[Line.MAPPED_LOADING]
    if heap is not None and mapped is not None:
        loading = heap + mapped
    if loading is None:
        return None
    return loading - model.weight_bytes + (lines.get(Line.ACTIVATIONS) or 0) + (lines[Line.MAPPED] or 0)


def _used(reading: MemoryReading | None, *, peak: bool = False) -> int | None:
    """Bytes in the memory the model lives in: the device's where there is one."""
    if reading is None:
        return None
    if reading.vram_bytes is not None:
        return reading.vram_bytes
    if peak and reading.ram_peak_bytes is not None:
        return reading.ram_peak_bytes
    return reading.ram_bytes
