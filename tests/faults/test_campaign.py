"""The whole campaign: `make test-faults`, and with the doses of the fault table `make test-faults-full`."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.faults import campaign
from tests.support.faults.faults import FAULTS as KINDS
from tests.support.faults.lab import lab

pytestmark = pytest.mark.faults

FULL = bool(os.environ.get("EFFILLM_FAULTS_FULL"))
FAULTS = int(os.environ.get("EFFILLM_FAULTS", "220"))
# Of the faults that are scheduled some may find no target: 200 of 220 are the campaign that was asked for.
LEAST_FAULTS = FAULTS * 10 // 11
JOBS = int(os.environ.get("EFFILLM_FAULT_JOBS", "2000"))
SEED = int(os.environ.get("EFFILLM_FAULT_SEED") or random.SystemRandom().randrange(10**6))
LOGS = os.environ.get("EFFILLM_FAULT_LOGS")


@pytest.mark.timeout(24 * 3600)
def test_every_fault_is_survived(capfd: pytest.CaptureFixture[str]) -> None:
    order = campaign.schedule(FAULTS, SEED, full=FULL)
    dose = campaign.Dose(long_s=180.0, sleep_s=120.0) if FULL else campaign.Dose()
    with capfd.disabled():
        print(f"\nseed {SEED}: {len(order)} faults, at least {JOBS} jobs", flush=True)
        with lab(replace(campaign.FULL, seed=SEED), Path(LOGS) if LOGS else None) as built:
            possible = {name for name, kind in KINDS.items() if kind.needs(built)}
            outcome = campaign.run(built, order, JOBS, SEED, dose=dose)
        print(campaign.report(outcome), flush=True)
    assert outcome.is_good, outcome.failures
    assert len(outcome.recoveries) >= LEAST_FAULTS
    assert sum(outcome.jobs.values()) >= JOBS
    assert set(outcome.injected) == possible
    if FULL:
        doses = {name: kind.full for name, kind in KINDS.items() if name in possible}
        assert {name: outcome.injected[name] for name in doses if outcome.injected[name] < doses[name]} == {}
