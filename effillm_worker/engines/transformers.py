"""The engine `transformers`: Hugging Face's own `generate`, marked once a token, forced to an exact length."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from effillm_server.contract.evidence import Quantized
from effillm_server.contract.outcome import LoadedModel
from effillm_server.contract.quality import Quality, QualityPlan
from effillm_worker import weights
from effillm_worker.engines import cache
from effillm_worker.engines.base import Batch, CacheCount, Environment, LoadRequest, Unsupported
from effillm_worker.engines.checkpoint import disk_bytes, dtype_argument, identity
from effillm_worker.engines.clock import Clock, EventClock, ProcessorClock
from effillm_worker.engines.rehearsal import rehearse
from effillm_worker.meters.heap import trim
from effillm_worker.quantization import method
from effillm_worker.quantization.base import Conversion, account, kernels, quantized, roles

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from effillm_worker.quality.measure import Subject

NO_QUALITY = "synthetic weights are random and have no quality: measure it with weights: pretrained"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id")


class TransformersEngine:
    """One causal language model loaded by transformers, on a processor or on the process's only visible GPU."""

    simulated = False
    _no_reference = ""

    def start(self, request: LoadRequest) -> Environment:
        _set_environment(request.threads)
        import torch

        self._torch = torch
        self._request = request
        self._device = torch.device(request.device)
        if request.device == "cuda" and not torch.cuda.is_available():
            raise Unsupported(f"the cell needs a GPU, but torch {torch.__version__} in this runtime sees none")
        _set_threads(torch, request.threads)
        self._method = method(request.cell.quantization)
        self._method.check(request.device, request.cell.dtype)
        with _quiet():
            begin = time.monotonic()
            found = weights.source(request)
            self._config = _config(found)
            self._method.accept(self._config, found)
            self._context = self._conversion(request, found)
            self._source = self._method.prepare(self._context)
            is_made = self._source is not found
            if is_made:
                self._config = _config(self._source)
                self._method.accept(self._config, self._source)
            once_s = time.monotonic() - begin if is_made or found.synthetic else 0.0
            self._method.start(request.device, request.cell.dtype)
            self._load_options = self._method.options(request.cell.dtype)
            begin = time.monotonic()
            if request.device == "cpu":
                rehearse(torch, request.cell.dtype, self._load_options)
            once_s += time.monotonic() - begin
        self._clock = self._new_clock()
        torch.ones(64, 64, device=self._device).matmul(torch.ones(64, 64, device=self._device))
        self.synchronize()
        return Environment(blas=_blas(torch), threads=_threads(torch), once_s=once_s)

    def load(self, request: LoadRequest) -> LoadedModel:
        from transformers import AutoModelForCausalLM, GenerationConfig

        dtype = getattr(self._torch, request.cell.dtype)
        with _quiet():
            self._model = self._method.load(
                AutoModelForCausalLM,
                self._source.location,
                {
                    "config": self._config,
                    "device_map": {"": str(self._device)},
                    "trust_remote_code": False,
                    **dtype_argument(dtype),
                    **self._source.options,
                    **self._load_options,
                },
            )
            self._model.eval()
            tokenizer = self._tokenizer() if self._method.converts and not self._source.synthetic else None
            facts = self._method.convert(self._model, tokenizer, self._context)
        # The model's own generation settings may end a sequence early, sample or penalise: none of them is used.
        self._model.generation_config = GenerationConfig()
        gc.collect()
        if self._method.converts:
            # Who deploys the model loads its codes, and never had the weights they were made of nor what a training took.
            self._give_back()
        return self._describe(facts)

    def ordinary_tokens(self) -> Sequence[int]:
        special = {getattr(self._text_config, name, None) for name in SPECIAL_TOKENS}
        return [token for token in range(self._text_config.vocab_size) if token not in special]

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        if self._context.source.synthetic:
            return self._encode_by_catalog(prompts)
        with _quiet():
            tokenizer = self._tokenizer()
            return [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]

    def batch(self, prompts: Sequence[Sequence[int]]) -> Batch:
        longest = max(len(prompt) for prompt in prompts)
        padding = getattr(self._text_config, "pad_token_id", None) or 0
        tokens = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]  # [batch, longest], left
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        inputs = {
            "input_ids": self._torch.tensor(tokens, device=self._device),
            "attention_mask": self._torch.tensor(mask, device=self._device),
        }
        lengths = tuple(len(prompt) for prompt in prompts)
        return Batch(inputs, sum(lengths), lengths, {"padded_to": longest})

    def generate(self, batch: Batch, tokens: int, mark: Callable[[], None]) -> None:
        from transformers import StoppingCriteriaList

        going_on = self._torch.zeros(len(batch.lengths), dtype=self._torch.bool, device=self._device)
        criteria: Any = StoppingCriteriaList([_Marker(mark, going_on)])
        self._model.generate(
            **batch.tokens,
            generation_config=self._settings(tokens),
            stopping_criteria=criteria,
        )

    def mark(self) -> Any:
        return self._clock.mark()

    def resolve(self, marks: Sequence[Any]) -> list[int]:
        return self._clock.resolve(marks)

    def synchronize(self) -> None:
        self._clock.synchronize()

    def allocator(self) -> dict[str, int]:
        if self._device.type != "cuda":
            return {}
        cuda = self._torch.cuda
        return {
            "allocated": cuda.memory_allocated(),
            "reserved": cuda.memory_reserved(),
            "peak_allocated": cuda.max_memory_allocated(),
            "peak_reserved": cuda.max_memory_reserved(),
        }

    def reset_peak(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.reset_peak_memory_stats()

    def each_operation(self, then: Callable[[], None]) -> AbstractContextManager[None]:
        return _operations(then)

    def kv_cache_bytes(self, batch_size: int, tokens: int) -> int | None:
        config = self._text_config
        heads = getattr(config, "num_attention_heads", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not heads or not layers:
            return None
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * layers * kv_heads * size * tokens * batch_size * self._model.dtype.itemsize)

    def counting_cache(self) -> AbstractContextManager[CacheCount]:
        return cache.counting(self._model)

    def context_window(self) -> int | None:
        found = getattr(self._text_config, "max_position_embeddings", None)
        return int(found) if found else None

    def prepare_judging(self, plan: QualityPlan) -> None:
        from effillm_worker.quality import reference

        if not self._context.source.synthetic:
            self._no_reference = (
                reference.prepare(self._request, plan, self._context.identity, self.context_window())
                if plan.agreement
                else ""
            )

    def judge(self, plan: QualityPlan, time_limit_s: float, tick: Callable[[int, int], None] | None = None) -> Quality:
        from effillm_worker.quality.measure import judge, refuse

        subject, is_real = self._subject(), not self._context.source.synthetic
        with _quiet():
            quality = judge(subject, plan, time_limit_s, tick) if is_real else refuse(subject, plan, NO_QUALITY)
        gc.collect()
        return quality

    def unload(self) -> None:
        del self._model
        self._give_back()

    def _give_back(self) -> None:
        """Free blocks to the kernel and the device."""
        gc.collect()
        trim()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _subject(self) -> Subject:
        from effillm_worker.quality.measure import Subject
        from effillm_worker.quality.reference import is_reference

        request = self._request
        return Subject(
            model=self._model,
            tokenizer=self._tokenizer,
            encode=self.encode,
            name=request.cell.model,
            identity=self._context.identity,
            device=request.device,
            cache_dir=Path(request.cache_dir),
            model_root=request.model_root,
            context_window=self.context_window(),
            is_reference=is_reference(request.cell, request.device),
            is_quantized=any(self._method.is_quantized(module) for module in self._model.modules()),
            no_reference=self._no_reference,
        )

    @property
    def _text_config(self) -> Any:
        return self._config.get_text_config(decoder=True)

    def _new_clock(self) -> Clock:
        if self._device.type != "cuda":
            return ProcessorClock()
        cuda = self._torch.cuda
        return EventClock(lambda: cuda.Event(enable_timing=True), cuda.synchronize)

    def _settings(self, tokens: int) -> Any:
        from transformers import GenerationConfig

        # Without an end-of-sequence token nothing but the length ends a generation.
        padding = getattr(self._text_config, "pad_token_id", None) or 0
        return GenerationConfig(
            max_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=None, pad_token_id=padding
        )

    def _conversion(self, request: LoadRequest, source: weights.Source) -> Conversion:
        return Conversion(
            label=request.cell.quantization,
            device=request.device,
            dtype=request.cell.dtype,
            cache_dir=Path(request.cache_dir),
            model_root=request.model_root,
            source=source,
            identity=identity(request.cell, source),
            encode=self.encode,
            threads=request.threads,
            longest=self.context_window(),
            tick=partial(request.on_progress, "quantizing"),
        )

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        source = self._context.source  # a checkpoint made here has none of its own
        arguments = {"revision": self._request.cell.revision, "trust_remote_code": False}
        try:
            return AutoTokenizer.from_pretrained(source.location, **arguments)
        except ValueError:
            # An earlier transformers does not know the class a later one wrote down; the tokenizer's own file is the same.
            return PreTrainedTokenizerFast.from_pretrained(source.location, **arguments)

    def _describe(self, facts: Mapping[str, Any] = MappingProxyType({})) -> LoadedModel:
        stored = account(self._method, self._model)
        found = quantized(self._method, self._model) | self._method.evidence(self._model) | dict(facts)
        evidence = Quantized(**{"disk_bytes": disk_bytes(self._source)} | found)
        return LoadedModel(
            parameters=stored.weights,
            weight_bytes=stored.bytes,
            bits_per_weight=8 * stored.bytes / stored.weights,
            dtype=str(self._model.dtype).removeprefix("torch."),
            kernels=kernels(self._model.modules()),
            details={
                "class": type(self._model).__name__,
                "attention": getattr(self._model.config, "_attn_implementation", None),
                "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in self._model.buffers()),
                "quantization": evidence.model_dump(mode="json"),
                "multiplied_in": self._method.multiplied_in(self._model, self._request.cell.dtype),
                **roles(self._model, self._method),
            },
        )

    def _encode_by_catalog(self, prompts: Sequence[str]) -> list[list[int]]:
        """Synthetic weights have no tokenizer; the catalog's stands in, its ids folded into the model's vocabulary."""
        from tokenizers import Tokenizer

        from effillm_server.catalog import TOKENIZER

        tokenizer = Tokenizer.from_file(str(TOKENIZER))
        size = self._text_config.vocab_size
        return [[token % size for token in tokenizer.encode(prompt).ids] for prompt in prompts]


class _Marker:
    """A stopping criterion that never stops: `generate` calls it once each token of every sequence exists."""

    def __init__(self, mark: Callable[[], None], going_on: torch.Tensor) -> None:
        self._mark = mark
        self._going_on = going_on  # [batch], all False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.Tensor:
        self._mark()
        return self._going_on


@contextmanager
def _operations(then: Callable[[], None]) -> Iterator[None]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            then()
            return result

    with Mode():  # type: ignore[no-untyped-call]
        yield


def _set_environment(threads: int) -> None:
    """Must come before torch is imported: OpenMP and MKL read their variables once."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Else transformers asks the hub, in a thread beside the measurement, to convert pickled weights.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def _set_threads(torch: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)  # once per process, before any parallel work


def _threads(torch: Any) -> dict[str, int | str | None]:
    return {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}


def _blas(torch: Any) -> str | None:
    """The linear algebra libraries torch was built with, as it states them."""
    marks = ("mkl", "openblas", "mkl-dnn", "onednn", "accelerate")
    lines = (line.strip(" -") for line in torch.__config__.show().splitlines())
    found = [line for line in lines if line.lower().startswith(("intel", "openblas")) or "MKL-DNN" in line]
    if found:
        return "; ".join(found)
    settings = torch.__config__.show().lower()
    return next((mark for mark in marks if mark in settings), None)


def _config(source: weights.Source) -> Any:
    """The model's configuration, its class imported: `baseline` holds the code, `loaded` the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {key: value for key, value in source.options.items() if key not in ("use_safetensors", "weights_only")}
    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=False, **options)
    except ValueError as error:
        raise Unsupported(f"transformers in this runtime does not know this model: {_sentence(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise Unsupported(f"{config.model_type} is not a causal language model transformers can load")
    _ = AutoModelForCausalLM._model_mapping[type(config)]
    return config


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Whatever a library warns of goes to the log and stops nothing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield
