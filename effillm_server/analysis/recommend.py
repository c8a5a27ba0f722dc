"""Which measured configuration to deploy for an aim under constraints, how sure that is, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from effillm_server.analysis.cells import Cell, cells, select, slices
from effillm_server.analysis.differences import holm
from effillm_server.analysis.efficiency import KEEPS_SHARE, cost
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.filters import matching
from effillm_server.analysis.pareto import Goal, pareto
from effillm_server.analysis.ratios import cell_ratio, ratio
from effillm_server.analysis.words import number, plural, slice_text
from effillm_server.contract.units import format_bytes, format_seconds
from effillm_server.errors import BadInput

Row = Mapping[str, Any]
ALPHA = 0.05


@dataclass(frozen=True)
class Aim:
    """What is to be best: the metric, whether more of it is better, and the sentence that says so."""

    metric: str
    goal: Goal
    said: str


AIMS: dict[str, Aim] = {
    "throughput": Aim("throughput_tok_s", "max", "most tokens per second"),
    "latency": Aim("ttft_s", "min", "shortest time to first token"),
    "multi-user": Aim(
        "throughput_tok_s", "max", "most tokens per second while each sequence keeps 80 % of its speed alone"
    ),
    "cost": Aim("usd_per_million_tokens", "min", "fewest dollars per million tokens"),
    "energy": Aim("energy_per_token_j", "min", "least energy per token"),
}
PARETO_GOALS: dict[str, Goal] = {"throughput_tok_s": "max", "ttft_s": "min", "memory_bytes": "min"}


@dataclass(frozen=True)
class Constraints:
    """Limits a configuration must keep, and values it must have; None sets no limit. Money is purchase and per hour."""

    max_memory_bytes: float | None = None
    max_ttft_s: float | None = None
    max_quality_loss: float | None = None
    max_purchase_usd: float | None = None
    max_hourly_usd: float | None = None
    min_throughput_tok_s: float | None = None
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


# Each limit: the field, the metric it limits, and how the value is told.
LIMITS: dict[str, tuple[str, str, Any]] = {
    "max_memory_bytes": ("memory_bytes", "peak memory", format_bytes),
    "max_ttft_s": ("ttft_s", "time to first token", format_seconds),
    "max_quality_loss": ("quality_loss", "quality loss", lambda v: f"{v:.1%}"),
    "max_purchase_usd": ("purchase_usd", "purchase price", lambda v: f"${v:,.0f}"),
    "max_hourly_usd": ("hourly_usd", "price per hour", lambda v: f"${v:.2f}"),
    "min_throughput_tok_s": ("throughput_tok_s", "throughput", lambda v: f"{v:,.0f} tok/s"),
}


@dataclass(frozen=True)
class Candidate:
    """A measured configuration with every value that limits and aims look at; an absent value is missing from the dict."""

    cell: Cell
    values: dict[str, float]
    worst: dict[str, float]


def recommend(
    rows: Iterable[Row], aim: str, constraints: Constraints | None = None, facts: Facts | None = None
) -> dict[str, Any]:
    """The best measured configuration for `aim` (throughput, latency, multi-user, cost, energy) under `constraints`.

    A limit counts as kept only if the 95 % bound on its unfavourable side keeps it. `ties` are those the test cannot tell
    from the best; then the one with the least memory is named. Raises BadInput where nothing can be recommended at all.
    """
    if aim not in AIMS:
        raise BadInput(f"no aim {aim!r}; there are {', '.join(AIMS)}", field="aim")
    limits, known = constraints or Constraints(), facts or Facts()
    selection = select(rows)
    known = known.with_sizes_of(selection.rows)
    chosen = matching(selection.rows, limits.where)
    if not chosen:
        raise BadInput(f"no valid measured row to choose from{'; ' + selection.note if selection.note else ''}")
    candidates = _candidates(cells(chosen), known)
    if aim == "multi-user":
        candidates = _keeping_speed(candidates, known)
    usable = [c for c in candidates if AIMS[aim].metric in c.values]
    if not usable:
        raise BadInput(_why_no_metric(aim), field="aim")
    allowed = [c for c in usable if not _violations(c, limits)]
    answer = {
        "aim": aim,
        "aim_said": AIMS[aim].said,
        "simulated": selection.simulated,
        "considered": len(usable),
        "allowed": len(allowed),
        "note": selection.note,
        "what_would_change_it": _relaxations(usable, allowed, aim, limits),
    }
    return answer | (_answer(allowed, aim, known) if allowed else _no_answer(usable, limits))


def _candidates(of: Sequence[Cell], facts: Facts) -> list[Candidate]:
    priced = {id(cell): entry for cell, entry in _costs(of, facts)}
    found = []
    for cell in of:
        values: dict[str, float] = {}
        worst: dict[str, float] = {}
        for metric in ("throughput_tok_s", "ttft_s", "memory_bytes", "energy_per_token_j", "quality_loss"):
            estimate = cell.estimate(metric)
            if estimate is not None:
                values[metric] = estimate.value
                bound = estimate.low if metric == "throughput_tok_s" else estimate.high
                worst[metric] = estimate.value if bound is None else bound
        for name in ("purchase_usd", "hourly_usd", "usd_per_million_tokens"):
            price = priced.get(id(cell), {}).get(name)
            if price is not None:
                values[name] = worst[name] = price
        found.append(Candidate(cell, values, worst))
    return found


def _costs(of: Sequence[Cell], facts: Facts) -> list[tuple[Cell, dict[str, Any]]]:
    return [(cell, entries[0]) for cell in of if (entries := cost([cell], facts))]


def _keeping_speed(candidates: list[Candidate], facts: Facts) -> list[Candidate]:
    """Those whose T(b)/b is at least 80 % of T(1); a slice without batch 1 cannot say and is left out."""
    by_cell = {id(candidate.cell): candidate for candidate in candidates}
    kept = []
    for members in slices([candidate.cell for candidate in candidates], ("batch_size",)).values():
        one = next((cell for cell in members if cell.axes["batch_size"] == 1), None)
        for cell in members if one is not None else ():
            eta = cell_ratio(cell, one, "throughput_tok_s", facts, 1 / cell.axes["batch_size"]) if one else None
            if cell is one or (eta is not None and eta.value >= KEEPS_SHARE):
                kept.append(by_cell[id(cell)])
    return kept


def _violations(candidate: Candidate, limits: Constraints) -> list[str]:
    """Limits the candidate does not surely keep. A value nobody measured keeps no limit."""
    found = []
    for name, (metric, _, _) in LIMITS.items():
        limit = getattr(limits, name)
        if limit is None:
            continue
        worst = candidate.worst.get(metric)
        if worst is None or (worst < limit if name.startswith("min_") else worst > limit):
            found.append(name)
    return found


def _answer(allowed: list[Candidate], aim: str, facts: Facts) -> dict[str, Any]:
    metric, goal = AIMS[aim].metric, AIMS[aim].goal
    ranked = sorted(allowed, key=lambda c: c.values[metric], reverse=goal == "max")
    tests = [_versus(ranked[0], other, aim, facts) for other in ranked[1:]]
    adjusted = holm([p for _, p in tests])
    tied = [other for other, p in zip(ranked[1:], adjusted, strict=True) if p >= ALPHA]
    group = [ranked[0], *tied]
    best = min(group, key=lambda c: c.values.get("memory_bytes", math.inf)) if tied else ranked[0]
    runner = ranked[1] if len(ranked) > 1 else None
    margin = None
    if runner is not None:
        margin = {**_described(runner), "advantage": tests[0][0], "p": adjusted[0], "significant": adjusted[0] < ALPHA}
    front = _front(allowed)
    return {
        "recommended": _described(best),
        "is_tie": bool(tied),
        "ties": [_described(candidate) for candidate in group if candidate is not best],
        "next": margin,
        "pareto": [_described(candidate) for candidate in front],
        "sentence": _sentence(best, group, margin, aim),
        "rests_on": sorted({job for candidate in (best, *group) for job in candidate.cell.jobs}),
    }


def _versus(best: Candidate, other: Candidate, aim: str, facts: Facts) -> tuple[float, float]:
    """Advantage of `best` over `other` as a share, and its p-value. Prices carry no noise: cost is tested on throughput."""
    metric, goal = AIMS[aim].metric, AIMS[aim].goal
    share = (
        best.values[metric] / other.values[metric] - 1
        if goal == "max"
        else 1 - best.values[metric] / other.values[metric]
    )
    if metric == "usd_per_million_tokens":
        return share, _shifted_p(best, other, other.values["hourly_usd"] / best.values["hourly_usd"], facts)
    found = cell_ratio(best.cell, other.cell, metric, facts)
    return share, found.p if found else 1.0


def _shifted_p(best: Candidate, other: Candidate, factor: float, facts: Facts) -> float:
    """p of "T(best) / hourly(best) equals T(other) / hourly(other)"."""
    top, bottom = (c.cell.estimate("throughput_tok_s") for c in (best, other))
    if top is None or bottom is None:
        return 1.0
    found = ratio(replace(top, value=top.value * factor), bottom, facts)
    return found.p if found else 1.0


def _front(candidates: list[Candidate]) -> list[Candidate]:
    complete = [c for c in candidates if all(metric in c.values for metric in PARETO_GOALS)]
    return [complete[k] for k in pareto([c.values for c in complete], PARETO_GOALS)]


def _described(candidate: Candidate) -> dict[str, Any]:
    return {
        **candidate.cell.axes,
        "values": candidate.values,
        "jobs": candidate.cell.jobs,
        "processes": len(candidate.cell.rows),
    }


def _sentence(best: Candidate, group: list[Candidate], margin: dict[str, Any] | None, aim: str) -> str:
    metric = AIMS[aim].metric
    text = f"{slice_text(best.cell.axes)}: {AIMS[aim].said}, {number(best.values[metric])} {UNITS[metric]}"
    if margin is None:
        return f"{text}; it is the only configuration that keeps the limits"
    if len(group) > 1:
        return f"{text}; a tie with {plural(len(group) - 1, 'other')} that the measurements cannot tell apart, named for its memory"
    return f"{text}; {margin['advantage']:.1%} better than the next (p = {margin['p']:.2g})"


UNITS = {
    "throughput_tok_s": "tok/s",
    "ttft_s": "s",
    "usd_per_million_tokens": "$ per million tokens",
    "energy_per_token_j": "J per token",
}


def _no_answer(usable: list[Candidate], limits: Constraints) -> dict[str, Any]:
    closest = []
    for name, (metric, said, show) in LIMITS.items():
        limit = getattr(limits, name)
        if limit is None:
            continue
        measured = [c.worst[metric] for c in usable if metric in c.worst]
        pick = max if name.startswith("min_") else min
        best = show(pick(measured)) if measured else "not measured"
        closest.append(
            f"{said} {'at least' if name.startswith('min_') else 'at most'} {show(limit)}: the best there is has {best}"
        )
    return {
        "recommended": None,
        "is_tie": False,
        "ties": [],
        "next": None,
        "pareto": [_described(candidate) for candidate in _front(usable)],
        "sentence": f"no measured configuration keeps all limits. {'; '.join(closest)}",
        "rests_on": sorted({job for candidate in usable for job in candidate.cell.jobs}),
    }


def _relaxations(
    usable: list[Candidate], allowed: list[Candidate], aim: str, limits: Constraints
) -> list[dict[str, Any]]:
    """For each limit: the configuration that would win without it, and the value the limit would need."""
    metric, goal = AIMS[aim].metric, AIMS[aim].goal
    sign = 1 if goal == "max" else -1
    current = max((sign * c.values[metric] for c in allowed), default=-math.inf)
    found = []
    for name, (limited, said, show) in LIMITS.items():
        if getattr(limits, name) is None:
            continue
        dropped: dict[str, Any] = {name: None}
        freed = [c for c in usable if not _violations(c, replace(limits, **dropped)) and limited in c.worst]
        best = max(freed, key=lambda c: sign * c.values[metric], default=None)
        if best is not None and sign * best.values[metric] > current:
            needed = best.worst[limited]
            text = f"with {said} {'of' if name.startswith('min_') else 'up to'} {show(needed)}: {slice_text(best.cell.axes)}"
            found.append({"limit": name, "needed": needed, "sentence": text, **_described(best)})
    return found


def _why_no_metric(aim: str) -> str:
    reasons = {
        "energy": "no row has a measured energy: the device offers no readable energy counter (see energy_source)",
        "cost": "no hardware class of these rows has an hourly price: name them in the file EFFILLM_PRICES points to",
        "multi-user": "no slice was measured at batch size 1, which the share of speed kept is counted from",
    }
    return reasons.get(aim, f"no row has {AIMS[aim].metric}") + f"; aim {aim!r} needs it"
