"""The engine in this process, on one tiny model; what needs a process of its own is in test_child.py."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effillm_server import catalog
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.engines.cache import held_bytes
from effillm_worker.engines.transformers import TransformersEngine
from tests.support.child import REPOSITORY, TINY_NEOX
from tests.support.fake_engine import cell


def start(cache: Path, **changes: Any) -> tuple[TransformersEngine, LoadRequest]:
    keys = ("architecture", "model_root")
    given = {"architecture": TINY_NEOX} | {key: changes.pop(key) for key in keys if key in changes}
    request = LoadRequest(cell=cell(**changes), threads=1, device="cpu", cache_dir=str(cache), **given)
    engine = TransformersEngine()
    engine.start(request)
    return engine, request


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[TransformersEngine]:
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, request = start(cache)
        made.load(request)
    yield made
    torch.set_num_threads(threads)


def generate(engine: TransformersEngine, prompts: list[list[int]], tokens: int) -> tuple[list[Any], Any]:
    """Marks of one generation, and the token ids generate returned."""
    marks: list[Any] = []
    returned: list[Any] = []
    original = engine._model.generate

    def keeping(**arguments: Any) -> Any:
        returned.append(original(**arguments))
        return returned[-1]

    engine._model.generate = keeping
    try:
        engine.generate(engine.batch(prompts), tokens, lambda: marks.append(engine.mark()))
    finally:
        engine._model.generate = original
    return marks, returned[0]


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_generates_exactly_n_tokens_and_marks_each(engine: TransformersEngine, tokens: int) -> None:
    marks, ids = generate(engine, [[5, 6, 7]] * 3, tokens)
    assert ids.shape == (3, 3 + tokens)
    assert len(marks) == tokens
    assert marks == sorted(marks)


def test_end_of_sequence_token_ends_nothing(engine: TransformersEngine) -> None:
    """The model is made to prefer its end-of-sequence token at every step, and goes on."""
    head = engine._model.embed_out if hasattr(engine._model, "embed_out") else engine._model.lm_head
    with torch.no_grad():
        kept = head.weight.clone()
        head.weight.zero_()
    try:
        marks, ids = generate(engine, [[5, 6, 7]], 6)
        assert ids[0, 3:].tolist() == [0] * 6
        assert engine._config.eos_token_id == 0
        assert len(marks) == 6
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)


def test_same_tokens_as_a_loop_without_cache_or_generate(engine: TransformersEngine) -> None:
    prompt = [5, 6, 7, 8]
    _, ids = generate(engine, [prompt], 5)
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(5):
            logits = engine._model(torch.tensor([expected])).logits
            expected.append(int(logits[0, -1].argmax()))
    assert ids[0].tolist() == expected


def test_padding_on_the_left_changes_no_token(engine: TransformersEngine) -> None:
    _, alone = generate(engine, [[5, 6, 7]], 4)
    _, padded = generate(engine, [[5, 6, 7], [9, 10, 11, 12, 13]], 4)
    assert padded[0, -4:].tolist() == alone[0, -4:].tolist()
    assert engine.batch([[5, 6, 7], [9, 10, 11, 12, 13]]).prompt_tokens == 8


def test_every_operation_is_followed_inside_the_context_only_and_changes_no_token(engine: TransformersEngine) -> None:
    followed = 0

    def then() -> None:
        nonlocal followed
        followed += 1

    _, plain = generate(engine, [[5, 6, 7]], 3)
    assert followed == 0
    with engine.each_operation(then):
        _, observed = generate(engine, [[5, 6, 7]], 3)
    inside = followed
    assert inside > 3 * TINY_NEOX["num_hidden_layers"]
    generate(engine, [[5, 6, 7]], 3)
    assert followed == inside
    assert torch.equal(plain, observed)


def test_loaded_model_is_counted_from_its_tensors(engine: TransformersEngine) -> None:
    described = engine._describe()
    expected = sum(parameter.numel() for parameter in engine._model.parameters())
    assert described.parameters == expected
    assert described.weight_bytes == 4 * expected
    assert described.bits_per_weight == 32.0
    assert described.dtype == "float32"
    assert described.details["attention"] == "sdpa"
    assert described.kernels == {"Embedding": 1, "LayerNorm": 5, "Linear": 9}


def test_cache_prediction_is_the_size_of_the_real_cache(engine: TransformersEngine) -> None:
    with torch.no_grad():
        cache = engine._model(torch.ones(2, 11, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert engine.kv_cache_bytes(2, 11) == held


def test_grouped_heads_make_the_predicted_cache_smaller(cache: Path) -> None:
    llama = {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    engine, request = start(cache, architecture=llama, model="lab/llama", quantization="bf16", dtype="bfloat16")
    assert engine.load(request).bits_per_weight == 16.0
    assert engine.kv_cache_bytes(3, 10) == 2 * 2 * 2 * 8 * 10 * 3 * 2


@pytest.mark.parametrize("tokens", [1, 6])
def test_the_cache_is_counted_from_its_tensors_as_large_as_the_prediction_and_only_inside_the_context(
    engine: TransformersEngine, tokens: int
) -> None:
    with engine.counting_cache() as count:
        generate(engine, [[5, 6, 7]] * 2, tokens)
    held = count.bytes
    assert held == engine.kv_cache_bytes(2, 3 + tokens - 1)
    generate(engine, [[5, 6, 7]] * 4, tokens)
    assert count.bytes == held


def test_what_is_counted_is_the_cache_and_not_its_prediction(engine: TransformersEngine) -> None:
    with torch.no_grad(), engine.counting_cache() as count:
        engine._model(torch.ones(2, 11, dtype=torch.long), use_cache=True)
        assert count.bytes == engine.kv_cache_bytes(2, 11)
        engine._model(torch.ones(2, 11, dtype=torch.long), use_cache=False)
        assert count.bytes is None


def test_caches_of_earlier_transformers_are_counted_too() -> None:
    keys, values = [torch.zeros(2, 4, 11, 16) for _ in range(3)], [torch.zeros(2, 4, 11, 16) for _ in range(3)]
    expected = 6 * 2 * 4 * 11 * 16 * 4
    assert held_bytes(SimpleNamespace(key_cache=keys, value_cache=values)) == expected
    assert held_bytes(tuple(zip(keys, values, strict=True))) == expected


def test_storages_that_are_shared_count_once_and_what_is_no_cache_is_unknown() -> None:
    fused = torch.zeros(2, 3, 8)
    assert held_bytes(((fused[..., :4], fused[..., 4:]),)) == fused.nbytes
    assert held_bytes(None) is None
    assert held_bytes(()) is None


def test_ordinary_tokens_leave_out_the_special_ones(engine: TransformersEngine) -> None:
    assert set(engine.ordinary_tokens()) == set(range(1, 512))


def test_synthetic_weights_read_text_by_the_catalogs_tokenizer(engine: TransformersEngine) -> None:
    texts = [prompt.render() for prompt in catalog.load().workloads["short-qa"].prompts[:3]]
    encoded = engine.encode(texts)
    assert [len(tokens) > 3 for tokens in encoded] == [True] * 3
    assert all(0 <= token < 512 for tokens in encoded for token in tokens)
    assert engine.encode(texts) == encoded


def test_context_window_is_the_models(engine: TransformersEngine) -> None:
    assert engine.context_window() == 128


def test_framework_says_how_it_was_built_and_set(cache: Path) -> None:
    engine = TransformersEngine()
    request = LoadRequest(cell=cell(), threads=1, device="cpu", cache_dir=str(cache), architecture=TINY_NEOX)
    environment = engine.start(request)
    assert environment.threads["intra_op"] == torch.get_num_threads() == 1
    assert environment.threads["inter_op"] == torch.get_num_interop_threads() == 1
    assert environment.blas


TWO_THREADS = """
import json, sys
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.measure.software import software
from tests.support.child import TINY_NEOX
from tests.support.fake_engine import cell

request = LoadRequest(cell=cell(), threads=2, device="cpu", cache_dir=sys.argv[1], architecture=TINY_NEOX)
environment = TransformersEngine().start(request)
import torch

own = {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}
print(json.dumps([own, environment.threads, software(environment).threads]))
"""


def test_two_threads_work_on_one_operation_and_one_operation_runs_at_a_time(cache: Path) -> None:
    """Caught here: inter-op and intra-op threads swapped, in what is set or in what is said of it.

    A process of its own: torch takes the number of inter-op threads once, and another test may have set it.
    """
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, str(cache)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    own, said, recorded = json.loads(done.stdout.splitlines()[-1])
    assert own == said == {"intra_op": 2, "inter_op": 1}
    assert (recorded["intra_op"], recorded["inter_op"], recorded["OMP_NUM_THREADS"]) == (2, 1, "2")


def test_local_folder_is_loaded_by_the_same_path(cache: Path, tmp_path: Path, engine: TransformersEngine) -> None:
    folder = tmp_path / "lab" / "mine"
    engine._model.save_pretrained(folder)
    mine, request = start(cache, model="lab/mine", weights="pretrained", model_root=str(tmp_path), architecture=None)
    assert mine.load(request).parameters == engine._describe().parameters
    assert generate(mine, [[5, 6, 7]], 4)[1].tolist() == generate(engine, [[5, 6, 7]], 4)[1].tolist()


def test_model_that_is_no_causal_language_model_is_unsupported(cache: Path) -> None:
    with pytest.raises(Unsupported, match="no causal language model lab/clip"):
        start(cache, architecture={"model_type": "clip"}, model="lab/clip")


def test_unload_forgets_the_model(cache: Path) -> None:
    engine, request = start(cache)
    engine.load(request)
    engine.unload()
    assert not hasattr(engine, "_model")
