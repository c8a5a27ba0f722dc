from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from effillm_server.api import examples
from tests.support.api import Api, add_device, finish, lease, measured, serving


def test_a_sweep_in_json_is_stored_whole_with_its_address(api: Api) -> None:
    answer = api.http.post("/v1/sweeps", json=examples.DEFINITION)
    sweep = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/sweeps/{sweep['id']}"
    assert sweep["total"] == 4 and sweep["counts"]["pending"] == 4 and sweep["state"] == "pending"
    assert api.http.get(answer.headers["location"]).json() == sweep


@pytest.mark.parametrize("content_type", ["application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"])
def test_a_sweep_in_yaml_is_the_same_sweep(api: Api, content_type: str) -> None:
    answer = api.http.post(
        "/v1/sweeps", content=examples.DEFINITION_YAML.encode(), headers={"Content-Type": content_type}
    )
    assert answer.status_code == 201
    assert answer.json()["definition"] == api.submit()["definition"]


def test_a_body_that_is_neither_json_nor_yaml_by_its_type_is_refused(api: Api) -> None:
    answer = api.http.post(
        "/v1/sweeps", content=b"name: x", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == 415
    assert "application/yaml" in answer.json()["detail"]


def test_the_same_key_gives_the_same_sweep(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    first = api.http.post("/v1/sweeps", json=examples.DEFINITION, headers=headers)
    second = api.http.post("/v1/sweeps", json=examples.DEFINITION, headers=headers)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    assert len(api.http.get("/v1/sweeps").json()["items"]) == 1


def test_the_same_key_sent_eight_times_at_once_stores_one_sweep(api: Api) -> None:
    def send(_: int) -> tuple[int, str]:
        answer = api.http.post("/v1/sweeps", json=examples.DEFINITION, headers={"Idempotency-Key": "race"})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert len({sweep_id for _, sweep_id in answers}) == 1


def test_the_same_key_with_another_definition_is_a_conflict(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    stored = api.http.post("/v1/sweeps", json=examples.DEFINITION, headers=headers).json()
    answer = api.http.post("/v1/sweeps", json=examples.DEFINITION | {"batch_size": [2]}, headers=headers)
    assert answer.status_code == 409
    assert stored["id"] in answer.json()["detail"]


@pytest.mark.parametrize("key", ["", "with space", "é", "x" * 201])
def test_a_key_that_cannot_be_kept_is_refused(api: Api, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    answer = api.http.post("/v1/sweeps", json=examples.DEFINITION, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 422
    assert answer.json()["field"] == "Idempotency-Key".lower()


BAD = {
    "no yaml": ("name: [unclosed", "not YAML", None),
    "a text": ("just words", "mapping", None),
    "nothing": ("", "empty", None),
    "unknown key": (examples.DEFINITION_YAML + "batchsize: 1\n", "batch_size", "batchsize"),
    "server's field": (examples.DEFINITION_YAML + "owner: me\n", "owner", "owner"),
    "batch zero": (examples.DEFINITION_YAML.replace("[1, 4]", "[0]"), "0", "batch_size[0]"),
    "batch negative": (examples.DEFINITION_YAML.replace("[1, 4]", "[-1]"), "-1", "batch_size[0]"),
    "batch word": (examples.DEFINITION_YAML.replace("[1, 4]", "[four]"), "four", "batch_size[0]"),
    "empty axis": (examples.DEFINITION_YAML.replace("[1, 4]", "[]"), "empty", "batch_size"),
    "model nowhere": (
        examples.DEFINITION_YAML.replace("EleutherAI/pythia-70m", "nobody/nothing"),
        "nobody/nothing",
        "models",
    ),
    "model url": (examples.DEFINITION_YAML.replace("EleutherAI/pythia-70m", "'http://x'"), "URL", "models[0].id"),
    "hardware typo": (examples.DEFINITION_YAML.replace("[cpu]", "[rtx-4900]"), "'rtx-4090'", "hardware"),
    "workload typo": (examples.DEFINITION_YAML + "workload: [short-aq]\n", "'short-qa'", "workload"),
    "alias bomb": ("a: &a [1]\nb: [*a, *a]", "anchors", None),
    "too deep": ("[" * 30 + "]" * 30, "deep", None),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("route", ["/v1/sweeps", "/v1/sweeps/preview"])
def test_bad_definitions_are_refused_naming_place_value_and_what_is_allowed(api: Api, case: str, route: str) -> None:
    body, says, field = BAD[case]
    answer = api.http.post(route, content=body.encode(), headers={"Content-Type": "application/yaml"})
    problem = answer.json()
    assert answer.status_code == 422, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in problem["detail"]
    assert problem.get("field") == field
    assert api.http.get("/v1/sweeps").json()["items"] == []


def test_a_sweep_of_a_billion_cells_is_refused_at_once(api: Api) -> None:
    huge = examples.DEFINITION | {
        "batch_size": list(range(1, 1001)),
        "sequence_length": list(range(1, 1001)),
        "generate_tokens": list(range(1, 501)),
    }
    body = json.dumps(huge)
    began_s = time.monotonic()
    answer = api.http.post("/v1/sweeps", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "sweep expands to 1,000,000,000 jobs, the limit is 1,000,000" in answer.json()["detail"]
    assert time.monotonic() - began_s < 30  # building them would take hours
    assert api.http.get("/v1/sweeps").json()["items"] == []


def test_the_limit_of_jobs_is_a_setting(database_url: str) -> None:
    with serving(database_url, max_jobs=3) as api:
        answer = api.http.post("/v1/sweeps", json=examples.DEFINITION)
    assert answer.status_code == 422
    assert "EFFILLM_MAX_JOBS" in answer.json()["detail"]


def test_a_preview_counts_and_stores_nothing(api: Api) -> None:
    definition = examples.DEFINITION | {
        "sequence_length": [128, 2048],
        "exclude": [{"quantization": "int8", "batch_size": 4}],
    }
    preview = api.http.post("/v1/sweeps/preview", json=definition).json()
    assert (preview["total"], preview["pending"], preview["excluded"]) == (6, 3, 2)
    assert preview["infeasible"] == {"context_window": 3}
    assert preview["examples"][0]["reason"] == "context_window"
    assert preview["missing_hardware"] == ["cpu"]
    assert api.http.get("/v1/sweeps").json()["items"] == []


def test_cells_that_cannot_run_become_rows_that_say_why(api: Api) -> None:
    sweep = api.submit(sequence_length=[2048])
    assert sweep["counts"]["infeasible"] == sweep["total"] == 4
    assert {reason: count for reason, count in sweep["reasons"].items() if count} == {"context_window": 4}
    assert sweep["state"] == "finished"


def test_a_class_that_only_a_registered_device_has_is_accepted(api: Api) -> None:
    from tests.support.api import declaration

    assert api.http.post("/v1/sweeps", json=examples.DEFINITION | {"hardware": ["x9000"]}).status_code == 422
    add_device(api.engine, declaration("box-x9000", "x9000"))
    assert api.submit(hardware=["x9000"])["total"] == 4


def test_sweeps_are_listed_newest_first_in_pages_that_link_on(api: Api) -> None:
    ids = [api.submit(name=f"sweep {i}")["id"] for i in range(5)]
    seen: list[str] = []
    address = "/v1/sweeps?limit=2"
    while True:
        answer = api.http.get(address)
        seen += [sweep["id"] for sweep in answer.json()["items"]]
        if "next" not in answer.links:
            break
        assert answer.json()["next"] in answer.links["next"]["url"]
        address = answer.links["next"]["url"]
    assert seen == ids[::-1]


@pytest.mark.parametrize("method, path", [
    ("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/jobs"), ("GET", "/results"), ("GET", "/frontier"),
])  # fmt: skip
def test_an_unknown_sweep_is_not_found_on_every_route(api: Api, method: str, path: str) -> None:
    answer = api.http.request(method, f"/v1/sweeps/s0unknown{path}")
    assert answer.status_code == 404
    assert "no sweep has the id 's0unknown'" in answer.json()["detail"]


def test_a_cancelled_sweep_keeps_its_results_and_can_be_taken_up_again(api: Api) -> None:
    sweep = api.submit()
    add_device(api.engine)
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    cancelled = api.http.post(f"/v1/sweeps/{sweep['id']}/cancel").json()
    assert cancelled["changed"] == 3
    assert cancelled["sweep"]["counts"]["cancelled"] == 3 and cancelled["sweep"]["counts"]["measured"] == 1
    retried = api.http.post(f"/v1/sweeps/{sweep['id']}/retry").json()
    assert retried["changed"] == 3 and retried["note"] is None
    assert retried["sweep"]["counts"]["pending"] == 3 and retried["sweep"]["counts"]["measured"] == 1


def test_a_sweep_cancelled_or_retried_again_stays_as_it_is_and_says_why(api: Api) -> None:
    sweep = api.submit()
    address = f"/v1/sweeps/{sweep['id']}"
    before = api.unchanged("sweep.cancel", "sweep.retry")
    retried = api.http.post(f"{address}/retry").json()
    assert retried["note"].startswith("no job of the sweep has failed or was cancelled")
    first, again = (api.http.post(f"{address}/cancel") for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert (first.json()["changed"], again.json()["changed"]) == (4, 0)
    assert again.json()["note"] == "the sweep was cancelled already: nothing of it is left to cancel"
    assert again.json()["sweep"] == first.json()["sweep"]
    lines = api.http.get("/v1/audit", params={"subject": sweep["id"]}).json()["items"]
    assert [line["action"] for line in lines] == ["sweep.cancel", "sweep.submit"]
    after = api.unchanged("sweep.cancel", "sweep.retry")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


def test_a_sweep_that_has_ended_is_not_cancelled_afterwards(api: Api) -> None:
    sweep = api.submit(batch_size=[1], quantization=["fp32"])
    add_device(api.engine)
    for _ in range(sweep["counts"]["pending"]):
        held = lease(api.engine)
        finish(api.engine, held, measured(held))
    late = api.http.post(f"/v1/sweeps/{sweep['id']}/cancel").json()
    assert (late["changed"], late["sweep"]["state"], late["sweep"]["cancelled_at"]) == (0, "finished", None)
    assert late["note"] == "the sweep has ended already: nothing of it is left to cancel"


@pytest.mark.parametrize("body", [
    '{"name": "\\ud800"}', '{"\\ud800": 1}', '{"name": "a\\u0000b"}', '{"name": NaN}', '{"batch_size": [1e999]}',
    '{"batch_size": [' + "9" * 5000 + "]}", "[" * 100_000, '{"a": 1, "a": 2}', "\ufeff", "null", "1", '"x"', "{}", "{",
])  # fmt: skip
def test_hostile_json_is_refused_in_words(api: Api, body: str) -> None:
    answer = api.http.post("/v1/sweeps", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "body", [b"\xff\xfe\x00", b"name: \x00", b"a: !!python/object:os.system x", b"? [a]\n: b", b"--- a\n--- b"]
)
def test_hostile_yaml_is_refused_in_words(api: Api, body: bytes) -> None:
    answer = api.http.post("/v1/sweeps", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]
