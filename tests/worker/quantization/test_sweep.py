"""Every method on one axis by `effillm run`, from the file to the rows, and bad cells among them that stop nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from effillm_server.contract.quantization import label
from tests.support import gptq
from tests.support.commands import MARK, belonging, effillm

EXAMPLE = Path(__file__).parents[3] / "examples" / "quantization.yaml"
PLAIN = ("fp32", "bf16")
# What is asked for beside the example's axis, and what is said of it.
BAD = {
    "gptq-b4-g64@short.txt": "the calibration text 'short.txt' has",
    "dynamic-m0.5@short.txt": "256 are needed: use a longer text",
    "dynamic-m0.1@calibration.txt": "no plan keeps the linear layers within 0.1 of half precision",
    "qat-b4-n4-lr10@calibration.txt": "qat diverged: its loss",
}
NOWHERE = "no runtime 'nowhere' on node"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that other users may pass, for Ray's sockets and Postgres's own user."""
    path = Path(tempfile.mkdtemp(prefix="effillm-quantization-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def definition() -> dict[str, Any]:
    """The example on the trained model with few tokens of quality, the bad cells in the middle, one cell in a runtime that is not there."""
    example = yaml.safe_load(EXAMPLE.read_text())
    axis = [label(value) for value in example["quantization"]]
    axis = [*axis[:3], *BAD, *axis[3:]]
    return example | {
        "models": [{"id": "lab/trained", "weights": "pretrained"}],
        "quantization": axis,
        "quality": {"tokens": 512},
        "measurement": {"warmup": {"min": 3, "max": 5}, "iterations": {"min": 5, "max": 6}},
        "runtime": ["nowhere", "default"],
        "exclude": [{"runtime": "nowhere", "quantization": [each for each in axis if each != "fp32"]}],
    }


@pytest.mark.quantization
@pytest.mark.timeout(3600)
def test_a_sweep_over_all_methods_is_measured_whole_and_bad_cells_stop_nothing(folder: Path) -> None:
    (folder / "models").mkdir()
    root = gptq.model_root(folder / "models")
    (root / "short.txt").write_text("A word or two.")
    sweep = folder / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(definition()))
    settings = {
        MARK: folder.name, "EFFILLM_DATA_DIR": str(folder / "data"), "EFFILLM_LOCK_DIR": str(folder / "locks"),
        "EFFILLM_MODEL_ROOT": str(root),
    }  # fmt: skip
    done = effillm("run", str(sweep), "-o", str(folder / "out"), within_s=3500, **settings)
    assert done.returncode == 0, done.stderr[-5000:]
    rows = json.loads((folder / "out" / "results.json").read_text())
    bad_cells_say_why(rows)
    every_method_is_measured(rows)
    assert (folder / "out" / "report.html").stat().st_size > 0
    assert belonging(settings) == []


def bad_cells_say_why(rows: list[dict[str, Any]]) -> None:
    found = {row["quantization"]: row for row in rows if row["runtime"] == "default" and row["state"] != "measured"}
    assert set(found) == set(BAD)
    for each, said in BAD.items():
        assert (found[each]["state"], found[each]["reason"]) == ("infeasible", "unsupported")
        assert said in found[each]["message"]
    (nowhere,) = [row for row in rows if row["runtime"] == "nowhere"]
    assert (nowhere["state"], nowhere["reason"]) == ("infeasible", "unsupported")
    assert NOWHERE in nowhere["message"]


def every_method_is_measured(rows: list[dict[str, Any]]) -> None:
    example = [label(value) for value in yaml.safe_load(EXAMPLE.read_text())["quantization"]]
    measured = {row["quantization"]: row for row in rows if row["state"] == "measured"}
    assert set(measured) == set(example)
    for each, row in measured.items():
        assert row["quality_note"] is None, each
        assert row["quality_tokens"] == 512, each
        assert 1 < row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"], each
        assert row["quality_loss"] is not None and row["mean_kl"] is not None, each
        assert row["weights"] == "pretrained" and not row["simulated"], each
        assert row["theoretical_bits"] > 0 and row["bits_per_weight"] > 0, each
        if each in PLAIN:
            assert row["quantize_s"] is None and row["quantized_layers"] == 0, each
        else:
            assert row["quantize_s"] > 0 and row["quantized_layers"] == 8, each
    assert measured["fp32"]["quality_loss"] == pytest.approx(0, abs=1e-9)
    assert measured["dynamic-m0.3"]["theoretical_bits"] < 16 * 0.3  # its plan's, not its budget's
