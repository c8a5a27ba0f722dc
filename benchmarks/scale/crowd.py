"""A thousand devices on one Postgres: each renews, reports and takes its next job when its time has come.

Every device has a lease at all times. A device that cannot keep its times shows as lateness, a lease that ran out as lost.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy

from benchmarks.scale import common
from effillm_server.contract.job import Lease
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect

PROCESSES = 4
# Connections of each process: a device that has something to say takes one for that time.
CONNECTIONS = 8
TTL_S = 60.0
RENEWALS_PER_TTL = 6


def measure(url: str, devices: int, seconds: float, cell_s: float) -> dict[str, Any]:
    """How late the devices are with what they do, and how long each thing takes, under the load they make."""
    tasks = [(url, n, devices // PROCESSES, seconds, cell_s) for n in range(PROCESSES)]
    answers = common.side_by_side(_process, tasks)
    late = [x for a in answers for x in a["late"]]
    figures = {
        "crowd.devices": devices // PROCESSES * PROCESSES, "crowd.cell_s": cell_s,
        "crowd.renewals_per_s": sum(len(a["renew"]) for a in answers) / seconds,
        "crowd.reports_per_s": sum(len(a["finish"]) for a in answers) / seconds,
        "crowd.late_p99_s": common.quantile(late, 0.99), "crowd.late_worst_s": max(late),
        "crowd.lost_leases": sum(a["lost"] for a in answers),
    }  # fmt: skip
    for name in ("renew", "finish"):
        times = [x * 1000 for a in answers for x in a[name]]
        figures[f"crowd.{name}_p50_ms"] = common.quantile(times, 0.5)
        figures[f"crowd.{name}_p99_ms"] = common.quantile(times, 0.99)
    engine = connect(url, "api")
    with engine.begin() as c:
        figures["crowd.expired"] = len(queue.reap(c, lambda: 0.5))
    engine.dispose()
    return figures


def renewals(url: str, leases: int, seconds: float) -> dict[str, Any]:
    """Renewals per second of as many devices as may be; 10,000 leases need 1,000 of them."""
    answers = common.side_by_side(_renew_only, [(url, n, leases // PROCESSES, seconds) for n in range(PROCESSES)])
    return {"renewals.devices": leases, "renewals.per_s": sum(answers) / seconds}


class Crowd:
    """The devices of one process: a heap of what is due when, and a few threads that do it."""

    def __init__(self, url: str, names: list[str], cell_s: float, seed: int) -> None:
        self.engine = sqlalchemy.create_engine(
            connect(url, "worker").url, isolation_level="READ COMMITTED", pool_size=CONNECTIONS, max_overflow=0
        )
        self.dice = random.Random(seed)
        self.cell_s = cell_s
        self.held: dict[str, Lease] = {}
        self.due: list[tuple[float, str, str]] = []
        self.guard = threading.Lock()
        self.figures: dict[str, Any] = {"late": [], "renew": [], "finish": [], "lost": 0}
        for name in names:
            with self.engine.begin() as c:
                common.join(c, name)
            with self.engine.begin() as c:
                lease = queue.lease(c, common.request(name))
            assert lease is not None, "no cell is left for the crowd: use more --pending"
            self.held[name] = lease

    def begin(self) -> None:
        """Everybody's next times, spread as devices are that did not all start at once."""
        now = time.monotonic()
        for name in self.held:
            self.due.append((now + self.dice.uniform(0, TTL_S / RENEWALS_PER_TTL), "renew", name))
            self.due.append((now + self.dice.uniform(0, self.cell_s), "finish", name))
        heapq.heapify(self.due)

    def run(self, until: float) -> None:
        """One thread: takes what is due, does it, and says when its device is due again."""
        actions: dict[str, Callable[[str], None]] = {"renew": self._renew, "finish": self._finish}
        while (now := time.monotonic()) < until:
            with self.guard:
                task = heapq.heappop(self.due) if self.due and self.due[0][0] <= now else None
            if task is None:
                time.sleep(0.002)
                continue
            at, kind, name = task
            started = time.perf_counter()
            actions[kind](name)
            took = time.perf_counter() - started
            pause = TTL_S / RENEWALS_PER_TTL if kind == "renew" else self.cell_s * self.dice.uniform(0.5, 1.5)
            with self.guard:
                self.figures[kind].append(took)
                self.figures["late"].append(time.monotonic() - at - took)
                heapq.heappush(self.due, (at + pause, kind, name))

    def _renew(self, name: str) -> None:
        lease = self.held[name]
        with self.engine.begin() as c:
            renewal = queue.renew(c, name, common.BOOT, [(lease.job_id, lease.fence)], TTL_S)
        # The job may have been finished meanwhile, by another thread of ours.
        if renewal.lost and self.held[name] is lease:
            self.figures["lost"] += 1

    def _finish(self, name: str) -> None:
        lease = self.held[name]
        with self.engine.begin() as c:
            request = common.request(name, lease.load_group)
            done = queue.finish(c, name, common.BOOT, lease.job_id, lease.fence, common.outcome(name), 0.5, request)
        assert done.next is not None, "no cell is left for the crowd: use more --pending"
        self.held[name] = done.next


def _process(barrier: Any, url: str, number: int, devices: int, seconds: float, cell_s: float) -> dict[str, Any]:
    crowd = Crowd(url, [f"crowd-{number}-{n}" for n in range(devices)], cell_s, number)
    barrier.wait()
    crowd.begin()
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=crowd.run, args=(until,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.engine.dispose()
    return crowd.figures


def _renew_only(barrier: Any, url: str, number: int, devices: int, seconds: float) -> int:
    engine = connect(url, "worker")
    names = [f"crowd-{number}-{n}" for n in range(devices)]
    with engine.connect() as c:
        rows = c.execute(sqlalchemy.text("SELECT device_id, job_id, fence FROM lease_device WHERE device_id = ANY(:n)"),
                         {"n": names}).all()  # fmt: skip
    barrier.wait()
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        row = rows[done % len(rows)]
        with engine.begin() as c:
            queue.renew(c, row.device_id, common.BOOT, [(row.job_id, row.fence)], TTL_S)
        done += 1
    engine.dispose()
    return done
