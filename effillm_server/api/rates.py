"""How often one may ask: token buckets by key and by address, in this process, refilled as time goes by."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from starlette.types import ASGIApp, Receive, Scope, Send

from effillm_server.api.problems import respond
from effillm_server.settings import Settings

# Whoever asks rarely may ask much at once: a page with its assets, a program that goes through a list.
BURST_S = 10.0
# Nobody guesses 256 bits; this keeps who tries from keeping the database busy.
FAILURES_PER_S = 1.0
FAILURES_BURST = 60.0
MOST_BUCKETS = 10_000
# An address of version 6 is cheap: one customer has 2^64 of them.
IPV6_PREFIX = 64


class Buckets:
    """A bucket of `burst` tokens for each key, refilled at `per_s`; 0 lets everything through."""

    def __init__(self, per_s: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = max(1.0, burst)
        self._now = now
        self._lock = threading.Lock()
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> float:
        """Seconds to wait before the next attempt; 0 when a token was there and is taken."""
        return self._visit(key, 1.0)

    def look(self, key: Hashable) -> float:
        """The same, and nothing is taken."""
        return self._visit(key, 0.0)

    def _visit(self, key: Hashable, taken: float) -> float:
        if self._per_s <= 0:
            return 0.0
        now = self._now()
        with self._lock:
            level, at = self._levels.pop(key, (self._burst, now))
            level = min(self._burst, level + (now - at) * self._per_s)
            wait_s = 0.0 if level >= 1 else (1 - level) / self._per_s
            self._levels[key] = (level - taken if wait_s == 0 else level, now)
            while len(self._levels) > MOST_BUCKETS:
                self._levels.popitem(last=False)
        return wait_s


class Rates:
    """The limits in force: requests by key, requests by address, wrong keys by address."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self.by_key = Buckets(settings.rate_per_key, settings.rate_per_key * BURST_S, now)
        self.by_address = Buckets(settings.rate_per_address, settings.rate_per_address * BURST_S, now)
        # Where many share an address, one who tries keys would keep out all the others.
        self.failures = Buckets(FAILURES_PER_S if settings.rate_per_address else 0.0, FAILURES_BURST, now)


class AddressLimit:
    """Turns requests away that come too often from one address, before anything is looked up for them."""

    def __init__(self, app: ASGIApp, *, rates: Rates) -> None:
        self.app = app
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait_s = self.rates.by_address.take(place(scope.get("client"))) if scope["type"] == "http" else 0.0
        if wait_s > 0:
            answer = respond(scope["state"]["request_id"], 429, words("this address", wait_s), headers=later(wait_s))
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


def place(client: tuple[str, int] | None) -> str:
    """What an address is counted as: itself, or its network where one customer has a whole one."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return client[0]
    if address.version == 6 and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.version == 6:
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


def words(who: str, wait_s: float) -> str:
    """What is said to someone who asks too often."""
    return f"{who} asks more often than it may: go on in {math.ceil(wait_s)} s, or ask for more in one request"


def later(wait_s: float) -> dict[str, str]:
    """The header that says when to go on."""
    return {"Retry-After": str(math.ceil(wait_s))}
