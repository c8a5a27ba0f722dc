"""What a model's key-value cache really takes: the storages behind its tensors, counted while a generation runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from effillm_worker.engines.base import CacheCount


@contextmanager
def counting(model: Any) -> Iterator[CacheCount]:
    """Counts the cache that each forward pass of `model` (a torch module) returns."""
    count = CacheCount()

    def after(module: Any, arguments: Any, output: Any) -> None:
        count.bytes = held_bytes(getattr(output, "past_key_values", None))

    hook = model.register_forward_hook(after)
    try:
        yield count
    finally:
        hook.remove()


def held_bytes(cache: Any) -> int | None:
    """Bytes behind the tensors of a transformers cache, shared storages once; None for a kind of cache without any that is known."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(_storage, _tensors(cache))}
    return sum(storages.values()) if storages else None


def _tensors(cache: Any) -> Iterator[Any]:
    """Since transformers 4.54 a cache is a list of layers, before two lists of tensors, and in the beginning tuples of pairs."""
    if hasattr(cache, "layers"):
        values = [value for layer in cache.layers for value in vars(layer).values()]
    elif hasattr(cache, "key_cache"):
        values = [*cache.key_cache, *cache.value_cache]
    elif isinstance(cache, tuple):
        values = [value for layer in cache if isinstance(layer, tuple) for value in layer]
    else:
        values = []
    return (value for value in values if hasattr(value, "untyped_storage"))


def _storage(tensor: Any) -> Any:
    return tensor.untyped_storage()
