"""The whole analysis of a set of rows: fits, efficiencies, frontier, claims and findings, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from effillm_server.analysis import claims_deployment, claims_efficiency, claims_scaling
from effillm_server.analysis.cells import Selection, cells, select
from effillm_server.analysis.claims import CONFIRMED, REFUTED, Study, check
from effillm_server.analysis.cliffs import cliffs
from effillm_server.analysis.efficiency import batch_scaling, best_batches, cost, quantization
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.frontier import frontier
from effillm_server.analysis.pareto import pareto
from effillm_server.analysis.scaling import CURVED_P, batch_exponent_by_sequence, fits
from effillm_server.analysis.variance import variance_components
from effillm_server.analysis.words import number, plural, slice_text

Row = Mapping[str, Any]
ALL_CLAIMS = (*claims_scaling.CLAIMS, *claims_efficiency.CLAIMS, *claims_deployment.CLAIMS)


def analyse(rows: Iterable[Row], facts: Facts | None = None, *, include_invalid: bool = False) -> dict[str, Any]:
    """Everything the rows say, JSON-ready. A sweep without usable rows gives empty lists and a remark that says so."""
    everything = list(rows)
    selection = select(everything, include_invalid=include_invalid)
    known = (facts or Facts()).with_sizes_of(selection.rows)
    study = examine(selection, known)
    checked = check(study, ALL_CLAIMS)
    found_cliffs = cliffs(study.cells, known)
    return {
        "summary": summary(everything, selection),
        "noise_floor": {"sd_of_ratio": known.noise_floor, "source": known.noise_floor_source},
        "fits": list(study.fits),
        "batch_exponent_by_sequence": list(study.joint_fits),
        "batch_scaling": list(study.batch_scaling),
        "best_batch": list(study.best_batches),
        "quantization": list(study.quantization),
        "cost": list(study.cost),
        "cliffs": found_cliffs,
        "variance": variance_components(study.cells),
        "frontier": frontier(everything),
        "pareto": memory_throughput_front(study),
        "claims": checked,
        "findings": findings(study, checked, found_cliffs),
    }


def examine(selection: Selection, facts: Facts) -> Study:
    """Cells and everything computed from them that claims, figures and findings share."""
    of = cells(selection.rows)
    return Study(
        cells=of,
        facts=facts,
        fits=fits(of, facts),
        joint_fits=batch_exponent_by_sequence(of, facts),
        batch_scaling=batch_scaling(of, facts),
        best_batches=best_batches(of, facts),
        quantization=quantization(of, facts),
        cost=cost(of, facts),
    )


def summary(rows: list[Row], selection: Selection) -> dict[str, Any]:
    """How many rows there are in which state and verdict, and which of them the analysis stands on."""
    remark = None
    if not selection.rows:
        remark = f"no valid measured row to analyse{'; ' + selection.note if selection.note else ''}"
    return {
        "rows": len(rows),
        "states": dict(Counter(str(row["state"]) for row in rows)),
        "verdicts": dict(Counter(str(row["verdict"]) for row in rows if row["verdict"])),
        "infeasible_reasons": dict(Counter(str(row["reason"]) for row in rows if row["state"] == "infeasible")),
        "used": len(selection.rows),
        "simulated": selection.simulated,
        "left_out": selection.left_out,
        "synthetic_weights": any(row["weights"] == "synthetic" for row in selection.rows),
        "remark": remark,
    }


def memory_throughput_front(study: Study) -> list[dict[str, Any]]:
    """Configurations of each device that no other one of it beats in both throughput and memory."""
    by_hardware: dict[str, list[tuple[dict[str, Any], dict[str, float]]]] = {}
    for cell in study.cells:
        throughput, memory = cell.estimate("throughput_tok_s"), cell.estimate("memory_gb")
        if throughput is not None and memory is not None:
            values = {"throughput_tok_s": throughput.value, "memory_gb": memory.value}
            by_hardware.setdefault(cell.axes["hardware"], []).append(({**cell.axes, "jobs": cell.jobs}, values))
    found = []
    for members in by_hardware.values():
        front = pareto([values for _, values in members], {"throughput_tok_s": "max", "memory_gb": "min"})
        found += [{**members[k][0], **members[k][1]} for k in front]
    return found


def findings(study: Study, checked: list[dict[str, Any]], found_cliffs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stands out, in sentences, each with the jobs it rests on."""
    found = [*_fastest(study)]
    for claim in checked:
        if claim["verdict"] in (CONFIRMED, REFUTED):
            jobs = sorted({job for evidence in claim["evidence"] for job in evidence["jobs"]})
            found.append(
                {"kind": claim["verdict"], "sentence": f"{claim['statement']} — {claim['summary']}.", "jobs": jobs}
            )
    for cliff in found_cliffs:
        sentence = (
            f"Latency cliff: from {cliff['axis']} {cliff['from']} to {cliff['to']} time to first token rises "
            f"{number(cliff['rise'])}-fold, {number(cliff['excess'])} times what its growth elsewhere explains "
            f"({slice_text({k: v for k, v in cliff.items() if k != cliff['axis']})})."
        )
        found.append({"kind": "cliff", "sentence": sentence, "jobs": cliff["jobs"]})
    bent = [fit for fit in study.fits if fit["residual_check"]["curved"]]
    by_chance = CURVED_P * len(study.fits)
    if len(bent) > by_chance + 2 * math.sqrt(by_chance):
        names = ", ".join(sorted({fit["title"].lower() for fit in bent}))
        sentence = f"{plural(len(bent), 'fit')} of {len(study.fits)} leave a bend: the power or line does not hold throughout ({names})."
        found.append(
            {"kind": "fit", "sentence": sentence, "jobs": sorted({job for fit in bent for job in fit["jobs"]})}
        )
    return found


def _fastest(study: Study) -> list[dict[str, Any]]:
    """The highest throughput of each device, with its interval."""
    found = []
    for hardware in sorted({cell.axes["hardware"] for cell in study.cells}):
        here = [
            (cell, e)
            for cell in study.cells
            if cell.axes["hardware"] == hardware and (e := cell.estimate("throughput_tok_s"))
        ]
        if not here:
            continue
        cell, best = max(here, key=lambda pair: pair[1].value)
        bounds = (
            ""
            if best.low is None or best.high is None
            else f" (95 % interval {number(best.low)} to {number(best.high)})"
        )
        sentence = f"Highest throughput on {hardware}: {number(best.value)} tok/s{bounds} with {slice_text(cell.axes)}."
        found.append({"kind": "fastest", "sentence": sentence, "jobs": cell.jobs})
    return found
