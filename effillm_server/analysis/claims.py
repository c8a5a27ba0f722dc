"""The paper's claims against the user's own results: confirmed, refuted or undecided, with the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from effillm_server.analysis.cells import Cell
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.ratios import within
from effillm_server.analysis.words import interval, slice_text

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
ASTRAY = 10
BY_POSITION = {"inside": CONFIRMED, "outside": REFUTED, "open": UNDECIDED}


@dataclass(frozen=True)
class Evidence:
    """What one slice of the results says about a claim."""

    where: str
    hardware: str
    verdict: str
    text: str
    jobs: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """Everything already computed from the cells that claims are judged on."""

    cells: Sequence[Cell]
    facts: Facts
    fits: Sequence[Mapping[str, Any]]
    joint_fits: Sequence[Mapping[str, Any]]
    batch_scaling: Sequence[Mapping[str, Any]]
    best_batches: Sequence[Mapping[str, Any]]
    quantization: Sequence[Mapping[str, Any]]
    cost: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, what it takes to judge it, and the judge."""

    name: str
    statement: str
    source: str
    needs: str
    judge: Callable[[Study], list[Evidence]]


def check(study: Study, claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Every claim with its verdict, overall and per hardware, and the evidence of each slice.

    Overall: confirmed when at least half of the slices confirm it and at most one in ten refutes it (among many slices a few
    go astray by chance); refuted the other way round; else undecided.
    """
    found = []
    for claim in claims:
        evidence = claim.judge(study)
        by_hardware = {
            hardware: overall([e for e in evidence if e.hardware == hardware])
            for hardware in sorted({e.hardware for e in evidence})
        }
        verdict = overall(evidence)
        found.append(
            {
                "name": claim.name,
                "statement": claim.statement,
                "source": claim.source,
                "verdict": verdict,
                "by_hardware": by_hardware,
                "summary": _summary(evidence, verdict, claim),
                "evidence": [asdict(e) for e in evidence],
                "needs": None if evidence else claim.needs,
            }
        )
    return found


def overall(evidence: Sequence[Evidence]) -> str:
    counts = Counter(e.verdict for e in evidence)
    total = len(evidence)
    for verdict, against in ((CONFIRMED, REFUTED), (REFUTED, CONFIRMED)):
        if counts[verdict] and 2 * counts[verdict] >= total and ASTRAY * counts[against] <= total:
            return verdict
    return UNDECIDED


def _summary(evidence: Sequence[Evidence], verdict: str, claim: Claim) -> str:
    if not evidence:
        return f"undecided: needs {claim.needs}"
    counts = Counter(e.verdict for e in evidence)
    told = ", ".join(f"{counts[v]} {v}" for v in (CONFIRMED, REFUTED, UNDECIDED) if counts[v])
    if len(evidence) == 1:
        return f"{verdict}: {evidence[0].text}"
    first = next((e for e in evidence if e.verdict == verdict), evidence[0])
    return f"{verdict} ({told} of {len(evidence)} slices); for example {first.text}"


def in_range(value: Mapping[str, Any], low: float, high: float) -> str:
    """Verdict of "the value lies in [low, high]" by its interval."""
    return BY_POSITION[within(value, low, high)]


def above(value: Mapping[str, Any], bound: float) -> str:
    """Verdict of "the value exceeds `bound`" by its interval."""
    if value["low"] is not None and value["low"] > bound:
        return CONFIRMED
    return REFUTED if value["high"] is not None and value["high"] <= bound else UNDECIDED


def parameter_in_range(law: str, name: str, symbol: str, low: float, high: float) -> Callable[[Study], list[Evidence]]:
    """Judge of "parameter `name` of `law` lies between low and high". Weak fits count as undecided."""

    def judge(study: Study) -> list[Evidence]:
        found = []
        for fit in study.fits:
            if fit["law"] == law:
                value = fit["parameters"][name]
                verdict = in_range(value, low, high)
                weak = " (weak fit)" if fit["weak"] else ""
                found.append(
                    Evidence(
                        where=slice_text(fit["slice"]),
                        hardware=str(fit["slice"].get("hardware")),
                        verdict=UNDECIDED if fit["weak"] and verdict == CONFIRMED else verdict,
                        text=f"{symbol} = {interval(value)} for {slice_text(fit['slice'])}{weak}",
                        jobs=list(fit["jobs"]),
                    )
                )
        return found

    return judge
