from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from effillm_server.api.app import QUICK
from effillm_server.api.quick import Quick
from tests.support.api import Api, add_device, serving
from tests.support.keys import ADMIN_KEY, bearer

PATHS = (*(route.path for route in QUICK), "/v1/sweeps?limit=1", "/v1/sweeps/{sweep_id}/jobs?limit=3")
# Answered by the routes, in their own words: no such sweep, a bad value, a parameter more, another page of this name.
OTHERS = (
    "/v1/sweeps/s000000000000", "/v1/sweeps/{sweep_id}/jobs?limit=0", "/v1/sweeps/{sweep_id}/jobs?limit=9999",
    "/v1/sweeps/{sweep_id}/jobs?state=pending", "/v1/sweeps/{sweep_id}/jobs?limit=2&limit=3", "/v1/sweeps?limit=x",
    "/sweeps/new", "/sweeps/nothing", "/v1/sweeps/a%20b", "/v1/devices?x=1", "/v1/devices/",
)  # fmt: skip


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, *, is_open: bool = True) -> Iterator[list[bool]]:
    """Whether each request that came by was answered here; with the way shut, none is."""
    answered: list[bool] = []
    real = Quick._answer

    async def noted(self: Quick, scope: Any) -> Any:
        found = await real(self, scope) if is_open else None
        answered.append(found is not None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Quick, "_answer", noted)
        yield answered


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    """A server that asks for keys, and a client with none."""
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


def told(api: Api, path: str, **headers: str) -> tuple[Any, ...]:
    """All that an answer tells, less what is its own."""
    answer = api.http.get(path, headers=headers)
    own = {"x-request-id", "date"}
    kept = {name: value for name, value in answer.headers.items() if name not in own}
    text = answer.text.replace(answer.headers["x-request-id"], "*")
    return answer.status_code, kept, text


@pytest.mark.parametrize("path", PATHS)
def test_the_quick_way_answers_what_the_usual_way_does(api: Api, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_device(api.engine)
    api.submit()
    here = path.format(sweep_id=api.submit()["id"])
    with counted(monkeypatch) as answered:
        quick = told(api, here)
    with counted(monkeypatch, is_open=False) as shut:
        usual = told(api, here)
    assert answered == [True] and shut == [False]
    assert quick == usual and quick[0] == 200


@pytest.mark.parametrize("path", OTHERS)
def test_what_is_not_plain_goes_the_usual_way(api: Api, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = path.format(sweep_id=api.submit()["id"])
    with counted(monkeypatch) as answered:
        quick = told(api, here)
    with counted(monkeypatch, is_open=False):
        assert quick == told(api, here)
    assert answered == [False]


def test_it_is_counted_under_the_routes_own_name(api: Api) -> None:
    sweep = api.submit()["id"]
    api.http.get(f"/v1/sweeps/{sweep}")
    assert 'route="/v1/sweeps/{sweep_id}"' in api.http.get("/metrics").text


def test_who_is_not_known_yet_goes_the_usual_way_and_then_this_one(
    guarded: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bearer(ADMIN_KEY)["Authorization"]
    with counted(monkeypatch) as answered:
        statuses = [guarded.http.get("/v1/devices", headers=headers).status_code for headers in (
            {}, {"Authorization": "Bearer eff_wrong"}, {"Authorization": f"Basic {ADMIN_KEY}"}, {"Cookie": "effillm_session=no"},
        )]  # fmt: skip
        assert statuses == [401] * 4 and answered == [False] * 4
        # Known for two seconds after the first time, which a busy machine may take between two requests.
        for _ in range(5):
            assert guarded.http.get("/v1/devices", headers={"Authorization": key}).status_code == 200
    assert answered[4] is False and any(answered[5:])
