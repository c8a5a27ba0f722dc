"""What must hold once everything has settled, whatever happened: read from the ledger, the witnesses' logs and /proc.

Each check returns sentences, one for every violation; none is an empty list. They know nothing of how a campaign breaks
things, so that any test may ask them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.support.faults.ends import Infliction, misjudged
from tests.support.faults.workload import Accepted


@dataclass
class Findings:
    """Violations by kind."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)
    stale_accepted: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    misjudged: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {name.replace("_", " "): len(found) for name, found in vars(self).items()}

    @property
    def sentences(self) -> list[str]:
        return [f"{name}: {sentence}" for name, found in vars(self).items() for sentence in found]


def check(
    c: Connection, accepted: Mapping[str, Accepted], witness_dir: Path, lock_dir: Path, spools: Iterable[Path] = (),
    inflicted: Sequence[Infliction] = (),
) -> Findings:  # fmt: skip
    """Everything at once, on a lab that has nothing left to do. `inflicted`: what may explain that attempts were disturbed."""
    seen = witnessed(witness_dir)
    return Findings(
        lost=lost(c, accepted) + unspooled(spools),
        duplicated=duplicated(c, accepted),
        overlapping=overlapping(c) + side_by_side(seen),
        stale_accepted=stale_accepted(c) + unwitnessed(c, seen),
        stuck=stuck(c) + miscounted(c),
        orphans=orphans(seen) + held_locks(lock_dir),
        misjudged=misjudged(c, {one.sweep_id for one in accepted.values()}, inflicted),
    )


def lost(c: Connection, accepted: Mapping[str, Accepted]) -> list[str]:
    """Accepted sweeps that are not there, and sweeps of which only a part is."""
    rows = c.execute(
        text(
            "SELECT s.id, s.total, count(j.id) AS jobs FROM sweep s LEFT JOIN job j ON j.sweep_id = s.id GROUP BY s.id"
        )
    ).all()
    stored = {row.id: row.jobs for row in rows}
    return [f"sweep {row.id} has {row.jobs} of its {row.total} jobs" for row in rows if row.jobs != row.total] + [
        f"accepted sweep {one.sweep_id} of {one.total} jobs has {stored.get(one.sweep_id)}"
        for one in accepted.values()
        if stored.get(one.sweep_id) != one.total
    ]


def unspooled(spools: Iterable[Path]) -> list[str]:
    """Outcomes still on disk though the ledger answers."""
    return [f"{path} was never delivered" for spool in spools for path in spool.rglob("*.outcome.json")]


def duplicated(c: Connection, accepted: Mapping[str, Accepted]) -> list[str]:
    """Keys with several sweeps, jobs with several results, several ends, or a result that is not the last holder's."""
    found = [
        f"key {row.idempotency_key} stored {row.sweeps} sweeps"
        for row in c.execute(
            text("SELECT idempotency_key, count(*) AS sweeps FROM sweep WHERE idempotency_key IS NOT NULL GROUP BY 1 HAVING count(*) > 1")
        )
    ]  # fmt: skip
    kept = {row.idempotency_key: row.id for row in c.execute(text("SELECT idempotency_key, id FROM sweep"))}
    found += [
        f"key {key} was answered with {one.sweep_id}, stored is {kept.get(key)}"
        for key, one in accepted.items()
        if kept.get(key) != one.sweep_id
    ]
    rows = c.execute(
        text("""
        SELECT j.id, j.state, j.result_fence, count(t.fence) AS ends, max(t.fence) AS fence,
            (SELECT count(*) FROM measurement m WHERE m.job_id = j.id AND m.fence = j.result_fence) AS results,
            (SELECT count(*) FROM event e WHERE e.job_id = j.id AND e.kind = 'job_measured') AS announced
        FROM job j LEFT JOIN attempt t ON t.job_id = j.id AND t.followed_by = 'measured'
        WHERE j.state = 'measured' GROUP BY j.id
        """)
    )
    found += [
        f"measured job {row.id}: {row.ends} ending attempts, {row.results} results at fence {row.result_fence}, "
        f"last holder {row.fence}, announced {row.announced} times"
        for row in rows
        if (row.ends, row.results, row.announced) != (1, 1, 1) or row.fence != row.result_fence
    ]
    return found


def overlapping(c: Connection) -> list[str]:
    """Attempts of one device whose times overlap in the ledger. A late report ends an attempt that had been taken back."""
    rows = c.execute(
        text("""
        SELECT a.device_id, a.job_id, a.fence, b.job_id AS other, b.fence AS other_fence FROM attempt a
        JOIN attempt b ON b.device_id = a.device_id AND b.started_at > a.started_at
            AND b.started_at < a.ended_at AND (b.job_id, b.fence) <> (a.job_id, a.fence)
        WHERE a.boot_id = b.boot_id AND NOT EXISTS (
            SELECT FROM event e WHERE e.job_id = a.job_id AND (e.data->>'fence')::int = a.fence
                AND e.kind IN ('job_pending', 'job_failed', 'job_cancelled') AND e.at <= b.started_at
        )
        """)
    )
    return [
        f"device {row.device_id}: job {row.job_id} at fence {row.fence} and job {row.other} at fence {row.other_fence}"
        for row in rows
    ]


def stale_accepted(c: Connection) -> list[str]:
    """Outcomes taken from an attempt after its job had been leased again, and measurements no accepted report explains."""
    superseded = c.execute(
        text("""
        SELECT a.job_id, a.fence, b.fence AS younger FROM attempt a
        JOIN attempt b ON b.job_id = a.job_id AND b.fence > a.fence AND b.started_at < a.ended_at
        WHERE a.reported
        """)
    )
    unexplained = c.execute(
        text("""
        SELECT m.job_id, m.fence FROM measurement m JOIN attempt t USING (job_id, fence)
        WHERE NOT t.reported OR t.outcome <> 'measured'
        """)
    )
    return [f"job {row.job_id}: fence {row.fence} was heard after {row.younger} began" for row in superseded] + [
        f"job {row.job_id}: a measurement at fence {row.fence} that was not reported" for row in unexplained
    ]


def stuck(c: Connection) -> list[str]:
    """Jobs without an end, leases without a job, devices that wait for nobody, sweeps that do not know they are over."""
    found = [
        f"job {row.id} of sweep {row.sweep_id} is {row.state} ({row.reason})"
        for row in c.execute(text("SELECT id, sweep_id, state, reason FROM job WHERE state IN ('pending', 'leased')"))
    ]
    found += [
        f"device {row.device_id} still holds job {row.job_id}"
        for row in c.execute(text("SELECT device_id, job_id FROM lease_device"))
    ]
    found += [
        f"attempt {row.fence} of job {row.job_id} never ended"
        for row in c.execute(text("SELECT job_id, fence FROM attempt WHERE ended_at IS NULL"))
    ]
    found += [
        f"device {row.id} is {row.state} ({row.reason})"
        for row in c.execute(text("SELECT id, state, reason FROM device WHERE state <> 'free'"))
    ]
    return found + [
        f"sweep {row.id} is over and not marked finished"
        for row in c.execute(
            text("SELECT id FROM sweep s WHERE finished_at IS NULL AND NOT EXISTS (SELECT FROM job j WHERE j.sweep_id = s.id"
                 " AND j.state IN ('pending', 'leased'))")
        )
    ]  # fmt: skip


def miscounted(c: Connection) -> list[str]:
    """Sweeps whose counters say something else than their jobs."""
    states = ("pending", "leased", "measured", "infeasible", "failed", "cancelled")
    sums = ", ".join(f"coalesce(sum({state}), 0)::int AS {state}" for state in states)
    counted = {row.sweep_id: tuple(row[1:]) for row in c.execute(
        text(f"SELECT sweep_id, {sums} FROM sweep_counter GROUP BY sweep_id"))}  # fmt: skip
    filters = ", ".join(f"count(*) FILTER (WHERE state = '{state}')::int AS {state}" for state in states)
    real = {row.sweep_id: tuple(row[1:]) for row in c.execute(
        text(f"SELECT sweep_id, {filters} FROM job GROUP BY sweep_id"))}  # fmt: skip
    return [
        f"sweep {sweep_id} counts {dict(zip(states, counted.get(sweep_id, ()), strict=False))}, its jobs are "
        f"{dict(zip(states, real[sweep_id], strict=True))}"
        for sweep_id in real
        if counted.get(sweep_id) != real[sweep_id]
    ]


def witnessed(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What the children of each device wrote down, in the order they wrote it."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def side_by_side(seen: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Children that met a living predecessor on their device, and cells of one device whose times overlap."""
    found = []
    for device, lines in seen.items():
        for line in lines:
            if line["kind"] == "begin" and line["beside"]:
                found.append(f"device {device}: child {line['child']} began beside {', '.join(line['beside'])}")
        spans = sorted(_cells(lines))
        found += [
            f"device {device}: children {one[2]} and {two[2]} measured at one time"
            for one, two in pairwise(spans)
            if two[0] < one[1]
        ]
    return found


def _cells(lines: list[dict[str, Any]]) -> Iterable[tuple[int, int, str]]:
    """(begin, end, child) of every measurement; one whose process was killed ends, at the latest, with the last word its
    child wrote, because what a later child met of it is told by that child."""
    begun: dict[str, int] = {}
    for line in lines:
        if line["kind"] == "cell_begin":
            begun[line["child"]] = line["ns"]
        elif line["kind"] == "cell_end" and line["child"] in begun:
            yield begun.pop(line["child"]), line["ns"], line["child"]
    for child, at in begun.items():
        yield at, at, child


def unwitnessed(c: Connection, seen: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Measurements of witnessed cells that no child says to have made on that device."""
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    for device, lines in seen.items():
        for line in lines:
            if line["kind"] == "cell_end":
                made[device, line["child"]].add(line["digest"])
    rows = c.execute(
        text("SELECT m.job_id, m.fence, m.device_id, m.child_id, j.digest FROM measurement m JOIN job j ON j.id = m.job_id"
             " WHERE j.runtime = 'witnessed'")
    )  # fmt: skip
    return [
        f"job {row.job_id} at fence {row.fence}: child {row.child_id} never measured it on {row.device_id}"
        for row in rows
        if row.digest not in made[row.device_id, row.child_id]
    ]


def orphans(seen: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Living processes that carry the mark of a child that was ever started: the lab is idle, so there must be none."""
    children = {line["child"].encode() for lines in seen.values() for line in lines}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                mark = next((part[14:] for part in environment if part.startswith(b"EFFILLM_CHILD=")), None)
                if mark is not None and mark in children:
                    found.append(f"process {entry.name} of child {mark.decode()} still runs")
    return found


def held_locks(folder: Path) -> list[str]:
    """Device locks that somebody still holds."""
    found = []
    for path in folder.glob("*.lock"):
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(f"{path.name} is held: {os.read(descriptor, 200).decode(errors='replace').strip()}")
        finally:
            os.close(descriptor)
    return found
