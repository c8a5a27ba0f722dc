"""What the client makes of a server's answers: errors in words, pages in a row, submissions never twice."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from effillm_server.cli.claim import Claim
from effillm_server.cli.client import Client
from effillm_server.errors import BadInput, Conflict, EffillmError, NotFound, Unavailable

Answer = Callable[[httpx.Request], httpx.Response]


def client(answer: Answer) -> Client:
    return Client("http://server", transport=httpx.MockTransport(answer))


def problem(status: int, detail: str, **more: object) -> Answer:
    return lambda _: httpx.Response(status, json={"title": "x", "status": status, "detail": detail, **more})


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadInput), (413, BadInput), (422, BadInput), (404, NotFound), (409, Conflict), (503, Unavailable)],
)
def test_a_problem_document_becomes_the_error_of_its_kind(status: int, kind: type[EffillmError]) -> None:
    with pytest.raises(kind, match="what to do"):
        client(problem(status, "what to do")).get("/v1/sweeps")


def test_every_problem_of_the_input_is_told(tmp_path: Path) -> None:
    errors = [{"field": "name", "message": "missing"}, {"field": "batch_size.0", "message": "at least 1, found 0"}]
    with pytest.raises(BadInput) as caught:
        client(problem(422, "name: missing", field="name", errors=errors)).submit(b"{}")
    assert str(caught.value) == "name: missing\n  batch_size.0: at least 1, found 0"
    assert caught.value.field == "name"


def test_a_refused_key_names_the_variable_that_holds_it() -> None:
    with pytest.raises(BadInput, match="EFFILLM_API_KEY"):
        client(problem(401, "no such key")).get("/v1/sweeps")


def test_a_server_error_names_the_request_for_the_log() -> None:
    with pytest.raises(Unavailable, match="request abc in the server's log"):
        client(problem(500, "unexpected", request_id="abc")).get("/v1/sweeps")


def test_an_answer_that_is_no_problem_document_is_still_told() -> None:
    with pytest.raises(Unavailable, match="the server answered 502"):
        client(lambda _: httpx.Response(502, text="<html>bad gateway</html>")).get("/v1/sweeps")


def test_a_submission_is_repeated_under_the_same_key_when_the_connection_breaks() -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            raise httpx.RemoteProtocolError("server disconnected")
        return httpx.Response(201, json={"id": "s1"})

    assert client(answer).submit(b"name: x") == {"id": "s1"}
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_pages_follow_one_another_until_the_last() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        after = int(request.url.params.get("after", 0))
        return httpx.Response(200, json={"items": [{"n": after}], "next": str(after + 1) if after < 2 else None})

    assert [item["n"] for item in client(answer).pages("/v1/x")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "meant"), [("abc1", "abc1"), ("abd", "abd3"), ("latest", "abc1"), ("abc12", "abc12")]
)
def test_a_sweep_is_named_by_id_by_a_prefix_or_as_the_latest(given: str, meant: str) -> None:
    assert client(three_sweeps).sweep_id(given) == meant


def test_a_prefix_of_several_sweeps_is_refused_with_the_candidates() -> None:
    with pytest.raises(BadInput, match=r"2 sweep ids \(abc1, abc12\)"):
        client(three_sweeps).sweep_id("abc")


def test_a_prefix_of_none_is_not_found() -> None:
    with pytest.raises(NotFound, match="begins with 'x'"):
        client(three_sweeps).sweep_id("x")


def three_sweeps(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"items": [{"id": "abc1"}, {"id": "abc12"}, {"id": "abd3"}], "next": None})


def test_a_download_that_is_refused_writes_nothing() -> None:
    target = io.BytesIO()
    with pytest.raises(NotFound):
        client(problem(404, "no sweep")).download("/v1/sweeps/x/results", target)
    assert target.getvalue() == b""


def test_the_address_of_a_local_up_is_found_by_its_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EFFILLM_URL", raising=False)
    monkeypatch.setenv("EFFILLM_DATA_DIR", str(tmp_path))
    claim = Claim(tmp_path)
    claim.publish({"url": "http://127.0.0.1:4321"})
    assert Client().url == "http://127.0.0.1:4321"
    claim.release()
    assert Client().url == "http://127.0.0.1:8750"
