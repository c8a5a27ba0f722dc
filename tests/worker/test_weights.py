from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from effillm_worker import synthetic
from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.weights import local_folder, source, synthetic_folder, written_once
from tests.support.child import REPOSITORY, TINY_NEOX
from tests.support.fake_engine import cell


def request(root: Path, **changes: Any) -> LoadRequest:
    keys = ("architecture", "model_root", "allow_pickled")
    given = {key: changes.pop(key) for key in keys if key in changes}
    return LoadRequest(cell=cell(**changes), threads=1, device="cpu", cache_dir=str(root), **given)


def folder(root: Path, name: str, *files: str) -> Path:
    made = root / name
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    for file in files:
        (made / file).write_bytes(b"")
    return made


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def test_synthetic_checkpoint_has_every_tensor_of_the_architecture(tmp_path: Path) -> None:
    made = synthetic.write(TINY_NEOX, "lab/tiny", tmp_path)
    expected = {name: tuple(value.shape) for name, value in synthetic.skeleton(TINY_NEOX).named_parameters()}
    found = tensors(made)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_synthetic_values_are_finite_spread_and_keep_norms_neutral(tmp_path: Path) -> None:
    for name, value in tensors(synthetic.write(TINY_NEOX, "lab/tiny", tmp_path)).items():
        if value.dim() > 1:
            assert value.float().std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert set(value.unique().tolist()) == ({0.0} if name.endswith("bias") else {1.0})


def test_tied_output_head_is_stored_once(tmp_path: Path) -> None:
    tied = TINY_NEOX | {"model_type": "opt", "ffn_dim": 256, "word_embed_proj_dim": 64, "tie_word_embeddings": True}
    names = tensors(synthetic.write(tied, "lab/tied", tmp_path))
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 1


def test_checkpoint_is_stored_in_the_architectures_own_dtype(tmp_path: Path) -> None:
    made = synthetic.write(TINY_NEOX | {"dtype": "bfloat16"}, "lab/tiny", tmp_path)
    assert {value.dtype for value in tensors(made).values()} == {torch.bfloat16}


def test_large_checkpoint_is_split_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 60_000)
    made = synthetic.write(TINY_NEOX, "lab/tiny", tmp_path)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(made.glob("*.safetensors"))) > 1
    assert set(index["weight_map"]) == set(tensors(made))


def test_same_architecture_is_one_folder_and_another_a_different_one(tmp_path: Path) -> None:
    assert synthetic_folder(TINY_NEOX, "lab/tiny", tmp_path) == synthetic_folder(dict(TINY_NEOX), "lab/tiny", tmp_path)
    wider = TINY_NEOX | {"hidden_size": 128}
    assert synthetic_folder(TINY_NEOX, "lab/tiny", tmp_path) != synthetic_folder(wider, "lab/tiny", tmp_path)


def test_model_name_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    assert synthetic_folder(TINY_NEOX, "../../etc/x", tmp_path).parent == tmp_path / "synthetic"


WRITER = """
import sys
from pathlib import Path
from effillm_worker.weights import written_once
print("ready", flush=True)
sys.stdin.readline()
with written_once(Path(sys.argv[1])) as part:
    if part is not None:
        (part / "whole").write_text("yes")
    print("waited" if part is None else "wrote")
"""


def test_processes_that_want_the_same_checkpoint_write_it_once(tmp_path: Path) -> None:
    target = tmp_path / "made"
    command = [sys.executable, "-c", WRITER, str(target)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    said = sorted(writer.communicate("go\n")[0].strip() for writer in writers)
    assert said == ["waited", "waited", "waited", "wrote"]
    assert (target / "whole").read_text() == "yes"


def test_failed_writing_leaves_nothing_behind_and_may_be_repeated(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(OSError, match="disk full"), written_once(target):
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == [".made.lock"]
    with written_once(target) as part:
        assert part is not None
    assert target.is_dir()


def test_rubbish_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    rubbish = tmp_path / ".made.abc.part"
    rubbish.mkdir()
    with written_once(tmp_path / "made"):
        assert not rubbish.exists()


def test_synthetic_source_is_written_by_another_process_and_then_shared(tmp_path: Path) -> None:
    first = source(request(tmp_path, architecture=TINY_NEOX))
    stamp = (Path(first.location) / "config.json").stat().st_mtime_ns
    second = source(request(tmp_path, architecture=TINY_NEOX))
    assert first == second
    assert first.synthetic
    assert first.options["local_files_only"]
    assert (Path(second.location) / "config.json").stat().st_mtime_ns == stamp


def test_local_folder_is_found_below_the_model_root_only(tmp_path: Path) -> None:
    made = folder(tmp_path, "lab/tiny", "model.safetensors")
    assert local_folder("lab/tiny", str(tmp_path)) == made
    assert local_folder("lab/tiny", None) is None
    assert local_folder("lab/other", str(tmp_path)) is None


@pytest.mark.parametrize("name", ["../outside", "lab/../../outside", "/etc"])
def test_path_out_of_the_model_root_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsupported, match="not a folder below the model root"):
        local_folder(name, str(tmp_path / "root"))


def test_folder_that_links_out_of_the_model_root_is_refused(tmp_path: Path) -> None:
    outside = folder(tmp_path, "outside", "model.safetensors")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/linked").symlink_to(outside)
    with pytest.raises(Unsupported, match="link out of the model root"):
        local_folder("linked", str(tmp_path / "root"))


def test_file_that_links_out_of_the_model_root_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path, "root/tiny")
    (tmp_path / "secret").write_text("secret")
    (made / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(Unsupported, match="link out of the model root"):
        local_folder("tiny", str(tmp_path / "root"))


def test_link_inside_the_model_root_is_fine(tmp_path: Path) -> None:
    made = folder(tmp_path, "tiny", "weights")
    (made / "model.safetensors").symlink_to(made / "weights")
    assert local_folder("tiny", str(tmp_path)) == made


def test_pickled_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder(tmp_path, "tiny", "pytorch_model.bin")
    wanted: dict[str, Any] = {"model": "tiny", "weights": "pretrained", "model_root": str(tmp_path)}
    with pytest.raises(Unsupported, match=r"found only pytorch_model\.bin.*EFFILLM_ALLOW_PICKLED"):
        source(request(tmp_path, **wanted))
    assert source(request(tmp_path, **wanted, allow_pickled=True)).options == {
        "local_files_only": True, "weights_only": True,
    }  # fmt: skip


def test_folder_without_weights_says_so(tmp_path: Path) -> None:
    folder(tmp_path, "tiny")
    with pytest.raises(Unsupported, match="found no weights"):
        source(request(tmp_path, model="tiny", weights="pretrained", model_root=str(tmp_path)))


def test_hub_model_loads_safetensors_of_the_pinned_revision_only(tmp_path: Path) -> None:
    found = source(request(tmp_path, model="org/name", weights="pretrained", revision="abc123"))
    assert found.location == "org/name"
    assert found.options == {"use_safetensors": True, "revision": "abc123"}
