"""The lines of a cell's memory account, in the order in which they are read; two of them stand beside their prediction."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Line(StrEnum):
    """Bytes each, keys of `CellMemory.account`; docs/method.md says where each comes from. A line that nobody knows is None."""

    GROWTH = "growth_bytes"
    WEIGHTS = "weights_bytes"
    WEIGHTS_PREDICTED = "weights_predicted_bytes"
    KV_CACHE = "kv_cache_bytes"
    KV_CACHE_PREDICTED = "kv_cache_predicted_bytes"
    HEAP_LOADING = "heap_loading_bytes"
    HEAP_FREE_LOADING = "heap_free_loading_bytes"
    ACTIVATIONS = "activations_bytes"
    MAPPED_LOADING = "mapped_files_loading_bytes"
    MAPPED = "mapped_files_bytes"
    OTHER = "other_bytes"
    UNEXPLAINED = "unexplained_bytes"


PREDICTED: Mapping[str, str] = {Line.WEIGHTS: Line.WEIGHTS_PREDICTED, Line.KV_CACHE: Line.KV_CACHE_PREDICTED}


def predicted_weights(parameters: int, bits: float | None) -> int | None:
    """Bytes of `parameters` weights of `bits` each: what a quantization promises, scales and layers it leaves alone left out."""
    return None if bits is None else round(parameters * bits / 8)


def beside(account: Mapping[str, int | None]) -> list[tuple[str, int | None, int | None]]:
    """Name, what was found and what was predicted, for every line of which either is known; lines of other versions come last."""
    known = [str(line) for line in Line]
    names = [
        name for name in (*known, *(name for name in account if name not in known)) if name not in PREDICTED.values()
    ]
    lines = [(name, account.get(name), account.get(PREDICTED.get(name, ""))) for name in names]
    return [(name, found, predicted) for name, found, predicted in lines if found is not None or predicted is not None]
