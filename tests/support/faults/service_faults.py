"""Faults of what the lab shares: fleets, API, Postgres and the ways to it, clocks."""

from __future__ import annotations

import psycopg2

from effillm_server.ledger.engine import connect
from tests.support.faults import clock, tree
from tests.support.faults.field import Field, for_a_while, partition, stopped
from tests.support.faults.lab import Lab
from tests.support.faults.recovery import Recovery, all_back, fleet_serves, is_serving, now
from tests.support.faults.worker_faults import fill


def fleet_killed(on: Field) -> Recovery | None:
    leader = on.lab.active_fleet()
    if leader is None:
        return None
    lab, life = on.lab, on.lab.kept[leader].starts
    lab.kept[leader].kill()
    lab.hold(leader, on.dice.uniform(0, 3))

    def leads_anew() -> bool:
        # The other one, or, where another fault has it starting at this moment, this one in its next life.
        active = lab.active_fleet()
        return active is not None and (active != leader or lab.kept[active].starts > life)

    looks = [leads_anew, lambda: fleet_serves(lab)]
    if len(lab.fleets) == 1:
        looks = [lambda: fleet_serves(lab)]
    return Recovery("active fleet killed", looks, frozenset({"fleet"}))


def fleets_killed(on: Field) -> Recovery | None:
    lab = on.lab
    lives = {name: lab.kept[name].starts for name in lab.fleets}
    for name in lab.fleets:
        if lab.kept[name].is_running:
            lab.kept[name].kill()

    def leads_anew() -> bool:
        leader = lab.active_fleet()
        return leader is not None and lab.kept[leader].starts > lives[leader]

    return Recovery("both fleets killed", [leads_anew, lambda: fleet_serves(lab)], frozenset({"fleet"}))


def fleet_stopped(on: Field) -> Recovery | None:
    """The leader sleeps and keeps the lock; when it wakes it may have been replaced."""
    leader = on.lab.active_fleet()
    if leader is None:
        return None
    victim = tree.Process.of(on.lab.kept[leader].pid)
    assert victim is not None
    lab = on.lab
    if on.dice.random() < 0.5:
        lab.later(1.0, lambda: _end_leading_session(lab))
    recovery = stopped(on, "active fleet stopped", victim, [], on.dice.uniform(2, 8))
    recovery.touches = frozenset({"fleet"})
    recovery.looks.append(lambda: fleet_serves(lab))
    return recovery


def _end_leading_session(lab: Lab) -> None:
    """The lock goes over to the other fleet while this one believes that it leads."""
    lab.database.read("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")


def api_killed(on: Field) -> Recovery | None:
    """At a random moment of storing a sweep; its client asks again with its key until it has an answer."""
    if on.client.is_busy or not on.lab.kept["api"].is_running:
        return None
    lab, sending = on.lab, on.client.send(on.definitions.few())
    sending.begun.wait(5)
    recovery = Recovery("API killed while storing a sweep", [], frozenset({"api"}))

    def kill() -> None:
        if lab.kept["api"].is_running:
            lab.kept["api"].kill()
        recovery.heal()

    recovery.looks += [recovery.is_healed, sending.done.is_set]
    lab.later(on.dice.uniform(0, 0.15), kill)
    return recovery


def database_restarted(on: Field) -> Recovery | None:
    how = on.dice.choice(("fast", "immediate", "killed"))
    return _database_away(on, f"Postgres restarted ({how})", how, 0.0)


def database_away(on: Field) -> Recovery | None:
    how = on.dice.choice(("fast", "immediate", "killed"))
    return _database_away(on, "Postgres away for seconds", how, on.dice.uniform(3, 12))


def database_away_long(on: Field) -> Recovery | None:
    """For many lease lives, in which nobody can renew."""
    how = on.dice.choice(("fast", "immediate", "killed"))
    return _database_away(on, "Postgres away for 30 s", how, 30.0)


def _database_away(on: Field, name: str, how: str, seconds: float) -> Recovery:
    lab = on.lab
    recovery = Recovery(name, [], frozenset({"database"}))

    def back() -> None:
        lab.database.start()
        since = now()
        recovery.heal()
        recovery.looks.append(lambda: is_serving(lab, since))

    lab.database.stop(how)
    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, back)
    return recovery


def database_disk_full(on: Field) -> Recovery | None:
    """No byte is left where Postgres writes: it refuses, or ends and cannot start, until there is room again."""
    lab, disk = on.lab, on.lab.database_disk
    assert disk is not None
    filler = disk / "filler"
    recovery = Recovery("disk full for Postgres", [], frozenset({"database"}))

    def room() -> None:
        filler.unlink()
        lab.database.start()
        since = now()
        recovery.heal()
        recovery.looks.append(lambda: is_serving(lab, since))

    fill(filler)
    recovery.looks.append(recovery.is_healed)
    lab.later(on.dice.uniform(4, 10), room)
    return recovery


def backends_terminated(on: Field) -> Recovery | None:
    """Every session, once a second, five times."""
    lab = on.lab
    recovery = for_a_while(on, "backends terminated once a second", 5.0, lambda: None, lambda: None)
    for second in range(5):
        lab.later(second, lab.database.terminate_backends)
    return recovery


def connections_exhausted(on: Field) -> Recovery | None:
    lab = on.lab
    held: list[psycopg2.extensions.connection] = []
    try:
        while len(held) < 400:
            held.append(psycopg2.connect(lab.database.url, connect_timeout=5))
    except psycopg2.OperationalError:
        pass
    lab.database.engine.dispose()
    return for_a_while(on, "connections exhausted", 5.0, lambda: None, lambda: [one.close() for one in held])


def answers_lost(on: Field) -> Recovery | None:
    """One commit of ten succeeds and its caller never hears of it, everywhere."""

    def share(of: float) -> None:
        for link in on.lab.proxy.links.values():
            link.ambiguous_share = of

    return for_a_while(
        on, "commit succeeded, answer lost (1 of 10)", on.dice.uniform(6, 12), lambda: share(0.1), lambda: share(0.0)
    )


def notifications_dropped(on: Field) -> Recovery | None:
    def drop(whether: bool) -> None:
        for link in on.lab.proxy.links.values():
            link.drops_notifications = whether

    return for_a_while(on, "all notifications dropped", 8.0, lambda: drop(True), lambda: drop(False))


def fleet_without_database(on: Field) -> Recovery | None:
    leader = on.lab.active_fleet()
    if leader is None:
        return None
    return partition(on, "fleet cut off from Postgres", leader, frozenset({"fleet"}), on.cut_off_s())


def api_without_database(on: Field) -> Recovery | None:
    return partition(on, "API cut off from Postgres", "api", frozenset({"api"}), on.cut_off_s())


def idle_transaction(on: Field) -> Recovery | None:
    """A transaction that sits there with a row locked; its time-out must end it."""
    lab = on.lab
    engine = connect(lab.database.url, "api")
    connection = engine.connect()
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    connection.exec_driver_sql("SELECT id FROM sweep LIMIT 1 FOR UPDATE")

    def gone() -> bool:
        if lab.database.read("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=pid):
            return False
        connection.invalidate()
        connection.close()
        engine.dispose()
        return True

    return Recovery("idle transaction left open", [gone], frozenset({"idle"}), 30)


def sweep_cancelled(on: Field) -> Recovery | None:
    """In the middle of its measurements; its devices must be free for others within seconds."""
    lab = on.lab
    rows = lab.database.read(
        "SELECT DISTINCT sweep_id FROM job WHERE state = 'leased' AND runtime = 'witnessed' ORDER BY sweep_id"
    )
    if not rows or on.client.is_busy:
        return None
    sweep = str(on.dice.choice(rows)[0])
    held = [str(row[0]) for row in lab.database.read(
        "SELECT l.device_id FROM lease_device l JOIN job j ON j.id = l.job_id WHERE j.sweep_id = :s", s=sweep)]  # fmt: skip
    if set(held) & on.taken:
        return None
    since = now()
    on.client.cancel(sweep)

    def over() -> bool:
        left = lab.database.scalar(
            "SELECT count(*) FROM job WHERE sweep_id = :s AND state IN ('pending', 'leased')", s=sweep
        )
        return left == 0 and all_back(lab, held, since)

    return Recovery("sweep cancelled while measuring", [over], frozenset({"cancel", *held}))


def clocks_stepped(on: Field) -> Recovery | None:
    """The API and every child that starts meanwhile are an hour ahead, or behind."""
    lab, off = on.lab, clock.environment(clock.build(on.lab.folder), on.dice.choice((3600, -3600)))
    step = lab.witness_dir / "clock"

    def begin() -> None:
        step.write_text(" ".join(off.values()))
        lab.kept["api"].environment |= off
        lab.kept["api"].kill()

    def end() -> None:
        step.unlink()
        for name in off:
            del lab.kept["api"].environment[name]
        lab.kept["api"].kill()

    recovery = for_a_while(on, "clocks of API and children off by an hour", 20.0, begin, end)
    recovery.touches = frozenset({"api"})
    return recovery
