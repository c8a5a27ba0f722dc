"""How jobs must have ended whose model declares its own end: by the cell's size, in the ledger's words, attempt by attempt.

An attempt may end otherwise only where a fault of the campaign reached its device meanwhile.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from tests.support.faults.workload import HANGING

# A fault's effects begin before it is written down and may show a little after it counts as survived.
AROUND = timedelta(seconds=15)
# What an attempt is said to have come to when somebody else ended it.
DISTURBED = (("fault", "lost"), ("fault", "crashed"))
CRASHES = {
    "simulated/fail": "the simulated model declares an error that is no answer",
    "simulated/crash": "ended by SIGABRT",
    "simulated/exit": "exited with code 3",
}
_JOBS = text("""
SELECT j.id, j.model, j.state, j.reason, j.batch_size * (coalesce(j.sequence_length, 0) + j.generate_tokens) AS tokens,
    o.model AS origin, o.reason AS origin_reason
FROM job j LEFT JOIN job o ON o.id = j.implied_by
WHERE j.sweep_id = ANY(:sweeps) AND j.model LIKE 'simulated/%' AND j.state IN ('measured', 'infeasible', 'failed') ORDER BY j.id
""")
_ATTEMPTS = text("""
SELECT t.job_id, t.fence, t.device_id, t.started_at, t.ended_at, t.outcome, t.reason, t.message
FROM attempt t JOIN job j ON j.id = t.job_id WHERE j.sweep_id = ANY(:sweeps) AND t.ended_at IS NOT NULL
ORDER BY t.job_id, t.fence
""")


@dataclass(frozen=True)
class Infliction:
    """A fault as it may explain an attempt's end: what it touched and from when until when. `everywhere`: every device."""

    touches: frozenset[str]
    everywhere: bool
    began: datetime
    ended: datetime

    def explains(self, device: str, began: datetime, ended: datetime) -> bool:
        reaches = self.everywhere or device in self.touches
        return reaches and self.began - AROUND <= ended and began <= self.ended + AROUND


@dataclass(frozen=True)
class End:
    """What a model declares: the job's state, its reason where that is fixed, and how an attempt says that this is it."""

    state: str
    reason: str | None
    outcome: str
    says: str = ""

    def is_said_by(self, attempt: Row[Any]) -> bool:
        if attempt.outcome != self.outcome or self.says not in (attempt.message or ""):
            return False
        return self.outcome == "measured" or attempt.reason == self.reason


MEASURED = End("measured", None, "measured")


def declared(model: str, tokens: int) -> End | None:
    """What a cell of this many tokens, batch x (prompt + generated), declares; None for a model that declares nothing."""
    if found := re.fullmatch(r"simulated/(host-)?oom-above-([0-9]+)", model):
        side = "host" if found[1] else "device"
        is_beyond = tokens > int(found[2])
        return End("infeasible", f"out_of_{side}_memory", "infeasible") if is_beyond else MEASURED
    if model in CRASHES:
        return End("failed", "crashed", "fault", CRASHES[model])
    if model in HANGING:
        return End("failed", "hung", "fault", "made no progress and was ended")
    return {
        "simulated/unsupported": End("infeasible", "unsupported", "infeasible"),
        "simulated/flood": MEASURED,
        "simulated/kills-its-node": End("failed", "lost", "fault"),
    }.get(model)


def misjudged(c: Connection, sweeps: Collection[str], inflicted: Sequence[Infliction] = ()) -> list[str]:
    """Jobs of these sweeps that ended otherwise than they declare, and attempts that did without any fault near them."""
    attempts: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in c.execute(_ATTEMPTS, {"sweeps": list(sweeps)}):
        attempts[row.job_id].append(row)
    found = []
    for job in c.execute(_JOBS, {"sweeps": list(sweeps)}):
        end = declared(job.model, job.tokens)
        if end is not None:
            found += _of_job(job, end) + _of_attempts(job, end, attempts[job.id], inflicted)
    return found


def _of_job(job: Row[Any], end: End) -> list[str]:
    if job.state != end.state:
        return [
            f"job {job.id} of {job.model} and {job.tokens} tokens ended {job.state} ({job.reason}), not {end.state}"
        ]
    # A job that was given up has the reason of its last attempt, which is judged with the others.
    if end.state != "infeasible" or job.reason == end.reason:
        return []
    if job.reason == "implied" and (job.origin, job.origin_reason) == (job.model, end.reason):
        return []
    return [f"job {job.id} of {job.model} and {job.tokens} tokens is {job.state} by {job.reason}, not {end.reason}"]


def _of_attempts(job: Row[Any], end: End, attempts: Sequence[Row[Any]], inflicted: Sequence[Infliction]) -> list[str]:
    found = [
        f"job {job.id} of {job.model}, fence {one.fence}: {one.outcome} ({one.reason}) on {one.device_id} without a fault near: "
        f"{one.message}"
        for one in attempts
        if not end.is_said_by(one) and not _is_explained(one, inflicted)
    ]
    # One that is over in a second cannot be disturbed three times in a row; one that hangs for minutes can.
    if job.reason != "implied" and job.model not in HANGING and not any(end.is_said_by(one) for one in attempts):
        found.append(f"job {job.id} of {job.model} never ended as it declares: {[one.reason for one in attempts]}")
    return found


def _is_explained(attempt: Row[Any], inflicted: Sequence[Infliction]) -> bool:
    return (attempt.outcome, attempt.reason) in DISTURBED and any(
        one.explains(attempt.device_id, attempt.started_at, attempt.ended_at) for one in inflicted
    )
