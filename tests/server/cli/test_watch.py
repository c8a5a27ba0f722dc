"""Following a sweep: what is said while it runs, and what the end means."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import httpx
import pytest

from effillm_server.cli import watch
from effillm_server.cli.client import Client
from effillm_server.cli.watch import Snapshot, again, doing, follow, outcome, time_left
from effillm_server.errors import Unavailable


def test_what_is_running_is_told_before_what_waits() -> None:
    assert doing(Snapshot(sweep(leased=1), ("a on cpu",), None)) == "now: a on cpu"
    assert (
        doing(Snapshot(sweep(pending=1), (), "waiting for a device of class t4")) == "waiting for a device of class t4"
    )


def test_a_job_that_is_measured_once_more_says_why() -> None:
    assert again({"remeasures": 1, "faults": 0}) == " (again, bad conditions 1 of at most 2 times)"
    assert again({"remeasures": 0, "faults": 1}) == " (attempt 2 of 3)"
    assert again({"remeasures": 0, "faults": 0}) == ""


def test_time_left_follows_the_rate_seen_here() -> None:
    assert time_left(0, 10, 5.0) is None
    assert time_left(5, 10, 20.0) == 40.0


def test_a_failed_or_cancelled_job_is_a_failure_and_one_that_cannot_run_is_an_answer() -> None:
    assert outcome(sweep(measured=3, infeasible=1)) == 0
    assert outcome(sweep(measured=3, failed=1)) == 1
    assert outcome(sweep(measured=3, cancelled=1)) == 1


def test_following_ends_with_the_sweep_and_says_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    states = [sweep(pending=1, measured=1), sweep(pending=1, measured=1), sweep("finished", measured=2)]
    server = Server(states)
    assert follow(server.client(), "s1", interval_s=0)["state"] == "finished"
    assert capsys.readouterr().err.splitlines() == [
        "1 of 2 done: 1 measured, 1 pending; waiting for a device of class t4",
        "2 of 2 done: 2 measured",
    ]


def test_a_server_that_is_away_for_a_while_does_not_end_the_following(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server([None, None, sweep("finished", measured=2)])
    assert follow(server.client(), "s1", interval_s=0)["state"] == "finished"
    assert capsys.readouterr().err.count("still looking") == 1


def test_a_server_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, watch.PATIENCE_S + 1])
    # A clock of the module's own: other threads of this process look at the real one.
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: next(moments), sleep=time.sleep))
    with pytest.raises(Unavailable):
        follow(Server([None, None, None]).client(), "s1", interval_s=0)


class Server:
    """Answers with the given states of one sweep, one after the other; None is a server that is away."""

    def __init__(self, states: list[dict[str, object] | None]) -> None:
        self._states = iter(states)

    def client(self) -> Client:
        return Client("http://server", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/v1/sweeps/s1":
                state = next(self._states)
                if state is None:
                    raise httpx.ConnectError("refused")
                return httpx.Response(200, content=json.dumps(state))
            case "/v1/sweeps/s1/jobs":
                return httpx.Response(200, json={"items": [{"id": 7}], "next": None})
            case "/v1/jobs/7":
                return httpx.Response(200, json={"explanation": "waiting for a device of class t4"})
        raise AssertionError(request.url.path)


def sweep(state: str = "running", **counts: int) -> dict[str, object]:
    return {"id": "s1", "state": state, "total": sum(counts.values()), "counts": counts}
