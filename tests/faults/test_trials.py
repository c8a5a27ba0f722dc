"""Faults one at a time on a small lab: each must be survived by itself, within its time, before a campaign mixes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import campaign
from tests.support.faults.faults import FAULTS
from tests.support.faults.lab import Lab, Plan, lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SMALL = Plan({"head": (), "a": ("t4:1",), "b": ("t4:1", "a100:1"), "c": ("rtx-4090:1",)}, behind_cable="c")
NOTHING_DECLARED = campaign.Dose(declared=(), alone=(), real=0)
SEED = 3
ALONE = (
    "node-killer", "database-disk", "ray-one-way", "ray-one-way-long", "node-database-long", "actor-stop", "notifications",
    "connections",
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


def test_an_actor_that_slept_over_a_cell_that_hangs_has_its_device_back_when_that_cell_is_over(small: Lab) -> None:
    """The one recovery that takes longer: the lease lapses while the actor sleeps, and its cell ends by its own deadline."""
    dose = campaign.Dose(declared=(), alone=("simulated/hang",) * 3, real=0)
    outcome = campaign.run(small, ["actor-stop"] * 3, jobs=30, seed=SEED, dose=dose, say=False)
    assert outcome.is_good, campaign.report(outcome)
