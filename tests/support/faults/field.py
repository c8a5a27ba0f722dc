"""What faults act on, how two common shapes of them are made, and what a kind of fault is."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.support.faults import tree
from tests.support.faults.lab import Lab
from tests.support.faults.recovery import Recovery, all_back, is_serving, now
from tests.support.faults.workload import Client, Definitions


@dataclass
class Field:
    """What faults act on, and what is taken by one that is not survived yet."""

    lab: Lab
    client: Client
    definitions: Definitions
    dice: random.Random
    taken: set[str]
    # How long the longest partition and sleep last: as in the fault table, or a shorter dose; no sleep, no such campaign.
    long_s: float = 30.0
    sleep_s: float = 0.0

    def worker(self) -> tree.Worker | None:
        """A measuring declared device nobody is at."""
        found = tree.workers(self.lab.lock_dir)
        names = [
            name for name in self.lab.device_ids() if name in found and not {name, self.node_of(name)} & self.taken
        ]
        return found[self.dice.choice(names)] if names else None

    def node(self) -> str | None:
        """A node nobody is at, nor at one of its devices."""
        names = [
            n for n in self.lab.nodes if not {n, *self.lab.device_ids(n)} & self.taken and self.lab.kept[n].is_running
        ]
        return self.dice.choice(names) if names else None

    def asleep_s(self) -> float:
        """How long a process is stopped: longer than a lease lives, and now and then as long as the table says."""
        if self.sleep_s and self.dice.random() < 0.3:
            return self.sleep_s
        return self.dice.uniform(1.3, 2.5) * self.lab.plan.ttl_s

    def cut_off_s(self) -> float:
        """How long a service is cut off from Postgres: for seconds, and now and then as long as the table says."""
        if self.sleep_s and self.dice.random() < 0.3:
            return self.long_s
        return self.dice.uniform(1, 12)

    def node_of(self, device: str) -> str:
        return next(name for name in self.lab.nodes if device in self.lab.device_ids(name))


@dataclass(frozen=True)
class Kind:
    """A fault, how often a campaign of some 220 injects it and the full one at least, and whether it comes alone."""

    inject: Callable[[Field], Recovery | None]
    times: int
    full: int = 0
    alone: bool = False
    needs: Callable[[Lab], bool] = lambda lab: True


def stopped(on: Field, name: str, victim: tree.Process, names: Sequence[str], seconds: float) -> Recovery:
    """SIGSTOP, and SIGCONT after `seconds`; the devices `names` must work again."""
    lab = on.lab
    victim.send(signal.SIGSTOP)
    recovery = Recovery(name, [], frozenset(names))

    def go_on() -> None:
        since = now()
        victim.send(signal.SIGCONT)
        recovery.heal()
        recovery.looks.append(lambda: all_back(lab, names, since))

    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, go_on)
    return recovery


def for_a_while(
    on: Field, name: str, seconds: float, begin: Callable[[], object], end: Callable[[], object]
) -> Recovery:
    """A condition that lasts; the lab must serve again after it."""
    lab = on.lab
    recovery = Recovery(name, [], frozenset({name}))

    def heal() -> None:
        end()
        since = now()
        recovery.heal()
        recovery.looks.append(lambda: is_serving(lab, since))

    begin()
    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, heal)
    return recovery


def partition(on: Field, name: str, link: str, touches: frozenset[str], seconds: float | None = None) -> Recovery:
    """A link to the database that lets nothing through in one direction, or in both, for some seconds."""
    up, down = on.dice.choice(((True, True), (True, False), (False, True)))
    lab = on.lab
    recovery = for_a_while(
        on,
        name,
        seconds or on.dice.uniform(1, 12),
        lambda: lab.proxy.partition(link, up=up, down=down),
        lambda: lab.proxy.heal(link),
    )
    recovery.touches = touches
    return recovery
