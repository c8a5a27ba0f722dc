"""Bits for each layer under a budget: the most benefit for each byte, step by step. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Plan = dict[str, int]


@dataclass(frozen=True)
class Choice:
    """One way of storing a layer: its bits, the bytes they take, scales included, and the harm they do."""

    bits: int
    bytes: int
    harm: float


def path(layers: Mapping[str, tuple[Choice, ...]], budget: int | None = None) -> Iterator[dict[str, Choice]]:
    """Plans of growing size: all layers at their smallest first, then each time the step that undoes most harm per byte.

    A step that does not fit into `budget` bytes is left out, smaller ones of other layers still follow. Every layer goes along
    the lower hull of its choices, so that the first steps are never worse than later ones.
    """
    hulls = {name: hull(choices) for name, choices in layers.items()}
    at = dict.fromkeys(hulls, 0)
    size = sum(choices[0].bytes for choices in hulls.values())
    heap = [(-_worth(choices, 0), name) for name, choices in hulls.items() if len(choices) > 1]
    heapq.heapify(heap)
    yield {name: choices[0] for name, choices in hulls.items()}
    while heap:
        _, name = heapq.heappop(heap)
        choices, here = hulls[name], at[name]
        more = choices[here + 1].bytes - choices[here].bytes
        if budget is not None and size + more > budget:
            continue
        at[name], size = here + 1, size + more
        if here + 2 < len(choices):
            heapq.heappush(heap, (-_worth(choices, here + 1), name))
        yield {each: hulls[each][at[each]] for each in hulls}


def hull(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """The choices, by size, that lie on the lower convex hull of harm over bytes: each next one does less harm, at a growing price."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.bytes, c.harm)):
        if kept and choice.harm >= kept[-1].harm:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-1], choice):
            kept.pop()
        kept.append(choice)
    return tuple(kept)


def total_bytes(plan: Mapping[str, Choice]) -> int:
    """Bytes of all layers of a plan."""
    return sum(choice.bytes for choice in plan.values())


def total_harm(plan: Mapping[str, Choice]) -> float:
    """Harm of a plan as if the layers' harms added up."""
    return sum(choice.harm for choice in plan.values())


def _slope(one: Choice, other: Choice) -> float:
    """Harm undone by each byte from one to the other, larger."""
    return (one.harm - other.harm) / (other.bytes - one.bytes)


def _worth(choices: tuple[Choice, ...], here: int) -> float:
    return _slope(choices[here], choices[here + 1])
