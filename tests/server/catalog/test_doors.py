"""Which models come in from the hub, and in which form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from effillm_server.catalog.doors import is_allowed
from effillm_server.catalog.hub import CONVERTER, HubClient
from effillm_server.catalog.resolve import resolve
from effillm_server.contract.sweep import ModelChoice, Weights
from effillm_server.errors import BadInput
from effillm_server.settings import Settings
from tests.support.hub import FakeHub, fake_hub

CONFIG = {"model_type": "opt", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
OLD, NEW = "a" * 40, "b" * 40
PICKLED = ["config.json", "pytorch_model.bin"]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture
def client(hub: FakeHub) -> Iterator[HubClient]:
    made = HubClient({"HF_ENDPOINT": hub.url})
    yield made
    made.close()


def offer(hub: FakeHub, model: str, commit: str, files: list[str], revision: str = "main") -> None:
    """The model at a revision with these files."""
    info = {"sha": commit, "siblings": [{"rfilename": name} for name in files]}
    hub.pages[f"/api/models/{model}/revision/{revision}"] = (200, json.dumps(info).encode())
    hub.pages[f"/{model}/resolve/{commit}/config.json"] = (200, json.dumps(CONFIG).encode())


def discuss(hub: FakeHub, model: str, *entries: Any) -> None:
    hub.pages[f"/api/models/{model}/discussions"] = (200, json.dumps({"discussions": list(entries)}).encode())


def request(number: int, author: str = CONVERTER, *, is_pull_request: bool = True) -> dict[str, Any]:
    return {"num": number, "author": {"name": author}, "isPullRequest": is_pull_request}


@pytest.mark.parametrize(("patterns", "allowed"), [
    (("*",), True), (("facebook/opt-*",), True), (("facebook/opt-125m",), True), (("other/*", "facebook/*"), True),
    ((), False), (("facebook/opt",), False), (("Facebook/*",), False), (("*/bloom-*",), False), (("opt-125m",), False),
])  # fmt: skip
def test_a_hub_id_is_let_in_by_a_pattern(patterns: tuple[str, ...], allowed: bool) -> None:
    assert is_allowed("facebook/opt-125m", patterns) is allowed


def test_the_setting_is_a_list_of_patterns_and_lets_everything_in_by_itself() -> None:
    assert Settings().allow_models == ("*",)
    assert Settings.from_environment({"EFFILLM_ALLOW_MODELS": "a/*, b/c"}).allow_models == ("a/*", "b/c")


def test_what_is_not_let_in_is_refused_without_asking_the_hub(hub: FakeHub, client: HubClient) -> None:
    for choice in (ModelChoice(id="facebook/opt-125m"), ModelChoice(id="org/new", weights=Weights.SYNTHETIC)):
        with pytest.raises(BadInput, match=r"\(EleutherAI/\*\).*EFFILLM_ALLOW_MODELS"):
            resolve(choice, None, client, ("EleutherAI/*",))
    assert hub.asked == []


def test_where_weights_are_pickled_only_the_hubs_conversion_is_pinned(hub: FakeHub, client: HubClient) -> None:
    offer(hub, "org/old", OLD, PICKLED)
    offer(hub, "org/old", NEW, [*PICKLED, "model.safetensors"], "refs%2Fpr%2F3")
    discuss(hub, "org/old", request(1, "somebody"), request(2, is_pull_request=False), request(3), request(4))
    assert resolve(ModelChoice(id="org/old"), None, client).revision == NEW


def test_a_model_of_the_catalog_is_converted_alike(hub: FakeHub, client: HubClient) -> None:
    offer(hub, "facebook/opt-125m", OLD, PICKLED)
    offer(hub, "facebook/opt-125m", NEW, ["model.safetensors"], "refs%2Fpr%2F9")
    discuss(hub, "facebook/opt-125m", request(9))
    assert resolve(ModelChoice(id="facebook/opt-125m"), None, client).revision == NEW


def test_a_conversion_by_anybody_else_is_none(hub: FakeHub, client: HubClient) -> None:
    offer(hub, "org/old", OLD, PICKLED)
    offer(hub, "org/old", NEW, ["model.safetensors"], "refs%2Fpr%2F1")
    discuss(hub, "org/old", request(1, "SFconvertbot2"), "junk", {"num": "1"}, {"author": None})
    assert resolve(ModelChoice(id="org/old"), None, client).revision == OLD


@pytest.mark.parametrize("files", [["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json"], []])
def test_a_model_that_has_safetensors_or_says_nothing_is_taken_as_it_is(
    hub: FakeHub, client: HubClient, files: list[str]
) -> None:
    offer(hub, "org/new", OLD, files)
    discuss(hub, "org/new", request(1))
    assert resolve(ModelChoice(id="org/new"), None, client).revision == OLD
    assert "/api/models/org/new/discussions" not in hub.asked


def test_a_revision_that_was_asked_for_is_kept(hub: FakeHub, client: HubClient) -> None:
    offer(hub, "org/old", OLD, PICKLED, "v1")
    discuss(hub, "org/old", request(1))
    assert resolve(ModelChoice(id="org/old", revision="v1"), None, client).revision == OLD


def test_without_a_list_of_discussions_the_model_is_what_it_is(hub: FakeHub, client: HubClient) -> None:
    offer(hub, "org/old", OLD, PICKLED)
    assert resolve(ModelChoice(id="org/old"), None, client).revision == OLD
