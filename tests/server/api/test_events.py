from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from effillm_server.api import events, hub
from effillm_server.records import EventRecord, Viewer
from tests.support.api import Api, add_device, lease

ADMIN = Viewer(None, is_admin=True)


@contextmanager
def stream(api: Api, last: int | None = None, **parameters: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of an open stream, parsed."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with api.http.stream("GET", "/v1/events", params=parameters, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        if parameters.get("follow", True):
            assert next(lines) == f"retry: {events.RETRY_MS}"
        yield parsed(lines)


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            event = json.loads(fields["data"])
            assert (str(event["id"]), event["kind"]) == (fields["id"], fields["event"])
            fields = {}
            yield event


def stored(api: Api, **parameters: Any) -> list[dict[str, Any]]:
    """Everything stored behind `after`, by a stream that ends there."""
    with stream(api, follow=False, **parameters) as found:
        return list(found)


def test_a_stream_without_a_beginning_shows_what_happens_next(api: Api) -> None:
    earlier = api.submit()
    with stream(api) as live:
        later = api.submit()
        event = next(live)
    assert (event["kind"], event["sweep"]) == ("sweep_created", later["id"])
    assert event["sweep"] != earlier["id"]


def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(api: Api) -> None:
    with stream(api) as live:
        first = api.submit()["id"]
        seen = next(live)
    missed = [api.submit()["id"] for _ in range(3)]
    with stream(api, last=seen["id"]) as live:
        caught_up = [next(live)["sweep"] for _ in missed]
        following = api.submit()["id"]
        assert next(live)["sweep"] == following
    assert seen["sweep"] == first
    assert caught_up == missed


def test_catching_up_goes_on_over_many_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CATCH_UP_BATCH", 2)
    ids = [api.submit()["id"] for _ in range(7)]
    assert [event["sweep"] for event in stored(api, after=0)] == ids
    with stream(api, after=0) as live:
        assert [next(live)["sweep"] for _ in ids] == ids


def test_the_header_of_a_client_that_comes_back_counts_more_than_its_address(api: Api) -> None:
    ids = [api.submit()["id"] for _ in range(3)]
    second = stored(api, after=0)[1]["id"]
    with stream(api, last=second, after=0, follow=False) as found:
        assert [event["sweep"] for event in found] == ids[2:]


def test_a_stream_may_be_of_one_sweep(api: Api) -> None:
    api.submit()
    wanted = api.submit()["id"]
    add_device(api.engine)
    assert {event["sweep"] for event in stored(api, after=0)} > {wanted}
    assert {event["sweep"] for event in stored(api, after=0, sweep=wanted)} == {wanted}
    with stream(api, sweep=wanted) as live:
        api.submit()
        api.http.post(f"/v1/sweeps/{wanted}/cancel")
        assert next(live)["sweep"] == wanted


def test_a_lease_is_told_with_its_job(api: Api) -> None:
    api.submit()
    add_device(api.engine)
    with stream(api) as live:
        held = lease(api.engine)
        assert next(live)["job"] == held.job_id


@pytest.mark.parametrize("parameters, status", [
    ({"sweep": "s0unknown"}, 404), ({"sweep": "a b"}, 422), ({"after": -1}, 422), ({"after": "x"}, 422),
    ({"after": 2**63}, 422), ({"follow": "perhaps"}, 422),
])  # fmt: skip
def test_a_stream_of_nothing_there_is_is_refused(api: Api, parameters: dict[str, Any], status: int) -> None:
    assert api.http.get("/v1/events", params=parameters).status_code == status


def test_a_last_event_id_that_is_none_is_refused(api: Api) -> None:
    assert api.http.get("/v1/events", headers={"Last-Event-ID": "x"}).status_code == 422


def test_an_event_is_found_by_polling_where_its_notification_is_lost(api: Api) -> None:
    with stream(api) as live, api.engine.connect() as c:
        # The same transition, its NOTIFY never sent: stored rows are the truth.
        c.exec_driver_sql("INSERT INTO event (kind) VALUES ('quietly')")
        c.commit()
        assert next(live)["kind"] == "quietly"


def test_the_stream_goes_on_after_the_database_cut_its_connection(api: Api) -> None:
    with stream(api) as live, api.engine.connect() as c:
        cut = c.exec_driver_sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).scalar_one()
        c.commit()
        assert cut >= 1
        c.exec_driver_sql("INSERT INTO event (kind) VALUES ('after the cut')")
        c.commit()
        assert next(live)["kind"] == "after the cut"


def test_a_stream_that_catches_up_goes_on_after_the_database_was_away(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OperationalError("SELECT", None, Exception("server closed the connection"))] * 2)
    read = events.queries.events

    def fail_twice(*arguments: Any) -> list[EventRecord]:
        for failure in failures:
            raise failure
        return read(*arguments)

    monkeypatch.setattr(events, "READ_AGAIN_S", 0.01)
    sweep = api.submit()
    with stream(api, after=0) as warm:
        next(warm)  # the hub has now seen what is stored: the next stream has something to catch up with
    monkeypatch.setattr(events, "queries", SimpleNamespace(events=fail_twice))
    with stream(api, after=0) as live:
        assert next(live)["sweep"] == sweep["id"]
    assert next(failures, None) is None


def test_a_failure_nobody_expected_does_not_silence_the_stream(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("once")])
    read = hub.queries.events

    def fail_once(*arguments: Any) -> list[EventRecord]:
        for failure in failures:
            raise failure
        return read(*arguments)

    with stream(api) as live:
        monkeypatch.setattr(hub, "queries", SimpleNamespace(events=fail_once))
        sweep = api.submit()
        assert next(live)["sweep"] == sweep["id"]
    assert "events_failed" in caplog.text


def test_what_a_client_has_seen_is_not_sent_again_though_the_hub_is_behind() -> None:
    async def main() -> tuple[bytes | None, bytes | None]:
        sent = hub.Hub(None)  # type: ignore[arg-type]
        sent._deliver(3, [])
        ahead, behind = await sent.subscribe(None, 5, ADMIN), await sent.subscribe("s1", 0, ADMIN)
        at = datetime.now(UTC)
        sent._deliver(6, [EventRecord(i, f"s{i % 2}", None, "x", at, {}) for i in (4, 5, 6)])
        return await ahead.next(1), await behind.next(1)

    ahead, behind = asyncio.run(main())
    assert (ahead or b"").count(b"\nevent:") == 1 and b"id: 6" in (ahead or b"")
    assert (behind or b"").count(b"\nevent:") == 1 and b"id: 5" in (behind or b"")


def test_a_subscriber_that_does_not_read_is_dropped_and_the_others_go_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_BACKLOG_BYTES", 100_000)
    monkeypatch.setattr(events, "SEND_TIMEOUT_S", 0.2)
    url = api.http.base_url
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((url.host, url.port or 0))
        lazy.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert lazy.recv(12) == b"HTTP/1.1 200"
        with stream(api) as live, api.engine.connect() as c:
            for _ in range(50):
                c.exec_driver_sql(
                    "INSERT INTO event (kind, data) SELECT 'flood', jsonb_build_object('x', repeat('x', 20000))"
                    " FROM generate_series(1, 4)"
                )
                c.exec_driver_sql("SELECT pg_notify('effillm', '')")
                c.commit()
                assert [next(live)["kind"] for _ in range(4)] == ["flood"] * 4
            lazy.settimeout(20)
            received = 0
            # The connection ends instead of being fed for ever.
            while chunk := lazy.recv(1 << 16):
                received += len(chunk)
    assert received < 50 * 4 * 20_000


def test_a_client_that_leaves_is_forgotten(api: Api) -> None:
    with stream(api):
        pass
    with stream(api) as live:
        api.submit()
        next(live)
    answer = api.http.get("/metrics").text
    line = next(line for line in answer.splitlines() if line.startswith("effillm_event_subscribers"))
    assert float(line.split()[-1]) <= 1
