"""Token buckets, and the answers they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from effillm_server import credentials
from effillm_server.api.rates import FAILURES_BURST, MOST_BUCKETS, Buckets, Rates, place
from effillm_server.settings import Settings
from tests.support.api import Api, serving
from tests.support.clock import FakeClock
from tests.support.keys import ADMIN_KEY, bearer, make_key


def test_a_bucket_gives_its_burst_and_then_as_much_as_flows_in() -> None:
    clock = FakeClock()
    bucket = Buckets(2.0, 3.0, clock)
    assert [bucket.take("ada") for _ in range(3)] == [0, 0, 0]
    assert bucket.take("ada") == pytest.approx(0.5)
    clock.now_s += 0.5
    assert bucket.take("ada") == 0
    assert bucket.take("ada") == pytest.approx(0.5)
    clock.now_s += 3600
    assert [bucket.take("ada") == 0 for _ in range(4)] == [True, True, True, False]


def test_everyone_has_a_bucket_of_their_own() -> None:
    bucket = Buckets(1.0, 1.0, FakeClock())
    assert bucket.take("ada") == 0
    assert bucket.take("ada") > 0
    assert bucket.take("bob") == 0


def test_being_refused_costs_nothing_and_looking_takes_nothing() -> None:
    clock = FakeClock()
    bucket = Buckets(1.0, 1.0, clock)
    assert bucket.look("ada") == bucket.look("ada") == bucket.take("ada") == 0
    for _ in range(100):
        assert bucket.take("ada") == pytest.approx(1.0)
    clock.now_s += 1
    assert bucket.take("ada") == 0


def test_zero_lets_everything_through() -> None:
    bucket = Buckets(0.0, 0.0, FakeClock())
    assert all(bucket.take("ada") == 0 for _ in range(1000))


def test_memory_stays_bounded_however_many_ask() -> None:
    bucket = Buckets(1.0, 1.0, FakeClock())
    for number in range(MOST_BUCKETS + 500):
        bucket.take(number)
    assert len(bucket._levels) == MOST_BUCKETS


@pytest.mark.parametrize(("client", "counted"), [
    (("192.0.2.7", 1), "192.0.2.7"), (("2001:db8:1:2:3::9", 1), "2001:db8:1:2::/64"), (None, ""), (("testclient", 1), "testclient"),
    (("::ffff:192.0.2.7", 1), "192.0.2.7"),
])  # fmt: skip
def test_an_address_is_counted_by_itself_or_by_its_network(client: tuple[str, int] | None, counted: str) -> None:
    assert place(client) == counted


def test_behind_a_proxy_that_limits_nobody_keeps_the_others_out_by_wrong_keys() -> None:
    rates = Rates(Settings(rate_per_address=0), FakeClock())
    assert all(rates.failures.take("proxy") == 0 for _ in range(1000))


@contextmanager
def limited(database_url: str, **rates: float) -> Iterator[Api]:
    """A server that asks for keys, with these limits."""
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY, **rates) as api:
        yield api


def test_a_key_that_asks_too_often_is_told_when_to_go_on_and_others_are_served(database_url: str) -> None:
    with limited(database_url, rate_per_key=0.5, rate_per_address=0) as api:
        ada, bob = (bearer(make_key(api, who, "read")["key"]) for who in ("ada", "bob"))
        answers = [api.http.get("/v1/session", headers=ada) for _ in range(12)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 1 <= int(refused[0].headers["retry-after"]) <= 2
        assert refused[0].json()["type"] == "urn:effillm:too-many-requests"
        assert "ada" in refused[0].json()["detail"]
        assert api.http.get("/v1/session", headers=bob).status_code == 200


def test_an_address_that_asks_too_often_is_refused_before_anything_is_looked_up(database_url: str) -> None:
    with limited(database_url, rate_per_address=0.5) as api:
        codes = [api.http.get("/healthz").status_code for _ in range(12)]
    assert codes[:5] == [200] * 5
    assert 429 in codes


def test_an_address_that_sends_wrong_keys_again_and_again_is_held_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effillm_server.api.rates.FAILURES_PER_S", 1e-6)
    with limited(database_url) as api:
        wrong = [bearer(credentials.new_key()) for _ in range(int(FAILURES_BURST) + 1)]
        codes = [api.http.get("/v1/session", headers=key).status_code for key in wrong]
        assert codes == [401] * int(FAILURES_BURST) + [429]
        # A right key is held up too: telling it from a wrong one is what costs.
        assert api.http.get("/v1/session", headers=bearer(ADMIN_KEY)).status_code == 429


def test_where_no_keys_are_asked_for_nobody_is_limited(database_url: str) -> None:
    with serving(database_url, rate_per_address=0.1, rate_per_key=0.1) as api:
        assert {api.http.get("/v1/session").status_code for _ in range(12)} == {200}
