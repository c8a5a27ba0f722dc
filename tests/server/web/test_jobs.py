"""The page of a cell: what was measured and how, and how to do it again."""

from __future__ import annotations

import html
import re

import pytest

from effillm_server.contract.outcome import Exit, Fault, FaultKind, LoadedModel
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.quality import Agreement, Losses, Quality, QualityPlan, TaskScore, TimeShares
from effillm_server.expand import count
from tests.server.web.conftest import Lab
from tests.support.api import add_device, as_measured, finish, lease, measured
from tests.support.pages import HOSTILE, Markup


def test_a_measured_cell_shows_numbers_timeline_memory_conditions_and_fingerprint(lab: Lab) -> None:
    page = lab.page(f"/jobs/{lab.measured}")
    markup = Markup.of(page)
    detail = lab.api.http.get(f"/v1/jobs/{lab.measured}").json()
    for title in ("What was measured", "Timeline", "Memory", "Conditions during the run", "What it ran on", "Attempts"):
        assert title in markup.text
    samples = detail["result"]["samples"]
    assert len(re.findall(r'<g class="i-', page)) == len(samples)
    assert detail["result"]["row"]["fingerprint"] in markup.text
    assert "SIMULATED" in markup.text


def test_weights_and_cache_stand_beside_their_predictions_and_the_network_among_the_conditions(fresh: Lab) -> None:
    device = add_device(fresh.api.engine)
    sweep = fresh.api.submit(name="account", batch_size=[1], quantization=["fp32"])["id"]
    held = lease(fresh.api.engine, device)
    assert held.sweep_id == sweep
    outcome = measured(held)
    account = {
        "weights_bytes": 222_000_000,
        "weights_predicted_bytes": 70_400_000,
        "kv_cache_predicted_bytes": 2_000_000,
    }
    memory = outcome.memory.model_copy(update={"account": account})
    details = outcome.details | {"network": "none"}
    finish(fresh.api.engine, held, outcome.model_copy(update={"memory": memory, "details": details}))
    text = " ".join(Markup.of(fresh.page(f"/jobs/{held.job_id}")).text.split())
    assert "Line Found Predicted weights 222 MB 70.4 MB kv cache – 2 MB" in text
    assert "network none" in text
    fresh.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def again(lab: Lab, job: int) -> str:
    """The sweep of this cell alone that its page shows."""
    (shown,) = re.findall(
        r'<pre class="code" tabindex="0" aria-labelledby="again-title">(.*?)</pre>', lab.page(f"/jobs/{job}"), re.S
    )
    return html.unescape(shown)


@pytest.mark.parametrize("asked", [{}, {"tokens": 512}])
def test_what_is_run_by_hand_measures_the_quality_that_the_sweep_asked_for(fresh: Lab, asked: dict[str, int]) -> None:
    sweep = fresh.api.submit(name="judged", batch_size=[1], quantization=["fp16"], quality=asked)["id"]
    job, *_ = fresh.api.http.get(f"/v1/sweeps/{sweep}/jobs").json()["items"]
    assert parse_definition(again(fresh, job["id"])).quality == QualityPlan.model_validate(asked)
    fresh.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_what_is_run_by_hand_is_exactly_this_cell(lab: Lab) -> None:
    shown = again(lab, lab.measured)
    definition = parse_definition(shown)
    assert definition.quality is None
    cell = lab.api.http.get(f"/v1/jobs/{lab.measured}").json()["cell"]
    assert count(definition) == 1
    assert (definition.batch_size, definition.sequence_length) == ((cell["batch_size"],), (cell["sequence_length"],))
    assert [str(one) for one in definition.quantization] == [cell["quantization"]]
    assert (
        definition.measurement
        == parse_definition(
            "{name: x, models: [a], hardware: [t4], quantization: [fp16], measurement: {warmup: 3, iterations: 5}}"
        ).measurement
    )
    stored = lab.api.http.post("/v1/sweeps/preview", content=shown, headers={"Content-Type": "application/yaml"})
    assert stored.json()["pending"] == 1


def test_a_cell_leads_to_its_place_in_the_matrix(lab: Lab) -> None:
    (link,) = [at["href"] for at in Markup.of(lab.page(f"/jobs/{lab.measured}")).all("a") if "#c" in at["href"]]
    path, _, anchor = link.partition("#")
    assert Markup.of(lab.page(path)).all("a", id=anchor) != []


def test_a_cell_that_cannot_run_says_why(lab: Lab) -> None:
    text = Markup.of(lab.page(f"/jobs/{lab.infeasible}")).text
    assert "cannot run (context_window)" in text
    assert "What was measured" not in text


def test_a_cell_is_measured_again_and_cancelled_by_its_buttons(lab: Lab) -> None:
    sweep = lab.api.submit(name="one", hardware=["a10"], batch_size=[1], quantization=["fp32"])["id"]
    (job,) = lab.api.jobs(sweep)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "Cancel this cell" in lab.page(f"/jobs/{job['id']}")
    assert lab.api.http.post(f"/jobs/{job['id']}/cancel", headers=form).headers["location"] == f"/jobs/{job['id']}"
    assert lab.api.jobs(sweep)[0]["state"] == "cancelled"
    assert "Measure again" in lab.page(f"/jobs/{job['id']}")
    assert lab.api.http.post(f"/jobs/{job['id']}/retry", headers=form).status_code == 303
    assert lab.api.jobs(sweep)[0]["state"] == "pending"
    lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def quantized(label: str) -> LoadedModel:
    """What a child says of fp32, or of int8 with its quality."""
    if label == "fp32":
        return LoadedModel(parameters=100, weight_bytes=400, bits_per_weight=32, dtype="float32")
    evidence = {"theoretical_bits": 8, "seconds": 1.5, "layers": {"Linear8bitLt": 24}}
    losses = Losses(nll=(2.0, 2.1), tokens=(300, 300))
    return LoadedModel(
        parameters=100, weight_bytes=110, bits_per_weight=8.8, dtype="float32", details={"quantization": evidence},
        quality=Quality(
            text="shipped", losses=losses, tasks=(TaskScore(task="riddles", metric="acc", value=0.5, stderr=0.05),), notes=("a note",),
            agreement=Agreement(
                reference="m fp32", positions=600, agreeing=540, kl_positions=10, mean_kl=0.1, kl_se=0.01,
                losses=Losses(nll=(1.9, 2.1), tokens=(300, 300)),
            ),
            shares=TimeShares(prompt_tokens=128, decode_steps=8, prefill_dequantization=0.1, decode_dequantization=0.7),
        ),
    )  # fmt: skip


def test_a_quantized_cell_shows_bits_kernel_time_to_quantize_quality_and_its_partner(fresh: Lab) -> None:
    device = add_device(fresh.api.engine)
    sweep = fresh.api.submit(name="stored", batch_size=[1], quantization=["fp32", "int8"])["id"]
    jobs = {}
    for _ in range(2):
        held = lease(fresh.api.engine, device)
        assert held.sweep_id == sweep
        label = held.cell.quantization
        jobs[label] = held.job_id
        finish(fresh.api.engine, held, as_measured(held, 1.0 if label == "fp32" else 2.0, 10**8, quantized(label)))
    shown = {label: Markup.of(fresh.page(f"/jobs/{job}")).text for label, job in jobs.items()}
    for said in ("bits per weight 8.8 8 without scales", "quantized layers Linear8bitLt x 24", "time to quantize 1.5 s",
                 "speed against fp32 0.5 times", "peak memory against fp32 0% less", "decoding time in dequantization 70% 10% of prefill",
                 "same next token as unquantized 90.0%", "quality lost 5.13%", "tasks riddles acc 0.5 ± 0.05",
                 "Why: int8 is slower than fp32 here: 70% of its decoding time", "About quality: a note"):  # fmt: skip
        assert said in shown["int8"], said
    assert "bits per weight 32" in shown["fp32"] and "speed against" not in shown["fp32"]


def test_what_a_child_wrote_is_shown_as_text(lab: Lab) -> None:
    device = add_device(lab.api.engine)
    sweep = lab.api.submit(name="crashes", batch_size=[1], quantization=["fp32"])["id"]
    held = lease(lab.api.engine, device)
    assert held.sweep_id == sweep
    crash = Fault(
        fault=FaultKind.CRASHED,
        message=HOSTILE,
        exit=Exit(code=1, log_tail=(HOSTILE, "</pre><img src=x onerror=alert(1)>")),
    )
    finish(lab.api.engine, held, crash)
    for path in (f"/jobs/{held.job_id}", f"/sweeps/{sweep}/jobs", f"/sweeps/{sweep}"):
        page = lab.page(path)
        markup = Markup.of(page)
        assert "<script>alert" not in page
        assert markup.inline == []
        assert markup.all("img", src="x") == []
    text = Markup.of(lab.page(f"/jobs/{held.job_id}")).text
    assert HOSTILE in text
    assert "exit code 1" in text
    lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")
