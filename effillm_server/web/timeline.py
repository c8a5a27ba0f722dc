"""Every iteration of a cell as a line of a picture: the first token a bar, each further one a tick. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from effillm_server.contract import timeline
from effillm_server.contract.units import format_seconds

LEFT = 96
PLOT = 860
TOP = 16
STEP = 12
# Ticks of one page; each costs some seven bytes of it.
MOST_TICKS = 12_000
MOST_LINES = 60
RULES = 5
NS = 1e-9


@dataclass(frozen=True)
class Line:
    """One iteration: `first` is the width of the bar up to the first token, `ticks` the path of the others."""

    name: str
    phase: str
    outlier: bool
    y: int
    first: float
    ticks: str
    said: str


@dataclass(frozen=True)
class Timeline:
    """The picture: its lines on one scale of time that begins with each iteration."""

    lines: list[Line]
    axis: list[tuple[float, str]]
    width: int
    height: int
    left: int
    shown: int
    total: int


@dataclass(frozen=True)
class Iteration:
    """An iteration in numbers."""

    phase: str
    iteration: int
    prompt_tokens: int
    ttft_s: float
    tpot_s: float | None
    longest_s: float | None
    e2e_s: float
    tok_s: float
    outlier: bool


def drawn(samples: Sequence[Mapping[str, Any]]) -> Timeline:
    """The timeline of these iterations, as many as a page can take."""
    shown: list[Mapping[str, Any]] = []
    ticks = 0
    for sample in samples[:MOST_LINES]:
        ticks += len(sample["timestamps_ns"])
        if shown and ticks > MOST_TICKS:
            break
        shown.append(sample)
    longest_s = max((timeline.e2e_s(sample["timestamps_ns"]) for sample in shown), default=1.0)
    lines = [_line(sample, TOP + STEP * row, longest_s) for row, sample in enumerate(shown)]
    axis = [(LEFT + PLOT * k / RULES, format_seconds(longest_s * k / RULES) if k else "0") for k in range(RULES + 1)]
    return Timeline(lines, axis, LEFT + PLOT + 64, TOP + STEP * len(lines) + 4, LEFT, len(shown), len(samples))


def iterations(samples: Sequence[Mapping[str, Any]], batch_size: int) -> list[Iteration]:
    """Each iteration's own numbers."""
    return [
        Iteration(
            sample["phase"], sample["iteration"], sample["prompt_tokens"], timeline.ttft_s(stamps), timeline.tpot_s(stamps),
            max(timeline.itl_s(stamps), default=None), timeline.e2e_s(stamps), timeline.throughput_tok_s(stamps, batch_size),
            sample["outlier"],
        )
        for sample in samples
        for stamps in [sample["timestamps_ns"]]
    ]  # fmt: skip


def _line(sample: Mapping[str, Any], y: int, longest_s: float) -> Line:
    stamps = sample["timestamps_ns"]
    scale = PLOT / longest_s * NS
    # Moves relative to the last tick: a page holds thousands of them.
    places = [round((stamp - stamps[0]) * scale, 1) for stamp in stamps[1:]]
    moves = "".join(f"m{later - earlier:.1f} -8v8" for earlier, later in pairwise(places))
    ticks = f"M{LEFT + places[0]:.1f} {y + 2}v8{moves}"
    ttft_s, e2e_s = timeline.ttft_s(stamps), timeline.e2e_s(stamps)
    said = f"{sample['phase']} {sample['iteration']}: first token {format_seconds(ttft_s)}, all {format_seconds(e2e_s)}"
    if sample["outlier"]:
        said += ", outlier"
    return Line(
        f"{sample['phase']} {sample['iteration']}", sample["phase"], bool(sample["outlier"]), y, max(places[0], 0.5), ticks, said
    )  # fmt: skip
