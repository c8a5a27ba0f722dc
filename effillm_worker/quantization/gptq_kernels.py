"""Which GPTQ kernel runs a checkpoint here, and loading by auto-gptq, whose loader is its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from effillm_worker.engines.base import Unsupported
from effillm_worker.engines.checkpoint import folder_of
from effillm_worker.quantization.base import Packed
from effillm_worker.quantization.spelling import missing
from effillm_worker.weights import Source

# The label's names of GPTQModel's kernels.
BACKENDS = {"auto": "auto", "torch": "gptq_torch", "aten": "gptq_torch_aten", "fused": "gptq_torch_fused"}
EXPECTED = (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError)


def loading(kernel: str) -> dict[str, Any]:
    """What transformers is told beside the checkpoint's own settings."""
    return {} if kernel == "auto" else {"backend": BACKENDS[kernel]}


def choose(library: str, settings: Mapping[str, Any], kernel: str, device: str) -> None:
    """Imports the library and its kernel. Raises Unsupported where none runs this checkpoint on this device."""
    if library == "auto_gptq":
        if kernel != "auto":
            raise Unsupported(f"auto-gptq chooses its kernel itself: the label's kernel {kernel!r} is GPTQModel's")
        if settings.get("is_marlin_format") or settings.get("checkpoint_format") == "marlin":
            raise Unsupported("the checkpoint is laid out for the marlin kernel, which auto-gptq has for GPUs only")
        if settings.get("checkpoint_format") == "gptq_v2":
            raise Unsupported(
                "the checkpoint is in the format gptq_v2, which auto-gptq would misread: use the default runtime"
            )
        import auto_gptq  # noqa: F401

        return
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    with reasons("gptq"):
        hf_select_quant_linear_v2(
            bits=int(settings.get("bits", 0)),
            group_size=int(settings.get("group_size", -1)),
            desc_act=bool(settings.get("desc_act", False)),
            sym=bool(settings.get("sym", True)),
            format=str(settings.get("checkpoint_format") or settings.get("format") or "gptq"),
            quant_method="gptq",
            meta=settings.get("meta"),
            pack=False,
            device_map={"": device},
            backend=BACKENDS[kernel],
        )


@contextmanager
def reasons(label: str) -> Iterator[None]:
    """Turns a library's refusal into Unsupported; memory that runs out stays what it is."""
    try:
        yield
    except EXPECTED as error:
        sentence = " ".join(str(error).split())[:300]
        if "out of memory" in sentence.lower() or "allocate" in sentence.lower():
            raise
        raise Unsupported(f"no kernel of this runtime runs {label} on this device: {sentence}") from error


def by_autogptq(location: str, arguments: Mapping[str, Any]) -> Any:
    """The model inside auto-gptq's wrapper, loaded without any of the kernels that need a GPU where there is none."""
    from auto_gptq import AutoGPTQForCausalLM

    device = str(arguments["device_map"][""])
    dtype = arguments.get("torch_dtype", arguments.get("dtype"))
    on_gpu = device != "cpu"
    wrapped = AutoGPTQForCausalLM.from_quantized(
        location,
        device=device if not on_gpu else "cuda:0",
        torch_dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        disable_exllama=not on_gpu,
        disable_exllamav2=not on_gpu,
        use_cuda_fp16=on_gpu,
        revision=arguments.get("revision"),
        local_files_only=bool(arguments.get("local_files_only", False)),
    )
    folder = folder_of(Source(location, dict(arguments)))
    lacking = [] if folder is None else missing(folder, wrapped.model.state_dict(), _tied(wrapped.model))
    if lacking:
        # Its loader would leave them as they happen to be, and every number after that would mean nothing.
        raise Unsupported(
            f"the checkpoint has no tensor {lacking[0]} (and {len(lacking) - 1} more) under the names this runtime's transformers "
            "uses: it was written by another version of the library"
        )
    return wrapped.model


def _tied(model: Any) -> set[str]:
    """Names of tensors that are another one under a second name."""
    tied = model.config.tie_word_embeddings
    return set(getattr(model, "_tied_weights_keys", None) or ()) if tied else set()


def run_once(model: Any) -> None:
    """One token through the model."""
    import torch

    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def packed(module: Any) -> Packed | None:
    """The tensors of a quantized linear layer of either library, its bias left out."""
    import torch

    name = type(module).__module__
    if not name.startswith(("gptqmodel.", "auto_gptq.")) or not hasattr(module, "qweight"):
        return None
    rows = getattr(module, "in_features", None) or module.infeatures
    columns = getattr(module, "out_features", None) or module.outfeatures
    own = dict(module.named_buffers(recurse=True))
    # Tensors that are attributes without being buffers take memory all the same.
    own |= {key: value for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
    tensors = {id(tensor): tensor for key, tensor in own.items() if key.rpartition(".")[2] != "bias"}
    return Packed(int(rows) * int(columns), tuple(tensors.values()))
