"""What may be loaded: nothing a model ships is executed, nothing outside the model root is read, no address is asked for."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from effillm_server.api import examples
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.synthetic import skeleton
from tests.support.api import Api, serving
from tests.support.child import TINY_NEOX
from tests.support.fake_engine import cell
from tests.support.hub import FakeHub, fake_hub
from tests.support.postgres import cloned


class Canary:
    """Unpickling one writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


MODULE = """
import os
os.mkdir({file!r})
from transformers import GPTNeoXConfig as EvilConfig, GPTNeoXForCausalLM as EvilModel, PreTrainedTokenizerFast as EvilTokenizer
"""
AUTO_MAP = {
    "AutoConfig": "modeling.EvilConfig", "AutoModelForCausalLM": "modeling.EvilModel",
    "AutoTokenizer": ["modeling.EvilTokenizer", "modeling.EvilTokenizer"],
}  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What exists once a model's code has run."""
    return tmp_path / "executed"


def model_folder(root: Path, config: dict[str, Any] | None = None, name: str = "lab/model") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or TINY_NEOX))
    return folder


def load(root: Path, **changes: Any) -> TransformersEngine:
    """An engine with the folder's model loaded, as a measuring child does it."""
    request = LoadRequest(
        cell=cell(model="lab/model", weights="pretrained"), threads=torch.get_num_threads(), device="cpu",
        cache_dir=str(root / "cache"), model_root=str(root), **changes,
    )  # fmt: skip
    engine = TransformersEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.start(request)
        engine.load(request)
    return engine


def test_the_canary_sings_where_a_pickle_is_loaded_carelessly(canary: Path) -> None:
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt"])
def test_pickled_weights_are_refused_before_they_are_opened(tmp_path: Path, canary: Path, name: str) -> None:
    (model_folder(tmp_path) / name).write_bytes(pickle.dumps({"embed": Canary(canary)}))
    with pytest.raises(Unsupported, match=r"no safetensors weights.*EFFILLM_ALLOW_PICKLED"):
        load(tmp_path)
    assert not canary.exists()


def test_where_pickled_weights_are_allowed_their_code_still_never_runs(tmp_path: Path, canary: Path) -> None:
    torch.save({"gpt_neox.embed_in.weight": Canary(canary)}, model_folder(tmp_path) / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|unpickl"):
        load(tmp_path, allow_pickled=True)
    assert not canary.exists()


def test_honest_pickled_weights_are_loaded_where_they_are_allowed(tmp_path: Path) -> None:
    model = skeleton(TINY_NEOX)
    weights = {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in model.state_dict().items()}
    torch.save(weights, model_folder(tmp_path) / "pytorch_model.bin")
    assert load(tmp_path, allow_pickled=True)._model is not None


def test_an_old_torch_reads_no_pickled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model_folder(tmp_path) / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr("effillm_worker.weights.version", lambda _: "2.5.1+cpu")
    with pytest.raises(Unsupported, match=r"torch 2\.6 or newer.*this runtime has 2\.5\.1"):
        load(tmp_path, allow_pickled=True)


@pytest.mark.parametrize("model_type", ["gpt_neox", "evil"])
def test_code_beside_the_weights_is_never_executed(tmp_path: Path, canary: Path, model_type: str) -> None:
    folder = model_folder(tmp_path, TINY_NEOX | {"model_type": model_type, "auto_map": AUTO_MAP})
    (folder / "modeling.py").write_text(MODULE.format(file=str(canary)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": AUTO_MAP, "tokenizer_class": "EvilTokenizer"})
    )
    model = skeleton(TINY_NEOX)
    from safetensors.torch import save_file

    save_file(
        {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    if model_type == "evil":
        with pytest.raises(Unsupported, match="does not know this model"):
            load(tmp_path)
    else:
        engine = load(tmp_path)
        with pytest.raises(Exception, match=r"."):  # it has no tokenizer but the one that would be executed
            engine.encode(["hello"])
    assert not canary.exists()


def test_an_adapter_whose_base_would_come_from_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(Unsupported, match="adapter"):
        load(tmp_path)


def test_a_node_loads_from_the_hub_only_what_its_operator_lets_in(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="EFFILLM_ALLOW_MODELS"):
        load(tmp_path, allow_hub=False)


# What the REST interface says of models that are addresses, paths or not let in.


@pytest.fixture(scope="module")
def one_hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture
def hub(one_hub: FakeHub) -> FakeHub:
    """A hub without models that has been asked nothing yet."""
    one_hub.asked.clear()
    one_hub.pages.clear()
    return one_hub


@pytest.fixture(scope="module")
def open_lab(
    postgres_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory, one_hub: FakeHub
) -> Iterator[Api]:
    """A server with a model root that lets in EleutherAI's models only; its hub keeps what it is asked."""
    folder = tmp_path_factory.mktemp("models")
    root, outside = folder / "models", folder / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "config.json").write_text(json.dumps(TINY_NEOX | {"secret": "do-not-tell"}))
    (root / "linked").symlink_to(outside)
    (root / "file").mkdir()
    (root / "file/config.json").symlink_to(outside / "config.json")
    with pytest.MonkeyPatch.context() as patch, cloned(postgres_url, template_database) as url:
        patch.setenv("HF_ENDPOINT", one_hub.url)
        patch.setenv("HF_TOKEN", "hf_" + "s" * 30)
        with serving(url, model_root=root, allow_models=("EleutherAI/*",)) as api:
            yield api


def previewed(api: Api, model: Any) -> httpx.Response:
    return api.http.post("/v1/sweeps/preview", json=examples.DEFINITION | {"models": [model]})


@pytest.mark.parametrize("model", [
    "http://169.254.169.254/latest/meta-data", "https://evil.example/m", "file:///etc/passwd", "//evil.example/m",
    "evil.example:80/m", "user@evil.example/m", "a/b?x=y", "a/b#c", "a/../../etc", "../outside", "/etc/passwd", "a//b", "a/./b",
    "..%2f..%2fetc", "a%2f..%2fb", "a\\b", "a b", "a\r\nHost: evil", "a\x00b", "", ".", "..", "~/x", "$HOME", "{a}", "s3://b/m",
    "gopher://x", "[::1]/m", "localhost:5432/m", "a/" * 7 + "b", "x" * 201, "аdmin/модель",
])  # fmt: skip
def test_a_model_that_is_an_address_or_a_path_is_refused_and_nobody_asked(
    open_lab: Api, hub: FakeHub, model: str
) -> None:
    for choice in (model, {"id": model}):
        assert previewed(open_lab, choice).status_code == 422
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["../../main", "a/../b", "..", "http://evil", "a?b", "a b", "", "/etc", "x" * 101])
def test_a_revision_that_is_a_path_is_refused_and_nobody_asked(open_lab: Api, hub: FakeHub, revision: str) -> None:
    answer = previewed(open_lab, {"id": "EleutherAI/pythia-70m", "revision": revision})
    assert answer.status_code == 422
    assert hub.asked == []


@pytest.mark.parametrize("model", ["linked", "file"])
def test_a_link_out_of_the_model_root_is_refused_and_its_content_not_told(open_lab: Api, model: str) -> None:
    answer = previewed(open_lab, model)
    assert answer.status_code == 422
    assert "leads out of EFFILLM_MODEL_ROOT" in answer.json()["detail"]
    assert "do-not-tell" not in answer.text and "outside" not in answer.text


def test_what_the_operator_does_not_let_in_is_refused_and_the_hub_not_asked(open_lab: Api, hub: FakeHub) -> None:
    hub.serve("evil/model", TINY_NEOX)
    for model in ("evil/model", "facebook/opt-125m", {"id": "evil/model", "weights": "synthetic"}):
        answer = previewed(open_lab, model)
        assert answer.status_code == 422, model
        assert "EFFILLM_ALLOW_MODELS" in answer.json()["detail"]
    assert hub.asked == []
    # The catalog knows the architecture, so that synthetic weights ask nobody.
    assert previewed(open_lab, {"id": "facebook/opt-125m", "weights": "synthetic"}).status_code == 200
    assert hub.asked == []


def test_a_hub_that_sends_elsewhere_is_not_followed(open_lab: Api, hub: FakeHub) -> None:
    path = "/api/models/EleutherAI/new/revision/main"
    hub.pages[path] = (307, b"")
    assert previewed(open_lab, "EleutherAI/new").status_code == 422
    assert hub.asked == [path]


def test_a_revision_is_pinned_when_a_sweep_is_stored(open_lab: Api, hub: FakeHub) -> None:
    hub.serve("EleutherAI/new", TINY_NEOX, commit="abc123" + "0" * 34)
    stored = open_lab.submit(models=["EleutherAI/new"])
    assert {job["cell"]["revision"] for job in open_lab.jobs(stored["id"])} == {"abc123" + "0" * 34}


@pytest.mark.parametrize("field", [
    "model_root", "environment", "env", "interpreter", "python", "command", "path", "cache_dir", "trust_remote_code",
    "allow_pickled", "runtimes", "token", "hub",
])  # fmt: skip
def test_a_sweep_sets_no_paths_environment_or_interpreters(open_lab: Api, field: str) -> None:
    for body in (
        examples.DEFINITION | {field: "/bin/sh"},
        examples.DEFINITION | {"models": [{"id": "EleutherAI/pythia-70m", "weights": "synthetic", field: "/bin/sh"}]},
        examples.DEFINITION | {"measurement": {"warmup": 3, field: "/bin/sh"}},
    ):
        answer = open_lab.http.post("/v1/sweeps/preview", json=body)
        assert answer.status_code == 422, body
        assert field in answer.text


@pytest.mark.parametrize("runtime", ["/usr/bin/python3", "../python", "a b", "-c", "$(id)", "Default"])
def test_a_runtime_is_a_name_and_never_a_path(open_lab: Api, runtime: str) -> None:
    body = examples.DEFINITION | {"runtime": runtime}
    assert open_lab.http.post("/v1/sweeps/preview", json=body).status_code == 422
