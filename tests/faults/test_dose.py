"""What a campaign must consist of to count: every kind of fault, in the doses of the fault table."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.support.faults import campaign
from tests.support.faults.campaign import Outcome
from tests.support.faults.faults import FAULTS
from tests.support.faults.field import Field
from tests.support.faults.lab import Lab
from tests.support.faults.recovery import Recovery
from tests.support.faults.workload import Client, Definitions


def test_a_campaign_without_a_single_fault_of_a_kind_is_not_good() -> None:
    outcome = Outcome(1, injected=Counter(child=3), without_target=Counter(node=2, child=1))
    assert not outcome.is_good
    assert outcome.failures == ["node found no target and never happened"]
    assert Outcome(1, injected=Counter(child=3), without_target=Counter(child=1), impossible=Counter(cable=5)).is_good


def test_a_report_names_what_was_impossible_and_what_found_no_target() -> None:
    outcome = Outcome(1, impossible=Counter(cable=5), without_target=Counter(node=2))
    told = campaign.report(outcome).splitlines()
    assert "not possible here: cable 5" in told
    assert "no target found: node 2" in told
    assert "FAILED node found no target and never happened" in told


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_of_220_has_every_kind_at_least_once(seed: int) -> None:
    order = campaign.schedule(220, seed)
    assert len(order) >= 220
    assert set(order) == set(FAULTS)


def test_the_full_schedule_has_the_doses_of_the_table() -> None:
    times = Counter(campaign.schedule(2000, 1, full=True))
    assert (times["api"], times["fleet"]) >= (1000, 100)
    assert set(times) == set(FAULTS)


def test_what_surviving_a_long_fault_takes_is_counted_from_its_end() -> None:
    recovery = Recovery("partition", [], frozenset({"node"}), limit_s=90.0)
    recovery.looks.append(recovery.is_healed)
    recovery.since -= 180.0
    assert recovery.is_still_on and not recovery.is_over()
    recovery.heal()
    recovery.looks.append(lambda: False)
    assert not recovery.is_over() and not recovery.is_still_on
    assert recovery.seconds < 1.0


def test_services_are_cut_off_for_as_long_as_the_table_says_in_its_own_campaign_only() -> None:
    def times(sleep_s: float) -> list[float]:
        on = Field(
            Lab.__new__(Lab), Client.__new__(Client), Definitions(1, ("t4",)), random.Random(1), set(), 180.0, sleep_s
        )
        return [on.cut_off_s() for _ in range(100)]

    assert max(times(0.0)) <= 12.0
    assert 10 <= times(120.0).count(180.0) <= 50


def test_the_campaigns_lab_has_four_nodes_three_of_which_measure_and_may_be_killed_at_once() -> None:
    lab = Lab.__new__(Lab)
    lab.plan = campaign.FULL
    assert (lab.head, lab.nodes) == ("head", ["a", "b", "c"])
    assert len(lab.device_ids()) == len(set(lab.device_ids())) == 5
    assert {"most-nodes", "head", "database-away-long"} <= {name for name, kind in FAULTS.items() if kind.alone}
