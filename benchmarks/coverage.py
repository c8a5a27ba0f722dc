"""What the 95 % intervals cover on simulated series, and what the stopping rule does to them.

Prints the table that docs/statistics.md states. `python benchmarks/coverage.py [--runs N]`.
"""

from __future__ import annotations

import argparse
import json

from tests.support.coverage import SERIES, fixed_coverage, stopped_coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="simulated cells per line")
    runs = parser.parse_args().runs
    table = {}
    for name in SERIES:
        table[name] = {
            "all kept, n = 10": fixed_coverage(name, 10, runs, exclude=False),
            "all kept, n = 30": fixed_coverage(name, 30, runs, exclude=False),
            "marked left out, n = 10": fixed_coverage(name, 10, runs, exclude=True),
            "marked left out, n = 30": fixed_coverage(name, 30, runs, exclude=True),
            "stopping rule, 10 to 30": stopped_coverage(name, max(runs // 4, 500)),
        }
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
