"""What many look at at once is made once, and nobody is left with what is old."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from effillm_server.web.shared import Shared


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def counting() -> tuple[list[int], Callable[[], int]]:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    return made, make


def test_within_a_second_all_get_the_same_and_those_who_know_more_are_told_to_look_again(clock: Clock) -> None:
    shared, (made, make) = Shared[int](now=clock), counting()
    assert shared.get("a", 5, make) == (0, False)
    assert shared.get("a", 5, make) == (0, False)
    assert shared.get("a", 9, make) == (0, True)
    clock.now_s += 1.1
    assert shared.get("a", 9, make) == (1, False)
    assert len(made) == 2


def test_what_shows_every_event_is_never_made_again(clock: Clock) -> None:
    shared, (made, make) = Shared[int](now=clock), counting()
    shared.get("a", 5, make)
    clock.now_s += 1000
    assert shared.get("a", 5, make) == (0, False)
    assert len(made) == 1


def test_another_view_is_another_thing_and_the_oldest_makes_room(clock: Clock) -> None:
    shared, (made, make) = Shared[int](most=2, now=clock), counting()
    assert [shared.get(key, 1, make)[0] for key in ("a", "b", "a", "c", "a")] == [0, 1, 0, 2, 0]
    assert shared.get("b", 1, make) == (3, False)
    assert len(made) == 4


def test_one_makes_it_while_the_others_wait() -> None:
    shared = Shared[int]()
    begun, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def slow() -> int:
        begun.set()
        assert go_on.wait(10)
        made.append(1)
        return 7

    found: list[tuple[int, bool]] = []
    threads = [threading.Thread(target=lambda: found.append(shared.get("a", 1, slow))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert found == [(7, False)] * 5
    assert made == [1]


def test_a_failure_is_its_makers_and_the_next_one_tries_again(clock: Clock) -> None:
    shared, (_, make) = Shared[int](now=clock), counting()

    def fail() -> int:
        raise OSError("the database is away")

    with pytest.raises(OSError, match="away"):
        shared.get("a", 1, fail)
    assert shared.get("a", 1, make) == (0, False)
