from __future__ import annotations

from itertools import pairwise

from effillm_worker.fleet.offers import Offer
from effillm_worker.fleet.pool import GROWN_UP_S, LONGEST_REST_S, _Births, _offer


def test_an_offer_is_read_back_from_its_resource() -> None:
    offer = Offer("GPU-12:34", "a100-mig-1g.5gb")
    assert _offer(offer.resource) == offer


def test_an_actor_that_dies_young_is_made_again_at_once_and_then_ever_more_rarely() -> None:
    births = _Births()
    made = [second for second in range(400) if births.may_try(float(second))]
    rests = [later - earlier for earlier, later in pairwise(made)]
    assert rests[:6] == [1, 2, 4, 8, 16, 32]
    assert set(rests[6:]) == {int(LONGEST_REST_S)}


def test_an_actor_that_lived_long_is_replaced_at_once() -> None:
    births = _Births()
    for second in (0.0, 1.0, 3.0, 7.0):
        assert births.may_try(second)
    later = 7.0 + GROWN_UP_S
    assert births.may_try(later)
    assert births.may_try(later + 1.0)
