"""Quantizes one model by GPTQ and writes the checkpoint. Run as a process of its own, the job as JSON on standard input."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from effillm_worker.quantization.spelling import rename, respelled, tensors_of

ABOUT = "effillm.json"
CANNOT = 3  # exit code: the library has no way for this model, and says why on the last line
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt"]


class Cannot(Exception):
    """This model or these options are beyond the library."""


def main() -> int:
    """Make the checkpoint that the job describes."""
    job = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import torch

            torch.set_num_threads(job["threads"])
            with tempfile.TemporaryDirectory() as scratch:
                model = _complete(job, Path(scratch))
                begin = time.monotonic()
                {"gptqmodel": by_gptqmodel, "auto_gptq": by_autogptq}[job["library"]](model, job)
                seconds = time.monotonic() - begin
    except (Cannot, NotImplementedError, TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return CANNOT
    (Path(job["out"]) / ABOUT).write_text(json.dumps({"seconds": seconds, "calibration": job["calibration"]}))
    return 0


def by_gptqmodel(model: str, job: dict[str, Any]) -> None:
    """Quantize with GPTQModel's own defaults beyond the options of the label."""
    from gptqmodel import GPTQModel, QuantizeConfig

    options = job["options"]
    config = QuantizeConfig(
        bits=options["bits"],
        group_size=options["group_size"],
        desc_act=options["act_order"],
        device=job["device"],
        offload_to_disk=False,
    )
    loaded = GPTQModel.load(model, config, dtype=_dtype(job["device"]))
    loaded.quantize(_examples(job["sequences"], lists=True), batch_size=1)
    loaded.save(job["out"])
    # It writes the names of its own transformers; other libraries look for those of the checkpoint it was made of.
    out = Path(job["out"])
    rename(out, respelled(tensors_of(out), tensors_of(Path(model))))


def by_autogptq(model: str, job: dict[str, Any]) -> None:
    """Quantize with auto-gptq, which knows only CUDA: on a processor its constant for the GPU is set to the processor."""
    import torch
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling import _base
    from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
    from transformers import AutoModelForCausalLM

    options = job["options"]
    config = BaseQuantizeConfig(bits=options["bits"], group_size=options["group_size"], desc_act=options["act_order"])
    plain = AutoModelForCausalLM.from_pretrained(
        model, torch_dtype=_dtype(job["device"]), trust_remote_code=False, use_safetensors=True
    )
    kind = GPTQ_CAUSAL_LM_MODEL_MAP.get(plain.config.model_type)
    if kind is None:
        raise Cannot(f"auto-gptq has no layout for models of type {plain.config.model_type}")
    if job["device"] == "cpu":
        _base.CUDA_0 = torch.device("cpu")
        torch.cuda.synchronize = lambda *_: None
    loaded = kind(plain.eval(), False, config)
    loaded.quantize(_examples(job["sequences"]), batch_size=1, cache_examples_on_gpu=False)
    loaded.save_quantized(job["out"], use_safetensors=True)


def _examples(sequences: list[list[int]], lists: bool = False) -> list[dict[str, Any]]:
    import torch

    if lists:
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
    return [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in sequences]


def _dtype(device: str) -> Any:
    import torch

    return torch.float32 if device == "cpu" else torch.float16


def _complete(job: dict[str, Any], scratch: Path) -> str:
    """A folder with everything the libraries look for: the hub's snapshot, or the folder itself, with a tokenizer."""
    folder = Path(job["location"])
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(job["location"], revision=job["revision"], allow_patterns=PATTERNS))
    if any(folder.glob("tokenizer*")) or any(folder.glob("vocab*")):
        return str(folder)
    # Synthetic weights have no tokenizer and need none, but the libraries insist on loading one.
    from transformers import PreTrainedTokenizerFast

    from effillm_server.catalog import TOKENIZER

    for path in folder.iterdir():
        (scratch / path.name).symlink_to(path.resolve())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<end>"})
    tokenizer.save_pretrained(scratch)
    return str(scratch)


if __name__ == "__main__":
    sys.exit(main())
