"""Fits of the scaling laws to measured cells, each with intervals, goodness of fit and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from effillm_server.analysis.cells import Cell, fixed_axes, slices
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.forms import ABSOLUTE, Array, Fitted, Parameter, Straight, linear
from effillm_server.analysis.laws import BILLION, LAWS, NEGATED, Law
from effillm_server.analysis.statistics import LEVEL, t_quantile

MIN_POINTS = 4
WEAK_BELOW = 6
CURVED_P = 0.05
MEMORY_RELATIVE_SD = 0.01


@dataclass(frozen=True)
class Points:
    """Measured points of one fit, ascending in x: shape [n] each, and the cells they come from."""

    x: Array
    y: Array
    sigma: Array
    cells: tuple[Cell, ...]


def fits(of: Sequence[Cell], facts: Facts, laws: Sequence[str] = tuple(LAWS)) -> list[dict[str, Any]]:
    """Every fit the cells allow: one per law and slice with at least four different values of x."""
    found = []
    for law in (LAWS[name] for name in laws):
        for members in slices(of, law.free).values():
            points = gather(law, members, facts)
            if points is not None and points.x.size >= MIN_POINTS:
                found.append(describe(law, points))
    return found


def gather(law: Law, members: Sequence[Cell], facts: Facts) -> Points | None:
    """Points of `law` from one slice. Cells with the same x (two kinds of weights of one model) are averaged on logs."""
    by_x: dict[float, list[tuple[float, float, Cell]]] = {}
    for cell in members:
        x = x_of(law, cell, facts)
        estimate = cell.estimate(law.y)
        if x is None or estimate is None or estimate.value <= 0:
            continue
        # Two processes that agree by luck must not outweigh all others: the machine's noise is the least there is.
        least = facts.process_sd**2 / estimate.processes
        variance = MEMORY_RELATIVE_SD**2 if law.y == "memory_gb" else max(estimate.log_variance(facts), least)
        by_x.setdefault(x, []).append((estimate.value, variance, cell))
    if not by_x:
        return None
    xs = sorted(by_x)
    y = [math.exp(sum(math.log(v) for v, _, _ in by_x[x]) / len(by_x[x])) for x in xs]
    sigma = [math.sqrt(sum(var for _, var, _ in by_x[x])) / len(by_x[x]) for x in xs]
    cells = tuple(cell for x in xs for _, _, cell in by_x[x])
    return Points(np.array(xs), np.array(y), np.maximum(np.array(sigma), 1e-9), cells)


def x_of(law: Law, cell: Cell, facts: Facts) -> float | None:
    """The cell's place on the law's x axis; sizes in billions of parameters."""
    if law.x == "parameters":
        size = facts.parameters.get(cell.axes["model"])
        return None if size is None else size / BILLION
    value = cell.axes[law.x]
    return None if value is None else float(value)


def describe(law: Law, points: Points) -> dict[str, Any]:
    """One fit as plain values: parameters, goodness, residual check, hold-out errors, the range it holds for."""
    sigma = np.ones_like(points.y) if _is_absolute(law) else points.sigma
    fitted = law.form.fit(points.x, points.y, sigma)
    residual = points.y / fitted.predict(points.x) - 1
    n = int(points.x.size)
    return {
        "law": law.name,
        "title": law.title,
        "formula": law.formula,
        "slice": fixed_axes(points.cells),
        "x": law.x,
        "x_unit": law.x_unit,
        "y": law.y,
        "y_unit": law.y_unit,
        "parameters": _parameters(law, fitted),
        "n": n,
        "degrees_of_freedom": fitted.degrees,
        "weak": n < WEAK_BELOW,
        "r2": fitted.r2,
        "rmse_relative": float(np.sqrt(np.mean(residual**2))),
        "scatter_over_noise": None if _is_absolute(law) or fitted.degrees < 1 else fitted.scatter,
        "residual_check": curvature(law, points, fitted),
        "holdout": holdout(law, points, sigma),
        "range": [float(points.x.min()), float(points.x.max())],
        "points": [
            {"x": float(x), "y": float(y), "fitted": float(f)}
            for x, y, f in zip(points.x, points.y, fitted.predict(points.x), strict=True)
        ],
        "jobs": [job for cell in points.cells for job in cell.jobs],
        "remarks": _remarks(law, points, fitted),
    }


def predict(fit: dict[str, Any], x: float) -> dict[str, Any]:
    """The fitted curve at `x`, with a warning where that lies outside the range that was measured."""
    form = LAWS[fit["law"]].form
    values = [fit["parameters"][name]["value"] * (-1 if name in NEGATED else 1) for name in form.names]
    if len(values) == 3:
        y = values[0] + values[1] * x ** values[2]
    elif isinstance(form, Straight):
        y = values[0] + values[1] * x
    else:
        y = values[0] * x ** values[1]
    low, high = fit["range"]
    warning = None
    if not low <= x <= high:
        missed = fit["holdout"]["largest_left_out"]
        beyond = "" if missed is None else f"; without its largest point the fit missed that point by {missed:+.0%}"
        warning = f"{x:g} lies outside the measured range {low:g} to {high:g} {fit['x_unit']}: an extrapolation{beyond}"
    return {"x": x, "y": y, "warning": warning}


def curvature(law: Law, points: Points, fitted: Fitted) -> dict[str, Any]:
    """Does a bend remain in the residuals? F-test of an added square of ln x; p < 0.05 says the law's shape is wrong."""
    n, used = int(points.x.size), len(law.form.names)
    if n < used + 2:
        return {"p": None, "curved": None, "why": f"needs {used + 2} points, has {n}"}
    residuals = fitted.residuals
    u = np.log(points.x / np.exp(np.log(points.x).mean()))
    design = np.column_stack([np.ones(n), u, u**2])
    _, _, rest = linear(design, residuals, np.ones(n))
    before, after = float(residuals @ residuals), float(rest @ rest)
    scale = float(((points.y / points.sigma) ** 2).sum()) if not _is_absolute(law) else float((points.y**2).sum())
    if before <= 1e-18 * scale:
        return {"p": 1.0, "curved": False, "why": None}
    degrees = n - used - 1
    statistic = (before - after) / (after / degrees) if after > 0 else math.inf
    p = float(stats.f.sf(max(statistic, 0.0), 1, degrees))
    return {"p": p, "curved": p < CURVED_P, "why": None}


def holdout(law: Law, points: Points, sigma: Array) -> dict[str, Any]:
    """Relative errors at points the fit has not seen: each left out in turn, and the largest x (an extrapolation)."""
    n = int(points.x.size)
    if n - 1 < len(law.form.names):
        return {"median_error": None, "max_error": None, "largest_left_out": None}
    errors = []
    for left in range(n):
        keep = np.arange(n) != left
        curve = law.form.curve(points.x[keep], points.y[keep], sigma[keep])
        errors.append(float(curve(points.x[left : left + 1])[0] / points.y[left] - 1))
    sizes = [abs(error) for error in errors]
    return {"median_error": float(np.median(sizes)), "max_error": max(sizes), "largest_left_out": errors[-1]}


def batch_exponent_by_sequence(of: Sequence[Cell], facts: Facts) -> list[dict[str, Any]]:
    """beta(s) of T(b, s) = alpha(s) b^beta(s), beta(s) = beta_128 + slope · log2(s / 128), one entry per slice.

    One joint fit on logarithms with a level of its own for each s; needs two sequence lengths with two batch sizes each.
    """
    law, found = LAWS["throughput-vs-batch"], []
    for members in slices(of, ("batch_size", "sequence_length")).values():
        by_s: dict[float, Points] = {}
        for key in sorted({c.axes["sequence_length"] for c in members if c.axes["sequence_length"]}):
            points = gather(law, [c for c in members if c.axes["sequence_length"] == key], facts)
            if points is not None and points.x.size >= 2:
                by_s[float(key)] = points
        if len(by_s) >= 2 and sum(p.x.size for p in by_s.values()) >= len(by_s) + 4:
            found.append(_joint(by_s, members))
    return found


def _joint(by_s: dict[float, Points], members: Sequence[Cell]) -> dict[str, Any]:
    levels = list(by_s)
    rows, target, sigma = [], [], []
    for index, (s, points) in enumerate(by_s.items()):
        for x, y, noise in zip(points.x, points.y, points.sigma, strict=True):
            level = [1.0 if index == k else 0.0 for k in range(len(levels))]
            rows.append([*level, math.log(x), math.log(x) * math.log2(s / 128)])
            target.append(math.log(y))
            sigma.append(noise)
    best, covariance, residuals = linear(np.array(rows), np.array(target), np.array(sigma))
    degrees = len(target) - len(best)
    half = t_quantile(LEVEL, degrees) * np.sqrt(np.diag(covariance))
    names = {"beta_128": len(levels), "slope_per_doubling": len(levels) + 1}
    return {
        "law": "throughput-vs-batch-and-sequence",
        "formula": "T(b, s) = α(s) · b^β(s), β(s) = β(128) + slope · log2(s / 128)",
        "slice": fixed_axes(members),
        "parameters": {
            name: {"value": float(best[k]), "low": float(best[k] - half[k]), "high": float(best[k] + half[k])}
            for name, k in names.items()
        },
        "alpha": {f"{s:g}": math.exp(float(best[k])) for k, s in enumerate(levels)},
        "n": len(target),
        "rmse_relative": float(np.sqrt(np.mean((residuals * np.array(sigma)) ** 2))),
        "jobs": [job for cell in members for job in cell.jobs],
    }


def _is_absolute(law: Law) -> bool:
    return isinstance(law.form, Straight) and law.form.noise == ABSOLUTE


def _parameters(law: Law, fitted: Fitted) -> dict[str, Any]:
    found = {}
    for name, parameter in zip(law.form.names, fitted.parameters, strict=True):
        value, low, high = parameter.value, _bound(parameter.low), _bound(parameter.high)
        if name in NEGATED:
            value, low, high = -value, None if high is None else -high, None if low is None else -low
        paper = law.paper.get(name)
        found[name] = {"value": value, "low": low, "high": high, "paper": list(paper) if paper else None}
    return found


def _bound(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _remarks(law: Law, points: Points, fitted: Fitted) -> list[str]:
    remarks = []
    n = int(points.x.size)
    if n < WEAK_BELOW:
        remarks.append(f"weak: {n} points, {WEAK_BELOW} or more make a fit that can be relied on")
    if any(_open(parameter) for parameter in fitted.parameters):
        remarks.append("the data do not bound every parameter: an interval stays open")
    if not _is_absolute(law) and fitted.degrees >= 1 and fitted.scatter > 3:
        remarks.append(f"points scatter {fitted.scatter:.1f} times more than their errors: the law misses something")
    return remarks


def _open(parameter: Parameter) -> bool:
    return _bound(parameter.low) is None or _bound(parameter.high) is None
