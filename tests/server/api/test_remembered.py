from __future__ import annotations

from collections.abc import Sequence

from effillm_server.api.remembered import Remembered
from tests.support.clock import FakeClock


class Shelf:
    """What there is to read, and what was asked for each time."""

    def __init__(self, **values: int) -> None:
        self.values, self.asked = values, list[set[str]]()
        self.clock = FakeClock()
        self.remembered = Remembered(self.read, 2.0, self.clock, most=4)

    def read(self, keys: Sequence[str]) -> dict[str, int]:
        self.asked.append(set(keys))
        return {key: self.values[key] for key in keys if key in self.values}


def test_a_value_is_read_once_and_again_when_it_is_too_old() -> None:
    shelf = Shelf(ada=1)
    assert [shelf.remembered.get("ada") for _ in range(3)] == [1, 1, 1]
    shelf.values["ada"] = 2
    shelf.clock.now_s += 1.9
    assert shelf.remembered.get("ada") == 1
    shelf.clock.now_s += 0.1
    assert shelf.remembered.get("ada") == 2
    assert shelf.asked == [{"ada"}, {"ada"}]


def test_who_is_looked_up_takes_along_those_who_ask_again_and_again() -> None:
    shelf = Shelf(ada=1, bob=1, eve=1)
    shelf.remembered.get("eve")  # and never again
    for _ in range(7):
        shelf.remembered.get("ada")
        shelf.remembered.get("bob")
        shelf.clock.now_s += 0.9
    assert shelf.asked == [{"eve"}, {"ada"}, {"bob"}, {"ada", "bob"}, {"ada", "bob"}]


def test_taking_along_keeps_nothing_alive_that_is_gone() -> None:
    shelf = Shelf(ada=1, bob=1)
    assert (shelf.remembered.get("ada"), shelf.remembered.get("bob")) == (1, 1)
    del shelf.values["bob"]
    shelf.clock.now_s += 1.5
    shelf.remembered.get("bob")
    shelf.clock.now_s += 0.5
    assert shelf.remembered.get("ada") == 1 and shelf.asked[-1] == {"ada", "bob"}
    assert not shelf.remembered.is_fresh("bob") and shelf.remembered.get("bob") is None


def test_what_does_not_exist_is_asked_for_every_time_and_the_oldest_goes_first() -> None:
    shelf = Shelf(a=1, b=1, c=1, d=1, e=1)
    assert [shelf.remembered.get("nobody") for _ in range(2)] == [None, None]
    assert len(shelf.asked) == 2
    for key in "abcde":
        shelf.remembered.get(key)
    assert [shelf.remembered.is_fresh(key) for key in "abcde"] == [False, True, True, True, True]


def test_fresh_for_a_while_means_until_then() -> None:
    shelf = Shelf(ada=1)
    shelf.remembered.get("ada")
    shelf.clock.now_s += 1.7
    assert shelf.remembered.is_fresh("ada", 0.2) and not shelf.remembered.is_fresh("ada", 0.4)
    shelf.remembered.clear()
    assert not shelf.remembered.is_fresh("ada")


def test_what_was_read_before_everything_was_cleared_is_not_remembered_after_it() -> None:
    shelf = Shelf(ada=1, bob=1)
    shelf.remembered.get("bob")
    shelf.clock.now_s += 1.5
    read = shelf.read

    def revoked_meanwhile(keys: Sequence[str]) -> dict[str, int]:
        found = read(keys)
        shelf.remembered.clear()
        return found

    shelf.remembered._read = revoked_meanwhile
    assert shelf.remembered.get("ada") == 1 and shelf.asked[-1] == {"ada", "bob"}
    assert not shelf.remembered.is_fresh("ada") and not shelf.remembered.is_fresh("bob")
