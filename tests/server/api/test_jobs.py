from __future__ import annotations

from collections.abc import Mapping

import pytest

from effillm_server.api import examples, pages
from effillm_server.contract.outcome import Exit, Fault, FaultKind
from tests.support.api import Api, add_device, finish, lease, measured


def test_the_jobs_of_a_sweep_come_in_its_order_in_pages_that_link_on(api: Api) -> None:
    sweep = api.submit(batch_size=[1, 2, 3, 4, 5])
    seen: list[int] = []
    address = f"/v1/sweeps/{sweep['id']}/jobs?limit=3&state=pending"
    while True:
        answer = api.http.get(address)
        assert answer.status_code == 200
        seen += [job["ordinal"] for job in answer.json()["items"]]
        if "next" not in answer.links:
            break
        address = answer.links["next"]["url"]
        assert "state=pending" in address
    assert answer.json()["next"] is None
    assert seen == list(range(10))


def test_jobs_are_filtered_by_state(api: Api) -> None:
    sweep = api.submit(sequence_length=[128, 2048])
    infeasible = api.jobs(sweep["id"], state="infeasible")
    assert [job["cell"]["sequence_length"] for job in infeasible] == [2048] * 4
    assert {job["reason"] for job in infeasible} == {"context_window"}
    assert len(api.jobs(sweep["id"], state="pending")) == 4
    assert api.jobs(sweep["id"], state="failed") == []


@pytest.mark.parametrize("parameters, field", [
    ({"state": "done"}, "state"), ({"limit": 0}, "limit"), ({"limit": 1001}, "limit"), ({"limit": "x"}, "limit"),
    ({"after": "nonsense"}, "after"), ({"after": pages.encode("sweeps", "s1")}, "after"),
])  # fmt: skip
def test_bad_parameters_are_named_with_what_was_found(
    api: Api, parameters: Mapping[str, str | int], field: str
) -> None:
    sweep = api.submit()
    answer = api.http.get(f"/v1/sweeps/{sweep['id']}/jobs", params=dict(parameters))
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert str(parameters[field]) in answer.json()["detail"]


@pytest.mark.parametrize("job_id", ["999999", str(2**63 - 1)])
@pytest.mark.parametrize("method, suffix", [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")])
def test_an_unknown_job_is_not_found(api: Api, job_id: str, method: str, suffix: str) -> None:
    answer = api.http.request(method, f"/v1/jobs/{job_id}{suffix}")
    assert answer.status_code == 404
    assert f"no job has the id {job_id}" in answer.json()["detail"]


@pytest.mark.parametrize("job_id", ["0", "-1", "x", str(2**63), "1.5"])
def test_what_cannot_be_a_job_id_is_refused(api: Api, job_id: str) -> None:
    answer = api.http.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 422
    assert answer.json()["field"] == "job_id"


def test_a_waiting_job_says_in_words_what_it_waits_for(api: Api) -> None:
    job = api.jobs(api.submit(hardware=["t4"])["id"])[0]
    detail = api.http.get(f"/v1/jobs/{job['id']}").json()
    assert "t4" in detail["explanation"]
    assert detail["attempts"] == [] and detail["result"] is None


def test_a_measured_job_shows_its_attempt_its_row_and_its_raw_samples(api: Api) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine)
    outcome = measured(held)
    finish(api.engine, held, outcome)
    detail = api.http.get(f"/v1/jobs/{held.job_id}").json()
    assert detail["state"] == "measured" and detail["verdict"] == "valid"
    assert [attempt["outcome"] for attempt in detail["attempts"]] == ["measured"]
    samples = detail["result"]["samples"]
    assert [sample["timestamps_ns"] for sample in samples] == [list(sample.timestamps_ns) for sample in outcome.samples]
    assert detail["result"]["row"]["job"] == held.job_id
    assert detail["result"]["row"]["load_s"] == 0.5


def test_a_failed_attempt_shows_how_it_ended_and_its_last_lines(api: Api) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine)
    ended = Exit(signal="SIGSEGV", log_tail=("first", "Segmentation fault"))
    finish(api.engine, held, Fault(fault=FaultKind.CRASHED, message="ended by SIGSEGV", exit=ended))
    detail = api.http.get(f"/v1/jobs/{held.job_id}").json()
    assert detail["state"] == "pending" and detail["not_before"] is not None
    (attempt,) = detail["attempts"]
    assert (attempt["outcome"], attempt["reason"], attempt["signal"]) == ("fault", "crashed", "SIGSEGV")
    assert attempt["log_tail"] == ["first", "Segmentation fault"]
    assert attempt["device"] == examples.DEVICE_ID


def test_a_pending_job_is_cancelled_and_taken_up_again(api: Api) -> None:
    job = api.jobs(api.submit()["id"])[0]
    assert api.http.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert api.http.post(f"/v1/jobs/{job['id']}/retry").json()["state"] == "pending"


def test_a_job_is_cancelled_again_without_harm_and_retried_only_when_it_has_ended(api: Api) -> None:
    job = api.jobs(api.submit()["id"])[0]
    address = f"/v1/jobs/{job['id']}"
    before = api.unchanged("job.cancel", "job.retry")
    audited = audit_lines(api)
    waiting = api.http.post(f"{address}/retry")
    assert waiting.status_code == 409
    assert "is pending: only a job that is cancelled, failed, measured" in waiting.json()["detail"]
    assert api.jobs(job["sweep"])[0] == job
    # A client that heard no answer asks again; the second time nothing changes.
    first, again = (api.http.post(f"{address}/cancel") for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())
    assert audit_lines(api) == audited + 1
    add_device(api.engine)
    held = lease(api.engine)
    assert api.http.post(f"/v1/jobs/{held.job_id}/retry").status_code == 409
    finish(api.engine, held, measured(held))
    late = api.http.post(f"/v1/jobs/{held.job_id}/cancel")
    assert (late.status_code, "is measured already" in late.json()["detail"]) == (409, True)
    after = api.unchanged("job.cancel", "job.retry")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]


def audit_lines(api: Api) -> int:
    """How often the cancelling of a job has been written down."""
    return len(api.http.get("/v1/audit", params={"action": "job.cancel", "limit": 1000}).json()["items"])


def test_a_job_that_cannot_run_cannot_be_retried_and_stays_as_it_is(api: Api) -> None:
    job = api.jobs(api.submit(sequence_length=[2048])["id"])[0]
    answer = api.http.post(f"/v1/jobs/{job['id']}/retry")
    assert answer.status_code == 409
    assert "infeasible" in answer.json()["detail"]
    assert api.jobs(job["sweep"])[0] == job
