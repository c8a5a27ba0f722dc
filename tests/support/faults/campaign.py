"""A seeded campaign: faults in random order on a lab that is at work, then quiet, then the invariants, then a table.

    python -m tests.support.faults.campaign --faults 220 --jobs 2000 --seed 7 --logs build/faults

The schedule (which fault after which, when, targets and doses by the same dice) follows from the seed; the machine's own
timing does not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy

from effillm_server.ledger.leases import RENEWAL
from tests.support.faults import invariants
from tests.support.faults.ends import Infliction
from tests.support.faults.faults import FAULTS
from tests.support.faults.field import Field
from tests.support.faults.invariants import Findings
from tests.support.faults.lab import Lab, Plan, lab
from tests.support.faults.recovery import HUNG_CELL_S, Recovery, hung_cells
from tests.support.faults.workload import CLASSES, Client, Definitions

AT_ONCE = 3
# How often in a row a kind of fault looks for a target before the campaign goes on without it.
TRIES = 200
# Jobs of each class: fewer and a device might wait for work, many more and the end of a campaign would be a long one.
LEAST_WAITING = 12
FULL = Plan(
    {"head": (), "a": ("t4:2",), "b": ("t4:1", "a100:1"), "c": ("rtx-4090:1",)}, behind_cable="c",
)  # fmt: skip
# Sweeps of models that break by themselves; hanging ones hold a device until their deadline, so there are few.
DECLARED = (
    ("simulated/crash", "simulated/exit", "simulated/fail"),
    ("simulated/oom-above-300", "simulated/host-oom-above-300", "simulated/unsupported"),
    ("simulated/oom-above-300", "simulated/crash", "simulated/flood"),
)
DECLARED_LONG = ("simulated/stall", "simulated/orphan", "simulated/ignore-term")
# How soon the ledger knows how a child ended that was killed on an undisturbed lab.
CLASSIFIED_WITHIN_S = 2.0
# How soon each must be over, as docs/reliability.md says. Faults that come at the same time put it off by as long as they last.
AIMS_S = {
    "child killed": 75.0, "supervisor killed": 75.0, "actor killed": 75.0, "raylet killed": 90.0, "node killed": 90.0,
    "raylet killed, left as a zombie": 90.0, "three nodes of four killed": 90.0, "Ray head killed": 180.0,
    "active fleet killed": 10.0, "both fleets killed": 30.0, "Postgres restarted (fast)": 30.0,
    "Postgres restarted (immediate)": 30.0, "Postgres restarted (killed)": 30.0, "Postgres away for seconds": 30.0,
    "Postgres away for 30 s": 30.0, "actors cut off from Postgres": 60.0, "fleet cut off from Postgres": 60.0,
    "API cut off from Postgres": 60.0, "actors cut off from Postgres for long": 60.0, "node and Ray apart in one direction": 60.0,
    "node and Ray apart in one direction for long": 90.0, "disk full for Postgres": 60.0,
    "node unplugged for seconds": 60.0, "node unplugged for a minute": 90.0, "idle transaction left open": 15.0,
}  # fmt: skip
ATTEMPTS = """
SELECT coalesce(reason, outcome), count(*),
    percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at))
FROM attempt WHERE ended_at IS NOT NULL GROUP BY 1 ORDER BY 2 DESC
"""
LATE = f"SELECT count(*) FROM rejected_outcome WHERE outcome_digest <> '{RENEWAL}'"


@dataclass(frozen=True)
class Dose:
    """What breaks by itself: sweeps of these models, single cells of those, and how many sweeps really run a model."""

    declared: Sequence[tuple[str, ...]] = DECLARED
    alone: Sequence[str] = DECLARED_LONG
    real: int = 2
    long_s: float = 30.0
    sleep_s: float = 0.0


SHORT = Dose(alone=(), real=0)


@dataclass
class Outcome:
    """What a campaign found."""

    seed: int
    seconds: float = 0.0
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    late_trees: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    jobs: dict[str, int] = field(default_factory=dict)
    declared: list[tuple[str, int, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # Kinds of faults: injected, impossible on this machine, and given up because their target never was there.
    injected: Counter[str] = field(default_factory=Counter)
    impossible: Counter[str] = field(default_factory=Counter)
    without_target: Counter[str] = field(default_factory=Counter)
    inflicted: list[Infliction] = field(default_factory=list)

    @property
    def never(self) -> list[str]:
        """Kinds of the schedule that this machine allows and that never happened: a campaign without them shows nothing."""
        return [f"{kind} found no target and never happened" for kind in self.without_target if not self.injected[kind]]

    @property
    def failures(self) -> list[str]:
        return [
            *self.findings.sentences, *self.not_recovered, *self.late_trees, *self.late, *self.problems, *self.never,
        ]  # fmt: skip

    @property
    def is_good(self) -> bool:
        return not self.failures

    @property
    def is_safe(self) -> bool:
        """Whether all was survived, however long it took: what can be asked of a busy machine."""
        return not (*self.findings.sentences, *self.not_recovered, *self.problems, *self.never)


def run(lab: Lab, schedule: Sequence[str], jobs: int, seed: int, *, dose: Dose = Dose(), say: bool = True) -> Outcome:
    """Inject the schedule while at least `jobs` jobs go through, wait for quiet, check."""
    began, outcome, client = time.monotonic(), Outcome(seed), Client(lab.api)
    declared_classes = {offer.partition(":")[0] for offers in lab.plan.nodes.values() for offer in offers}
    classes = tuple(name for name in CLASSES if name in declared_classes)
    work = Work(lab, client, Definitions(seed, classes))
    work.begin(dose)
    try:
        lab.wait("every device is at work", lambda: work.devices_at_work() >= len(lab.device_ids()), 120)
        on = Field(lab, client, Definitions(seed + 1, classes), random.Random(seed + 2), set(), dose.long_s,
                   dose.sleep_s)  # fmt: skip
        _inject(on, schedule, outcome, work, say=say)
        while work.total < jobs:
            work.top_up()
            lab.tend()
            time.sleep(0.1)
        come_to_rest(lab, client, outcome)
        _judge(lab, client, outcome)
    finally:
        client.close()
    outcome.seconds = time.monotonic() - began
    return outcome


def schedule(times: int, seed: int, kinds: Sequence[str] | None = None, *, full: bool = False) -> list[str]:
    """`times` faults in random order, of these kinds by their weights; each kind that is meant to occur does.

    `full`: those that the fault table counts come at least as often as it says.
    """
    chosen = {name: FAULTS[name] for name in (kinds or FAULTS)}
    total = sum(kind.times for kind in chosen.values())
    order = [
        name for name, kind in chosen.items()
        for _ in range(max(1, round(kind.times * times / total), kind.full if full else 0))
    ]  # fmt: skip
    random.Random(seed).shuffle(order)
    return order


class Work:
    """Keeps enough jobs waiting that every device is always busy."""

    def __init__(self, lab: Lab, client: Client, definitions: Definitions) -> None:
        self._lab = lab
        self._client = client
        self._definitions = definitions
        self._looked = 0.0

    @property
    def total(self) -> int:
        return sum(one.total for one in self._client.accepted.values())

    def begin(self, dose: Dose) -> None:
        for models in dose.declared:
            self._client.send(self._definitions.with_faults(models))
        for model in dose.alone:
            self._client.send(self._definitions.one_cell(model))
        for _ in range(dose.real):
            self._client.send(self._definitions.real())
        self._client.send(self._definitions.ordinary(self._definitions.classes))

    def devices_at_work(self) -> int:
        self.top_up()
        return int(self._lab.database.scalar("SELECT count(DISTINCT device_id) FROM attempt"))

    def top_up(self) -> None:
        if self._client.is_busy or time.monotonic() - self._looked < 0.5:
            return
        self._looked = time.monotonic()
        try:
            rows = self._lab.database.read(
                "SELECT hardware, count(*) FROM job WHERE state = 'pending' GROUP BY hardware"
            )
        except sqlalchemy.exc.DBAPIError:
            return
        waiting = {str(row[0]): int(row[1]) for row in rows}
        if short := [name for name in self._definitions.classes if waiting.get(name, 0) < LEAST_WAITING]:
            self._client.send(self._definitions.ordinary(short))


def _inject(on: Field, schedule: Sequence[str], outcome: Outcome, work: Work, *, say: bool) -> None:
    waiting, open_, next_at = list(schedule), list[Recovery](), 0.0
    tries: Counter[str] = Counter()
    looked = time.monotonic()
    while waiting or open_:
        passed, looked = time.monotonic() - looked, time.monotonic()
        for one in open_ if len(open_) > 1 else ():
            one.disturbed_s += passed
        on.lab.tend()
        work.top_up()
        open_ = [one for one in open_ if not _is_over(one, outcome, say=say)]
        on.taken = {name for one in open_ for name in one.touches} | ({"alone"} if _alone(open_) else set())
        if waiting and time.monotonic() >= next_at and _may(waiting[0], open_, on):
            name = waiting.pop(0)
            if not FAULTS[name].needs(on.lab):
                outcome.impossible[name] += 1
            elif (recovery := _attempt(name, on)) is not None:
                outcome.injected[name] += 1
                tries[name] = 0
                open_.append(recovery)
                next_at = time.monotonic() + on.dice.uniform(0.3, 2.0)
            elif tries[name] < TRIES:
                # Its target is not there right now: something else first.
                tries[name] += 1
                waiting.insert(min(len(waiting), on.dice.randrange(1, 4)), name)
                next_at = time.monotonic() + 0.2
            else:
                outcome.without_target[name] += 1
        time.sleep(0.05)


def _attempt(name: str, on: Field) -> Recovery | None:
    """The fault, injected; None when its target is not there right now."""
    try:
        recovery = FAULTS[name].inject(on)
    except sqlalchemy.exc.DBAPIError:
        return None  # it wanted to look at a ledger that is away
    if recovery is not None:
        recovery.kind, recovery.alone = name, FAULTS[name].alone
        recovery.allowance_s = _allowance_s(recovery, on)
    return recovery


def _allowance_s(recovery: Recovery, on: Field) -> float:
    """How much longer a device of it may be kept by a cell that hangs, whatever the fault."""
    names = on.lab.device_ids() if recovery.alone else recovery.touches
    try:
        return HUNG_CELL_S if hung_cells(on.lab, names) else 0.0
    except sqlalchemy.exc.DBAPIError:
        return HUNG_CELL_S if recovery.alone else 0.0


def _may(name: str, open_: list[Recovery], on: Field) -> bool:
    if not open_:
        return True
    if FAULTS[name].alone or _alone(open_):
        return False
    service = {"fleet": "fleet", "fleets": "fleet", "fleet-stop": "fleet", "fleet-database": "fleet", "api": "api",
               "api-database": "api"}.get(name)  # fmt: skip
    return len(open_) < AT_ONCE and service not in on.taken and not any(one.kind == name for one in open_ if one.lasts)


def _alone(open_: list[Recovery]) -> bool:
    return any(one.alone for one in open_)


def _is_over(recovery: Recovery, outcome: Outcome, *, say: bool) -> bool:
    if recovery.is_over():
        seconds = recovery.seconds
        outcome.recoveries.append((recovery.name, seconds))
        outcome.inflicted.append(recovery.infliction())
        if recovery.doomed and recovery.gone_s is not None and recovery.gone_s > recovery.gone_within_s:
            outcome.late_trees.append(f"{recovery.name}: its processes lived for {recovery.gone_s:.1f} s")
        classified, aim = recovery.classified_s, AIMS_S.get(recovery.name)
        if classified is not None and classified > CLASSIFIED_WITHIN_S + recovery.disturbed_s:
            outcome.late.append(f"{recovery.name}: the outcome was known after {classified:.1f} s")
        if aim is not None and seconds > recovery.may_take(aim):
            outcome.late.append(f"{recovery.name}: took {seconds:.1f} s of at most {recovery.may_take(aim):.0f}")
        if say:
            print(f"  {len(outcome.recoveries):4} {recovery.name}: {seconds:.1f} s", flush=True)
        return True
    if not recovery.is_still_on and recovery.seconds > recovery.may_take(recovery.limit_s):
        outcome.inflicted.append(recovery.infliction())
        outcome.not_recovered.append(
            f"{recovery.name} ({', '.join(sorted(recovery.touches))}) after {recovery.seconds:.0f} s"
        )
        if say:
            print(f"  !!!! {outcome.not_recovered[-1]}", flush=True)
        return True
    return False


def come_to_rest(lab: Lab, client: Client, outcome: Outcome, within_s: float = 600.0) -> None:
    """Returns when every submission is answered, every job has ended and every device is free, or time is up."""

    def is_quiet() -> bool:
        if client.is_busy:
            return False
        try:
            left = lab.database.scalar("SELECT count(*) FROM job WHERE state IN ('pending', 'leased')")
            busy = lab.database.scalar("SELECT count(*) FROM device WHERE state <> 'free'")
            open_ = lab.database.scalar("SELECT count(*) FROM sweep WHERE finished_at IS NULL")
        except sqlalchemy.exc.DBAPIError:
            return False
        # A device is free a moment before its warm child has been put away.
        return (left, busy, open_) == (0, 0, 0) and not invariants.orphans(invariants.witnessed(lab.witness_dir))

    try:
        lab.wait("the lab is quiet", is_quiet, within_s)
    except AssertionError as error:
        outcome.problems.append(str(error))


def _judge(lab: Lab, client: Client, outcome: Outcome) -> None:
    spools = [lab.folder / "data" / name / "spool" for name in lab.plan.nodes]
    with lab.database.engine.connect() as c:
        outcome.findings = invariants.check(
            c, client.accepted, lab.witness_dir, lab.lock_dir, spools, outcome.inflicted
        )
        outcome.jobs = {str(state): int(n) for state, n in c.execute(
            sqlalchemy.text("SELECT state, count(*) FROM job GROUP BY state ORDER BY state"))}  # fmt: skip
        outcome.declared = [(str(row[0]), int(row[1]), float(row[2])) for row in c.execute(sqlalchemy.text(ATTEMPTS))]
        outcome.counts["late outcomes refused and kept"] = int(c.execute(sqlalchemy.text(LATE)).scalar_one())
    outcome.counts["answers withheld"] = sum(link.answers_withheld for link in lab.proxy.links.values())
    outcome.counts["notifications dropped"] = sum(link.notifications_dropped for link in lab.proxy.links.values())
    outcome.counts["submissions repeated"] = sum(one.requests > 1 for one in client.sent)
    outcome.problems += client.problems


def report(outcome: Outcome) -> str:
    """The campaign as a table."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, seconds in outcome.recoveries:
        times[name].append(seconds)
    width = max(map(len, times), default=5)
    lines = [f"{'fault':{width}}  times  recovered in s: median  worst  aim"]
    for name, found in sorted(times.items(), key=lambda item: -len(item[1])):
        aim = AIMS_S.get(name)
        late = sum(seconds > aim for seconds in found) if aim is not None else 0
        told = "" if aim is None else f"  {aim:3g}" + (f", {late} later" if late else "")
        lines.append(f"{name:{width}}  {len(found):5}  {statistics.median(found):22.1f}  {max(found):5.1f}{told}")
    lines += [
        "",
        "attempts: " + ", ".join(f"{reason} {n} (median {seconds:.1f} s)" for reason, n, seconds in outcome.declared),
    ]
    lines += ["jobs: " + ", ".join(f"{state} {n}" for state, n in outcome.jobs.items())]
    lines += ["seen: " + ", ".join(f"{name} {n}" for name, n in outcome.counts.items())]
    lines += [
        f"seed {outcome.seed}: {len(outcome.recoveries)} faults over {sum(outcome.jobs.values())} jobs in {outcome.seconds:.0f} s",
        "acceptance: " + ", ".join(f"{name} {n}" for name, n in outcome.findings.counts.items())
        + f", not recovered {len(outcome.not_recovered)}, late {len(outcome.late)},"
        f" trees that lived on {len(outcome.late_trees)}",
    ]  # fmt: skip
    for said, kinds in (("not possible here", outcome.impossible), ("no target found", outcome.without_target)):
        lines.append(f"{said}: " + (", ".join(f"{name} {n}" for name, n in kinds.items()) or "none"))
    lines += [f"FAILED {line}" for line in outcome.failures]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=220)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", nargs="*", choices=list(FAULTS))
    parser.add_argument(
        "--short", action="store_true", help="no jobs that hang until their deadline, none that are real"
    )
    parser.add_argument("--logs", type=Path)
    arguments = parser.parse_args()
    order = schedule(arguments.faults, arguments.seed, arguments.only)
    print(f"seed {arguments.seed}: {len(order)} faults", flush=True)
    plan = Plan(FULL.nodes, FULL.fleets, FULL.ttl_s, arguments.seed, FULL.behind_cable)
    with lab(plan, arguments.logs) as built:
        outcome = run(built, order, arguments.jobs, arguments.seed, dose=SHORT if arguments.short else Dose())
    print(report(outcome))
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
