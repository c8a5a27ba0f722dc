"""What the 95 % intervals cover on simulated cells and sweeps, and how often comparisons are right.

Prints the tables that docs/statistics.md states, and what docs/measured.md states of the rule by which benchmarks/fidelity.py
adds pairs. `python benchmarks/coverage.py [cells|fits|comparisons|pairs …]`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.support.comparison_rates import false_alarms, power
from tests.support.coverage import SERIES, fixed_coverage, stopped_coverage
from tests.support.fit_coverage import FITS, fit_coverage
from tests.support.pairs import NOISE, simulate

FLOOR_FROM = 10
PROCESSES = (1, 2, 3, 5, 10)
# Equal; well inside the bounds of 0.98 and 1.02; near one; at it; outside.
TRUTHS = (1.0, 0.99, 0.985, 0.98, 0.975)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--runs", type=int, default=20_000, help="simulated cells per line")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps per fit and comparison")
    options = parser.parse_args()
    unknown = [name for name in options.tables if name not in TABLES]
    if unknown:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    runs = {"cells": options.runs, "fits": options.sweeps, "comparisons": options.sweeps, "pairs": options.sweeps}
    print(json.dumps({name: TABLES[name](runs[name]) for name in options.tables}, indent=1, ensure_ascii=False))


def of_cells(runs: int) -> dict[str, Any]:
    """Intervals of one result, with and without outliers, and under the stopping rule."""
    return {
        name: {
            "all kept, n = 10": fixed_coverage(name, 10, runs, exclude=False),
            "all kept, n = 30": fixed_coverage(name, 30, runs, exclude=False),
            "marked left out, n = 10": fixed_coverage(name, 10, runs, exclude=True),
            "marked left out, n = 30": fixed_coverage(name, 30, runs, exclude=True),
            "stopping rule, 10 to 30": stopped_coverage(name, max(runs // 4, 500)),
            "stopping rule, 5 to 6": stopped_coverage(name, max(runs // 4, 500), least=5, most=6),
        }
        for name in SERIES
    }


def of_fits(sweeps: int) -> dict[str, Any]:
    """Intervals of every fit's parameters."""
    return {name: {"points": fit.points, **fit_coverage(name, sweeps)} for name, fit in FITS.items()}


def of_comparisons(sweeps: int) -> dict[str, Any]:
    """False alarms among four equal cells, and power at the stated minimum detectable change of one of them."""
    return {
        "false alarms": {f"{count} processes a side": false_alarms(count, sweeps) for count in PROCESSES}
        | {f"1 process, floor measured in {FLOOR_FROM}": false_alarms(1, sweeps, FLOOR_FROM)},
        "power": {f"{count} processes a side": power(count, sweeps) for count in PROCESSES},
    }


def of_pairs(runs: int) -> dict[str, Any]:
    """Of the rule by which pairs are added: how often it decides what, and what its intervals then cover."""
    return {
        f"{noise}, true ratio {truth}": simulate(noise, truth, runs).shares() for noise in NOISE for truth in TRUTHS
    }


TABLES = {"cells": of_cells, "fits": of_fits, "comparisons": of_comparisons, "pairs": of_pairs}


if __name__ == "__main__":
    main()
