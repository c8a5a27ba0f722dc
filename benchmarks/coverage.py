"""What the 95 % intervals cover on simulated cells and sweeps, and how often comparisons are right.

Prints the tables that docs/statistics.md states. `python benchmarks/coverage.py [cells|fits|comparisons …]`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.support.comparison_rates import false_alarms, power
from tests.support.coverage import SERIES, fixed_coverage, stopped_coverage
from tests.support.fit_coverage import FITS, fit_coverage

FLOOR_FROM = 10
PROCESSES = (1, 2, 3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--runs", type=int, default=20_000, help="simulated cells per line")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps per fit and comparison")
    options = parser.parse_args()
    unknown = [name for name in options.tables if name not in TABLES]
    if unknown:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    runs = {"cells": options.runs, "fits": options.sweeps, "comparisons": options.sweeps}
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


TABLES = {"cells": of_cells, "fits": of_fits, "comparisons": of_comparisons}


if __name__ == "__main__":
    main()
