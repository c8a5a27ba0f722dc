"""Faults one at a time on a small lab: each must be survived by itself, within its time, before a campaign mixes them.

make test-fault-trials
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import campaign
from tests.support.faults.faults import FAULTS
from tests.support.faults.lab import Lab, Plan, lab

pytestmark = [pytest.mark.trials, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SMALL = Plan({"head": (), "a": ("t4:1",), "b": ("t4:1", "a100:1"), "c": ("rtx-4090:1",)}, behind_cable="c")
NOTHING_DECLARED = campaign.Dose(declared=(), alone=(), real=0)
SEED = 3
ALONE = (
    "node-killer", "database-disk", "ray-one-way", "ray-one-way-long", "node-database-long", "actor-stop", "notifications",
    "connections", "most-nodes", "database-away-long",
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Iterator[Lab]:
    with lab(SMALL) as built:
        yield built


@pytest.mark.parametrize("name", ALONE)
def test_a_fault_alone_is_survived_in_its_time(small: Lab, name: str) -> None:
    if not FAULTS[name].needs(small):
        pytest.fail(f"{name} is not possible on this machine: it needs root, iptables and ip")
    outcome = campaign.run(small, [name], jobs=30, seed=SEED, dose=NOTHING_DECLARED, say=False)
    assert outcome.is_good, campaign.report(outcome)
    assert len(outcome.recoveries) == 1
