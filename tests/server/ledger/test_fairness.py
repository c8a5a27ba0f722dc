"""Whose turn it is, over many claims by a clock that the test moves: shares, and that nobody waits for ever."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from effillm_server.ledger import queue
from effillm_server.ledger.journal import HALF_LIFE_S, faded
from effillm_server.ledger.transitions import NOW_MS
from tests.support.ledger import BOOT, cell, crashed, join, leased, let_pass, measured, request, samples, submit

DEVICE = "box-cpu0"
OUTCOME = measured(samples=samples(1))
A_DAY_S = 86_400.0
# What one device that never rests has behind it, as it has faded.
NEVER_RESTED_S = HALF_LIFE_S / math.log(2)


@dataclass
class Bench:
    """One device that takes what it is given, a cell after the other, and what it has done."""

    engine: Engine
    clock_s: float = 0.0
    served: list[str] = field(default_factory=list)
    begun_s: list[float] = field(default_factory=list)

    def submit(self, cells: int = 1, first: int = 1, **changes: object) -> str:
        with self.engine.begin() as c:
            return submit(c, *(cell(batch_size=size) for size in range(first, first + cells)), **changes)

    def wait(self, seconds: float) -> None:
        with self.engine.begin() as c:
            let_pass(c, seconds)
        self.clock_s += seconds

    def measure(self, seconds: float | Mapping[str, float]) -> str:
        """The sweep whose cell the device was given; it took that long, or as long as cells of this sweep take."""
        with self.engine.begin() as c:
            lease = leased(c)
        self.served.append(lease.sweep_id)
        self.begun_s.append(self.clock_s)
        self.wait(seconds if isinstance(seconds, float | int) else seconds[lease.sweep_id])
        with self.engine.begin() as c:
            assert queue.finish(c, DEVICE, BOOT, lease.job_id, lease.fence, OUTCOME).accepted
        return lease.sweep_id

    def waits_s(self, sweep_id: str) -> list[float]:
        """How long the sweep waited each time, from its one cell to its next."""
        begun = [at for at, one in zip(self.begun_s, self.served, strict=True) if one == sweep_id]
        return [later - earlier for earlier, later in pairwise(begun)]

    def has_behind_it(self, sweep_id: str, seconds: float) -> None:
        """The sweep had the device for so long, until just now."""
        with self.engine.begin() as c:
            c.execute(
                text("UPDATE sweep_counter SET served_ms = :ms, recent_ms = :ms,"
                     " recent_at_ms = (extract(epoch FROM clock_timestamp()) * 1000)::bigint WHERE sweep_id = :id"),
                {"ms": round(seconds * 1000), "id": sweep_id},
            )  # fmt: skip


@pytest.fixture
def bench(engine: Engine) -> Bench:
    with engine.begin() as c:
        join(c)
    return Bench(engine)


def test_sweeps_of_equal_cells_get_equal_time(bench: Bench) -> None:
    sweeps = [bench.submit(cells=30) for _ in range(3)]
    for _ in range(30):
        bench.measure(20)
    assert Counter(bench.served) == dict.fromkeys(sweeps, 10)
    assert all(max(bench.waits_s(sweep)) <= 100 for sweep in sweeps)


def test_a_sweep_of_long_cells_gets_the_time_of_one_of_short_ones(bench: Bench) -> None:
    long, short = bench.submit(cells=25), bench.submit(cells=80)
    lasts = {long: 60.0, short: 10.0}
    for _ in range(70):
        bench.measure(lasts)
    times = Counter(bench.served)
    assert times[short] < 80  # neither ran out
    assert 0.7 < (times[long] * 60) / (times[short] * 10) < 1.4


def test_a_big_sweep_is_not_starved_by_a_stream_of_new_ones(bench: Bench) -> None:
    """Cells of half a minute, and a new sweep of one comes every half minute: enough to keep the device for ever."""
    big = bench.submit(cells=100)
    bench.has_behind_it(big, NEVER_RESTED_S)
    for _ in range(150):
        bench.submit()
        bench.measure(30)
    first = bench.begun_s[bench.served.index(big)]
    # Where what it had has faded to what its waiting makes up for: 600 / 2 ** (t / 600) = t / 4.
    assert 840 <= first <= 960
    # Once back in turn it waits less from time to time, for what it had is forgotten.
    waits = bench.waits_s(big)
    assert len(waits) >= 6
    assert max(waits) < first
    # Not down to nothing: those of the stream wait too by then, one more of them for every cell of the big one.
    assert 390 <= waits[-1] <= 480


def test_a_quarter_of_an_hour_of_waiting_comes_before_everybody_new_whatever_was_had(bench: Bench) -> None:
    big = bench.submit(cells=3)
    bench.has_behind_it(big, 1000 * A_DAY_S)
    for _ in range(30):
        bench.submit()
        bench.measure(30)
    bench.wait(60)
    bench.submit()
    assert big not in bench.served
    assert bench.measure(30) == big


def test_nobody_of_a_stream_waits_for_ever_either(bench: Bench) -> None:
    big = bench.submit(cells=100)
    arrived: dict[str, float] = {}
    for turn in range(100):
        if turn % 2 == 0:
            arrived[bench.submit()] = bench.clock_s
        bench.measure(30)
    waited = [at - arrived[sweep] for at, sweep in zip(bench.begun_s, bench.served, strict=True) if sweep in arrived]
    assert bench.served.count(big) >= 45
    assert len(waited) >= 45
    assert max(waited) <= 120


def test_what_was_served_long_ago_weighs_less_than_what_was_served_now(bench: Bench) -> None:
    old, new = bench.submit(cells=3), bench.submit(cells=3)
    bench.has_behind_it(old, 1000)
    bench.wait(2 * HALF_LIFE_S)
    bench.has_behind_it(new, 300)
    with bench.engine.begin() as c:
        # Both had their device just now, so neither has waited.
        c.execute(text("UPDATE sweep SET created_at = clock_timestamp()"))
    assert bench.measure(1) == old


def test_a_higher_priority_comes_first_however_much_it_had(bench: Bench) -> None:
    patient, urgent = bench.submit(cells=2), bench.submit(cells=5, priority=1)
    bench.has_behind_it(urgent, A_DAY_S)
    bench.wait(10 * HALF_LIFE_S)
    assert [bench.measure(30) for _ in range(6)] == [urgent] * 5 + [patient]


def test_faded_time_is_added_up_as_its_closed_form_says(bench: Bench) -> None:
    sweep = bench.submit(cells=8)
    for _ in range(8):
        bench.measure(100)
        bench.wait(200)
    with bench.engine.connect() as c:
        now = f"greatest({NOW_MS} - recent_at_ms, 0)"
        row = c.execute(
            text(f"SELECT sum({faded('recent_ms', now)}) AS ms, sum(served_ms) AS served FROM sweep_counter")
        ).one()
    expected = sum(100 * 0.5 ** ((200 + 300 * age) / HALF_LIFE_S) for age in range(8))
    assert row.ms / 1000 == pytest.approx(expected, rel=0.01)
    assert row.served / 1000 == pytest.approx(800, rel=0.01)
    assert bench.served == [sweep] * 8


def test_time_that_was_lost_counts_too_and_years_of_rest_are_no_error(bench: Bench) -> None:
    bench.submit(cells=2)
    with bench.engine.begin() as c:
        lease = leased(c)
        let_pass(c, 100)
        queue.finish(c, DEVICE, BOOT, lease.job_id, lease.fence, crashed())
        lost = c.execute(text("SELECT sum(recent_ms) FROM sweep_counter")).scalar_one()
    assert lost / 1000 == pytest.approx(100, rel=0.01)
    for _ in range(3):
        bench.wait(3 * 365 * 86_400)
        with bench.engine.begin() as c:
            lease = leased(c, ttl_s=60.0)
            queue.finish(c, DEVICE, BOOT, lease.job_id, lease.fence, crashed())
        if lease.attempt == 3:
            break
    with bench.engine.begin() as c:
        assert 0 <= c.execute(text("SELECT sum(recent_ms) FROM sweep_counter")).scalar_one() < 1000
        assert queue.lease(c, request(DEVICE)) is not None


PENDING = 100_000
FILL = """
INSERT INTO job (sweep_id, ordinal, digest, model, weights, quantization, dtype, engine, runtime, hardware, batch_size,
    sequence_length, workload, generate_tokens, repeat, size, load_group, priority, state)
SELECT sweep_id, n, 'd' || n, model, weights, quantization, dtype, engine, runtime, hardware, 1 + n % 64, 128, workload,
    generate_tokens, 1, n, 'group ' || n % 100, priority, 'pending'
FROM job, generate_series(10, 9 + :jobs) n WHERE ordinal = 0
"""


def test_a_claim_among_a_hundred_thousand_reads_a_handful_of_pages_by_its_index(bench: Bench) -> None:
    bench.submit()
    with bench.engine.begin() as c:
        c.execute(text(FILL), {"jobs": PENDING})
        c.execute(text("UPDATE sweep_counter SET pending = pending + :jobs"), {"jobs": PENDING})
        c.exec_driver_sql("ANALYZE job, sweep_counter")
    with bench.engine.connect() as c:
        held = leased(c)  # prepares the statements on this connection
        c.rollback()
        looked = _explained(c, f"EXECUTE effillm_look ('{DEVICE}')")
        claim = f"EXECUTE effillm_claim_any_anywhere ('{held.sweep_id}', 'cpu', '{DEVICE}', '{BOOT}', 'box', false, 60, NULL)"
        claimed = _explained(c, claim)
        c.rollback()
    for plan in (looked, claimed):
        assert "Seq Scan on job" not in plan
    assert "ix_job_claim" in claimed
    assert "Sort" not in claimed
    assert _pages(looked) < 50
    assert _pages(claimed) < 150


def _explained(c: object, statement: str) -> str:
    rows = c.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {statement}")  # type: ignore[attr-defined]
    return "\n".join(row[0] for row in rows)


def _pages(plan: str) -> int:
    """Pages the statement touched, its planning left out."""
    top = next(line for line in plan.splitlines() if "Buffers:" in line)
    return sum(int(part.partition("=")[2]) for part in top.split() if part.partition("=")[0] in ("hit", "read"))
