from __future__ import annotations

import pytest

from effillm_server.analysis.words import compared, percent


@pytest.mark.parametrize(
    ("share", "said", "compared_said"),
    [
        (0.5, "50%", "50% less"),
        (-0.35, "-35%", "35% more"),
        (-0.002, "0%", "0% more"),
        (0.0, "0%", "0% less"),
        (-1.0, "-100%", "100% more"),
        (None, "–", "–"),
    ],
)
def test_a_share_is_said_without_a_sign_that_means_nothing(share: float | None, said: str, compared_said: str) -> None:
    assert (percent(share), compared(share)) == (said, compared_said)
