"""Figures for Prometheus, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import Api, add_device, declaration, finish, lease, measured, serving
from tests.support.keys import ADMIN_KEY, bearer, make_key

DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/effillm.json"
LINE = re.compile(r"(?P<name>[a-z_]+)(\{(?P<labels>.*)\})? (?P<value>[0-9.e+-]+)")


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
    assert found['effillm_devices{hardware="cpu",state="lost"}'] == 0
    assert found['effillm_jobs_waiting{hardware="cpu"}'] == 3
    assert found['effillm_device_seconds_total{hardware="cpu"}'] > 0
    assert found["effillm_leases_reaped_total"] == found["effillm_rejected_outcomes_total"] == 0
    assert found["effillm_rejected_renewals_total"] == 0
    assert 'effillm_unchanged_requests_total{action="job.retry"}' in found


def test_the_text_is_what_prometheus_reads(api: Api) -> None:
    api.http.get("/v1/sweeps")
    families = {family.name: family for family in text_string_to_metric_families(api.http.get("/metrics").text)}
    assert all(family.documentation for family in families.values())
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["effillm_jobs"] == "gauge"
    assert kinds["effillm_api_request_seconds"] == "histogram"
    assert kinds["effillm_leases_reaped"] == "counter"
    assert all(name.startswith("effillm_") for name in families)


def test_answers_are_counted_by_route_and_status_and_not_by_what_was_asked_for(api: Api) -> None:
    before = figures(api)
    name = 'effillm_api_request_seconds_count{method="GET",route="/v1/sweeps/{sweep_id}",status="404"}'
    for number in range(3):
        api.http.get(f"/v1/sweeps/absent{number}")
        api.http.get(f"/nothing/{number}")
    after = figures(api)
    assert after[name] - before.get(name, 0) == 3
    nowhere = 'effillm_api_request_seconds_count{method="GET",route="none",status="404"}'
    assert after[nowhere] - before.get(nowhere, 0) == 3
    assert not [line for line in after if "absent" in line or "/nothing" in line]


def test_a_method_that_nobody_knows_adds_no_label_of_its_own(api: Api) -> None:
    api.http.request("BREW", "/v1/sweeps")
    assert not [line for line in figures(api) if "BREW" in line]


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


def test_where_keys_are_asked_for_a_scrape_needs_one_that_reads(guarded: Api) -> None:
    assert guarded.http.get("/metrics").status_code == 401
    key = make_key(guarded, "prometheus", "read")["key"]
    assert guarded.http.get("/metrics", headers=bearer(key)).status_code == 200


def queries() -> list[str]:
    """Every expression of the dashboard, those of its variables too."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return found + [entry["query"]["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]


def test_the_dashboard_asks_only_for_what_is_exposed_with_labels_it_has(api: Api) -> None:
    add_device(api.engine)
    api.submit()
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    api.http.get("/v1/sweeps")
    labels: dict[str, set[str]] = {}
    for line in figures(api):
        name, _, rest = line.partition("{")
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    asked = queries()
    assert len(asked) >= 10
    for query in asked:
        names = set(re.findall(r"effillm_\w+", query))
        assert names and names <= set(labels), query
        known = {"instance", "job"}.union(*(labels[name] for name in names))
        used = {
            label for inside in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r",\s*", inside) if label
        }
        used |= set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', query))
        assert used <= known, (query, used - known)
    # Every family is looked at by somebody.
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in labels}
    missing = {family for family in families if not any(family in query for query in asked)}
    assert not missing


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"] and panel["description"], panel["id"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${source}", panel["title"]
