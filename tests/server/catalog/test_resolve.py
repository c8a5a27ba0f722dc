"""Where a model is found: catalog, model root, hub; and what is said when it is nowhere."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from effillm_server.catalog import load
from effillm_server.catalog.hub import MAX_CONFIG_BYTES, HubClient
from effillm_server.catalog.resolve import resolve, resolve_all
from effillm_server.contract.sweep import ModelChoice, Weights
from effillm_server.errors import BadInput
from tests.support.hub import FakeHub, fake_hub

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
    "max_position_embeddings": 512, "vocab_size": 100,
}  # fmt: skip
OPT = "facebook/opt-125m"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture
def client(hub: FakeHub) -> Iterator[HubClient]:
    made = HubClient({"HF_ENDPOINT": hub.url})
    yield made
    made.close()


@pytest.fixture
def deaf() -> Iterator[HubClient]:
    """A hub at an address where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        made = HubClient({"HF_ENDPOINT": f"http://127.0.0.1:{reserved.getsockname()[1]}"})
        yield made
        made.close()


def folder(root: Path, name: str, config: Any = CONFIG) -> Path:
    made = root / name
    made.mkdir(parents=True)
    (made / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return made


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A weight file's header alone: the sizes are read from it, never the weights."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    raw = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


def refused(choice: ModelChoice, root: Path | None = None, client: HubClient | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        resolve(choice, root, client)
    assert caught.value.field == "models"
    return str(caught.value)


def test_a_catalogued_model_needs_neither_folder_nor_hub() -> None:
    assert resolve(ModelChoice(id=OPT)) == load().models[OPT]


def test_synthetic_weights_of_a_catalogued_model_ask_no_hub(hub: FakeHub, client: HubClient) -> None:
    assert resolve(ModelChoice(id=OPT, weights=Weights.SYNTHETIC), None, client) == load().models[OPT]
    assert hub.asked == []


def test_pretrained_weights_of_a_catalogued_model_are_pinned_when_the_hub_answers(
    hub: FakeHub, client: HubClient
) -> None:
    hub.serve(OPT, CONFIG, commit="abc")
    assert resolve(ModelChoice(id=OPT), None, client) == load().models[OPT].model_copy(update={"revision": "abc"})


def test_a_silent_hub_costs_a_catalogued_model_only_its_pin(deaf: HubClient) -> None:
    assert resolve(ModelChoice(id=OPT), None, deaf) == load().models[OPT]
    assert resolve(ModelChoice(id=OPT, revision="v1"), None, deaf) == load().models[OPT]


def test_a_revision_the_hub_does_not_have_is_refused(hub: FakeHub, client: HubClient) -> None:
    hub.serve(OPT, CONFIG)
    assert "revision 'v9'" in refused(ModelChoice(id=OPT, revision="v9"), None, client)


def test_a_folder_below_the_model_root_is_read_without_its_weights(tmp_path: Path) -> None:
    made = folder(tmp_path, "mine/tiny", CONFIG | {"auto_map": {"AutoModel": "modeling.Evil"}})
    safetensors(made / "model-1.safetensors", {"a": ("F16", [10, 20]), "b": ("BF16", [7])})
    safetensors(
        made / "model-2.safetensors",
        {"c": ("F32", []), "mask": ("BOOL", [9, 9]), "layer.rotary.inv_freq": ("F32", [32])},
    )
    facts = resolve(ModelChoice(id="mine/tiny"), tmp_path)
    assert facts.parameters == 10 * 20 + 7 + 1
    assert (facts.context_window, facts.layers, facts.kv_heads, facts.head_dim) == (512, 3, 2, 16)
    assert (facts.id, facts.family, facts.label, facts.revision) == ("mine/tiny", "llama", "tiny", None)
    assert facts.architecture == CONFIG


@pytest.mark.parametrize("name", list(load().models))
def test_every_family_s_config_is_understood_as_the_catalog_states_it(name: str, tmp_path: Path) -> None:
    known = load().models[name]
    folder(tmp_path, "copy", known.architecture)
    facts = resolve(ModelChoice(id="copy"), tmp_path)
    assert (facts.layers, facts.kv_heads, facts.head_dim) == (known.layers, known.kv_heads, known.head_dim)


def test_a_folder_without_readable_weight_headers_has_no_stated_size(tmp_path: Path) -> None:
    made = folder(tmp_path, "tiny")
    assert resolve(ModelChoice(id="tiny"), tmp_path).parameters is None
    (made / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert resolve(ModelChoice(id="tiny"), tmp_path).parameters is None


def test_a_quantized_folder_has_no_stated_size_for_its_words_are_packed(tmp_path: Path) -> None:
    made = folder(tmp_path, "packed", CONFIG | {"quantization_config": {"bits": 4}})
    safetensors(made / "model.safetensors", {"scales": ("F16", [10])})
    assert resolve(ModelChoice(id="packed"), tmp_path).parameters is None


@pytest.mark.parametrize("config", ["", "[]", "{", "null", "[" * 100_000])
def test_a_folder_whose_config_is_none_is_refused(tmp_path: Path, config: str) -> None:
    folder(tmp_path, "broken", config)
    assert "its config.json is not a JSON object" in refused(ModelChoice(id="broken"), tmp_path)


def test_a_config_without_a_model_type_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "odd", {"hidden_size": 3})
    assert "names no model_type" in refused(ModelChoice(id="odd"), tmp_path)


def test_a_link_out_of_the_model_root_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "outside/secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "escape").symlink_to(tmp_path / "outside/secret")
    assert "leads out of EFFILLM_MODEL_ROOT" in refused(ModelChoice(id="escape"), root)


def test_a_hub_model_is_read_at_the_pinned_revision(hub: FakeHub, client: HubClient) -> None:
    hub.serve("org/new", CONFIG | {"auto_map": {"x": "y"}}, commit="deadbeef", total=1_234)
    facts = resolve(ModelChoice(id="org/new"), None, client)
    assert (facts.revision, facts.parameters, facts.context_window) == ("deadbeef", 1_234, 512)
    assert facts.architecture == CONFIG
    assert facts.source == f"{hub.url}/org/new at deadbeef"
    assert hub.asked == ["/api/models/org/new/revision/main", "/org/new/resolve/deadbeef/config.json"]


def test_the_user_s_revision_is_the_one_asked_for(hub: FakeHub, client: HubClient) -> None:
    hub.serve("org/new", CONFIG, commit="feed", revision="refs%2Fpr%2F1")
    assert resolve(ModelChoice(id="org/new", revision="refs/pr/1"), None, client).revision == "feed"


def test_the_token_goes_to_the_hub_and_appears_in_no_message(hub: FakeHub) -> None:
    client = HubClient({"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in refused(ModelChoice(id="org/none"), None, client)
    assert hub.tokens == ["Bearer hf_secret"]
    client.close()


def test_a_model_that_is_nowhere_names_all_three_places_and_the_nearest_id(
    hub: FakeHub, client: HubClient, tmp_path: Path
) -> None:
    message = refused(ModelChoice(id="facebook/opt-125"), tmp_path, client)
    assert message == (
        "model 'facebook/opt-125' was found nowhere. Did you mean 'facebook/opt-125m'? Tried: the catalog (not in it), the model root "
        f"(no such folder with a config.json below EFFILLM_MODEL_ROOT), the hub ({hub.url} has no such model or revision). "
        "Correct the id, put the folder below EFFILLM_MODEL_ROOT, or see that the hub answers"
    )


def test_an_unreachable_hub_is_said(deaf: HubClient) -> None:
    message = refused(ModelChoice(id="org/new"), None, deaf)
    assert "EFFILLM_MODEL_ROOT is not set" in message
    assert f"{deaf.endpoint} cannot be reached (ConnectError)" in message


def test_a_hub_that_did_not_answer_is_not_asked_again_at_once() -> None:
    calls = []

    def silent(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        raise httpx.ConnectTimeout("no answer", request=request)

    client = HubClient({}, transport=httpx.MockTransport(silent))
    for name in ("org/new", "org/other", "org/third"):
        assert "cannot be reached (ConnectTimeout)" in refused(ModelChoice(id=name), None, client)
    assert calls == ["/api/models/org/new/revision/main"]
    client.close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "accept its licence there and set HF_TOKEN"),
        (403, b"{}", "is gated or private"),
        (302, b"", "answered with status 302"),
        (500, b"", "answered with status 500"),
        (200, b"<html>", "sent no JSON"),
        (200, b"[]", "sent JSON that is no object"),
        (200, b"{}", "answered without a revision"),
        (200, b" " * (MAX_CONFIG_BYTES + 1), "sent more than 1,048,576 bytes"),
    ],
)
def test_what_the_hub_says_instead_of_a_model_is_reported(
    hub: FakeHub, client: HubClient, status: int, body: bytes, says: str
) -> None:
    hub.pages["/api/models/org/x/revision/main"] = (status, body)
    assert says in refused(ModelChoice(id="org/x"), None, client)


def test_an_id_no_hub_could_have_is_not_sent_to_one(hub: FakeHub, client: HubClient) -> None:
    assert "no ids with more than one '/'" in refused(ModelChoice(id="a/b/c"), None, client)
    assert hub.asked == []


def test_all_models_of_a_sweep_are_resolved_by_key(hub: FakeHub, client: HubClient) -> None:
    hub.serve(OPT, CONFIG, commit="aaa")
    hub.serve(OPT, CONFIG, commit="bbb", revision="old")
    choices = [ModelChoice(id=OPT), ModelChoice(id=OPT, weights=Weights.SYNTHETIC), ModelChoice(id=OPT, revision="old")]
    facts = resolve_all(choices, None, client)
    assert {key: value.revision for key, value in facts.items()} == {OPT: "aaa", f"{OPT}@old": "bbb"}
