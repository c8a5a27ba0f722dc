"""What the 95 % intervals cover on simulated series, and what the stopping rules do to them.

Prints the tables that docs/statistics.md states, and behind them what docs/measured.md states of the rule by which
benchmarks/fidelity.py adds pairs. `python benchmarks/coverage.py [--runs N]`, some ten minutes.
"""

from __future__ import annotations

import argparse
import json

from tests.support.coverage import SERIES, fixed_coverage, stopped_coverage
from tests.support.pairs import NOISE, simulate

# Equal; well inside the bounds of 0.98 and 1.02; near one; at it; outside.
TRUTHS = (1.0, 0.99, 0.985, 0.98, 0.975)


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
            "stopping rule, 5 to 6": stopped_coverage(name, max(runs // 4, 500), least=5, most=6),
        }
    print(json.dumps(table, indent=1))
    for noise in NOISE:
        for truth in TRUTHS:
            print(
                json.dumps(
                    {"pairs": noise, "true ratio": truth} | simulate(noise, truth, max(runs // 20, 100)).shares()
                )
            )


if __name__ == "__main__":
    main()
