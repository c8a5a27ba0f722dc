"""Quality on its way through the ledger: asked for with the lease, stored with the child, read in the row of every cell."""

from __future__ import annotations

import math

from sqlalchemy import Engine

from effillm_server.analysis.rows import row
from effillm_server.contract.outcome import LoadedModel
from effillm_server.contract.quality import Agreement, Losses, Quality, QualityPlan
from effillm_server.ledger import queries, queue
from tests.support.ledger import BOOT, cell, child, join, leased, measured, submit

REFERENCE = Losses(nll=(1.0, 2.0, 3.0), tokens=(100, 100, 100))
FOUND = Quality(
    text="shipped", text_digest="abc", window=512, stride=256, losses=Losses(nll=(1.1, 2.1, 3.1), tokens=(100, 100, 100)),
    agreement=Agreement(
        reference="facebook/opt-125m fp32", positions=300, agreeing=270, kl_positions=100, mean_kl=0.05, kl_se=0.01, losses=REFERENCE
    ),
    seconds=3.5,
)  # fmt: skip


def test_a_lease_carries_what_its_sweep_wants_to_know_of_quality(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), quality={"text": "ours.txt", "tokens": 1000})
        granted = leased(c)
        again = leased(c)
    assert granted.quality == QualityPlan(text="ours.txt", tokens=1000)
    assert again == granted


def test_a_lease_of_a_sweep_that_does_not_ask_carries_none(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        assert leased(c).quality is None


def test_every_cell_of_the_child_has_its_quality_and_a_child_without_has_none(engine: Engine) -> None:
    model = LoadedModel(parameters=1000, weight_bytes=4000, bits_per_weight=32.0, dtype="float32")
    judged = child("judged", loaded_model=model.model_copy(update={"quality": FOUND}))
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell(), cell(batch_size=2), cell(batch_size=4), quality={})
        for of in (child("judged", loaded_model=model), judged, child("other", loaded_model=model)):
            lease = leased(c)
            queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, measured(child=of))
        rows = [row(result) for result in queries.results(c, sweep_id, None, 10, with_samples=True)]
    # The first cell's child was reported before it was judged: the child's own record is what counts.
    assert [found["token_agreement"] for found in rows] == [0.9, 0.9, None]
    assert rows[0]["perplexity"] == rows[1]["perplexity"] == math.exp(2.1)
    assert rows[1]["quality_loss"] is not None and math.isclose(rows[1]["quality_loss"], math.expm1(0.1))
    assert rows[2]["perplexity"] is None
