from __future__ import annotations

import re

from effillm_server.api import examples
from tests.support.api import Api, add_device, declaration, finish, lease, measured, serving

LINE = re.compile(r"(?P<name>[a-z_]+)(\{(?P<labels>[^}]*)\})? (?P<value>[0-9.e+-]+)")


def figures(api: Api) -> dict[str, float]:
    """Every sample of /metrics by `name{labels}`."""
    answer = api.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            found[line.rpartition(" ")[0]] = float(match["value"])
    return found


def test_the_process_says_that_it_lives_and_is_ready(api: Api) -> None:
    assert api.http.get("/healthz").json() == {"status": "ok"}
    assert api.http.get("/readyz").json() == {"status": "ready"}


def test_without_its_database_it_lives_is_not_ready_and_says_so_everywhere() -> None:
    with serving("postgresql://nobody:secret@127.0.0.1:9/nothing") as api:
        assert api.http.get("/healthz").status_code == 200
        for path in ("/readyz", "/metrics", "/v1/sweeps", "/v1/jobs/1", "/v1/devices", "/v1/events"):
            answer = api.http.get(path)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "2"
            assert answer.json()["type"] == "urn:effillm:unavailable"
            assert not any(word in answer.text for word in ("psycopg2", "SELECT", "secret"))
        assert api.http.post("/v1/sweeps", json=examples.DEFINITION).status_code == 503


def test_metrics_count_jobs_by_state_devices_and_the_age_of_the_queue(api: Api) -> None:
    api.submit(sequence_length=[128, 2048])
    add_device(api.engine)
    add_device(api.engine, declaration("bench-2-t4", "t4", declared=True))
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    found = figures(api)
    assert found['effillm_jobs{state="pending"}'] == 3
    assert found['effillm_jobs{state="measured"}'] == 1
    assert found['effillm_jobs{state="infeasible"}'] == 4
    assert found['effillm_jobs{state="failed"}'] == 0
    assert found['effillm_devices{hardware="cpu",state="free"}'] == 1
    assert found['effillm_devices{hardware="t4",state="free"}'] == 1
    assert 0 <= found["effillm_queue_age_seconds"] < 60
    assert found["effillm_leases_reaped_total"] == found["effillm_rejected_outcomes_total"] == 0


def test_every_figure_has_its_help_and_type(api: Api) -> None:
    text = api.http.get("/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    for name in names:
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} " in text
