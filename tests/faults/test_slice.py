"""A small dose of the campaign, so that every test run breaks a real lab a little; the whole is `make test-faults`."""

from __future__ import annotations

import os

import pytest

from tests.support.faults import campaign
from tests.support.faults.lab import Plan, lab

SLICE = Plan({"head": (), "a": ("t4:1", "a100:1")})
DOSE = campaign.Dose(declared=(), alone=("simulated/unsupported", "simulated/flood"), real=0)
SEED = int(os.environ.get("EFFILLM_FAULT_SEED") or "11")


@pytest.mark.timeout(420)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_nothing_is_lost_twice_or_side_by_side_while_processes_and_database_are_killed() -> None:
    order = ["answers", "child", "fleet", "actor", "supervisor", "database"]
    with lab(SLICE) as built:
        outcome = campaign.run(built, order, jobs=30, seed=SEED, dose=DOSE, say=False)
    # How soon is asked by `make test-faults`, which has the machine for itself.
    assert outcome.is_safe, campaign.report(outcome)
    assert len(outcome.recoveries) == len(order)
