from __future__ import annotations

from effillm_server.api import examples
from tests.support.api import Api, serving


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
