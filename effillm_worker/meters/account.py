"""Where a cell's memory went: an account that adds up, with what it cannot explain as a line of its own."""

from __future__ import annotations

from collections.abc import Mapping

from effillm_server.contract.outcome import LoadedModel, MemoryReading

WEIGHTS = "weights_bytes"
KV_CACHE = "kv_cache_predicted_bytes"  # by the engine; what a CPU's cache really takes cannot be read from outside
OTHER = "other_bytes"
MAPPED = "mapped_files_bytes"
UNEXPLAINED = "unexplained_bytes"
GROWTH = "growth_bytes"


def account(
    model: LoadedModel,
    predicted: Mapping[str, int | None],
    baseline: MemoryReading | None,
    loaded: MemoryReading | None,
    peak: MemoryReading | None,
    mapped_since_loaded: int | None = None,
) -> dict[str, int | None]:
    """growth = weights + key-value cache + other + unexplained, from `baseline` to `peak`.

    Weights are counted from the tensors, the key-value cache is the child's prediction. `other` is measured: what loading
    took beyond the weights (loaded - baseline - weights) and, on a CPU, pages of mapped files that became resident since
    (a library's code is paged in when it first runs); the child's `activations_bytes`, if it can name them, belong to it.
    On a GPU the figures are the allocator's, on a CPU the resident set's. The child's own entries are kept; a line that
    cannot be known is None.
    """
    lines: dict[str, int | None] = dict(predicted)
    at_baseline, at_loaded, at_peak = _used(baseline), _used(loaded), _used(peak, peak=True)
    lines[WEIGHTS] = model.weight_bytes
    lines.setdefault(KV_CACHE, None)
    lines[GROWTH] = None if at_peak is None or at_baseline is None else at_peak - at_baseline
    on_device = peak is not None and peak.vram_bytes is not None
    lines[MAPPED] = None if on_device else mapped_since_loaded
    lines[OTHER] = _other(lines, model, at_baseline, at_loaded)
    parts = [lines[WEIGHTS], lines[KV_CACHE], lines[OTHER]]
    growth = lines[GROWTH]
    known = [part for part in parts if part is not None]
    lines[UNEXPLAINED] = growth - sum(known) if growth is not None and len(known) == len(parts) else None
    return lines


def _other(
    lines: Mapping[str, int | None], model: LoadedModel, at_baseline: int | None, at_loaded: int | None
) -> int | None:
    if at_baseline is None or at_loaded is None:
        return None
    named = (lines.get("activations_bytes") or 0) + max(0, lines.get(MAPPED) or 0)
    return at_loaded - at_baseline - model.weight_bytes + named


def _used(reading: MemoryReading | None, *, peak: bool = False) -> int | None:
    """Bytes in the memory the model lives in: the device's where there is one."""
    if reading is None:
        return None
    if reading.vram_bytes is not None:
        return reading.vram_bytes
    if peak and reading.ram_peak_bytes is not None:
        return reading.ram_peak_bytes
    return reading.ram_bytes
