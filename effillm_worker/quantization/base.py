"""The interface of a quantization method, and the count of what a loaded model really stores."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effillm_server.contract.quantization import Value, bits_of
from effillm_worker.engines.base import Tick, Unsupported, silent
from effillm_worker.weights import Source

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Stored:
    """One weight tensor as it is stored: how many weights it stands for and in how many bytes, scales included."""

    weights: int
    bytes: int


@dataclass(frozen=True)
class Packed:
    """The matrix of a module that keeps it in tensors of its own form. `tensors` are all of them: codes, scales, offsets."""

    weights: int
    tensors: tuple[Any, ...]

    @property
    def stored(self) -> Stored:
        return Stored(self.weights, sum(plain(tensor).bytes for tensor in self.tensors))


@dataclass(frozen=True)
class Conversion:
    """What a method may use to quantize here. `encode` gives token ids by the model's tokenizer (synthetic weights: the catalog's).

    `identity` names the weights exactly: what is made from them can be kept under it. `longest` is the context window. `tick` is to be
    called with every step of what takes long: who says nothing for an hour counts as hung.
    """

    label: str
    device: str
    dtype: str
    cache_dir: Path
    model_root: str | None
    source: Source
    identity: str
    encode: Encode
    threads: int = 1
    longest: int | None = None
    tick: Tick = silent


class Method:
    """One way of storing weights; made from a label's options. What is here is right for a method without kernels of its own."""

    def __init__(self, name: str, options: Mapping[str, Value]) -> None:
        self.name = name
        self.choices = options

    def check(self, device: str, dtype: str) -> None:
        """Raises Unsupported, with what is missing, when the method cannot run here."""

    def start(self, device: str, dtype: str) -> None:
        """Import the method's kernels and run one of them, so that `baseline` memory holds them."""

    def accept(self, config: Any, source: Source) -> None:
        """Raises Unsupported when weights stored as the checkpoint's `config` says would not be this method's."""
        published = getattr(config, "quantization_config", None)
        if published is not None:
            how = published.get("quant_method") if isinstance(published, dict) else None
            raise Unsupported(
                f"the checkpoint is stored quantized already ({how or 'by its quantization_config'}), so {self.name} would not be "
                "what is measured: name its own method on the quantization axis, or take the unquantized checkpoint"
            )

    def options(self, dtype: str) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained` beyond the dtype."""
        return {}

    def load(self, auto: Any, location: str, arguments: dict[str, Any]) -> Any:
        """The model, by transformers' `auto` class or by a loader of the method's own."""
        return auto.from_pretrained(location, **arguments)

    def prepare(self, context: Conversion) -> Source:
        """Where to load from: the model's own weights, or a checkpoint made of them once, in a process of its own, and kept."""
        return context.source

    # Whether `convert` does anything: only then are a tokenizer and the time for it spent.
    converts = False

    def convert(self, model: Any, tokenizer: Any, context: Conversion) -> dict[str, Any]:
        """Quantize the loaded model in place; what to say of it in the row's evidence. `tokenizer` is None on synthetic weights."""
        return {}

    def evidence(self, model: Any) -> dict[str, Any]:
        """What is worth knowing of the loaded model beyond layers, kernels and bytes, such as a checkpoint's own settings."""
        return {}

    def stored(self, parameter: Any) -> Stored:
        """What one parameter stands for."""
        return plain(parameter)

    def packed(self, module: Any) -> Packed | None:
        """The matrix of a module that holds it in other tensors than one parameter; None for an ordinary module."""
        return None

    def is_quantized(self, module: Any) -> bool:
        """Whether this module's matrix is stored the method's way."""
        return self.packed(module) is not None

    def kernel(self, module: Any) -> str:
        """What multiplies by this module's matrix: its class, where that says it."""
        return type(module).__name__

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        """The type in which the model's matrices are multiplied, as a ceiling names it; None where the kernels do not say."""
        return dtype

    @property
    def theoretical_bits(self) -> float | None:
        """Bits of one quantized weight without scales; None where a plan decides."""
        return bits_of(self.name)


def account(method: Method, model: Any) -> Stored:
    """Weights and bytes of a loaded model: every parameter once, and the tensors of packed modules."""
    each = list(_tensors(method, model))
    return Stored(sum(stored.weights for stored in each), sum(stored.bytes for stored in each))


def _tensors(method: Method, model: Any) -> Iterator[Stored]:
    seen: set[int] = set()
    for module in model.modules():
        packed = method.packed(module)
        own: list[Any] = list(module.parameters(recurse=False))
        if packed is not None:
            yield packed.stored
            seen |= {id(tensor) for tensor in packed.tensors}
            own += list(module.buffers(recurse=False))  # such modules keep their bias in a buffer
        for tensor in own:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield method.stored(tensor)


def count(method: Method, parameters: Iterable[Any]) -> Stored:
    """Weights and bytes of distinct parameters together."""
    each = [method.stored(parameter) for parameter in parameters]
    return Stored(sum(stored.weights for stored in each), sum(stored.bytes for stored in each))


def kernels(modules: Iterable[Any]) -> dict[str, int]:
    """How many modules of each class hold tensors of their own: the evidence of which kernels run."""
    owners = (module for module in modules if _is_owner(module))
    return dict(sorted(Counter(type(module).__name__ for module in owners).items()))


def _is_owner(module: Any) -> bool:
    if next(module.parameters(recurse=False), None) is not None:
        return True
    # A packed linear layer has buffers only; a rotary embedding has too, but multiplies nothing. auto-gptq writes `infeatures`.
    is_linear = hasattr(module, "in_features") or hasattr(module, "infeatures")
    return is_linear and next(module.buffers(recurse=False), None) is not None


def quantized(method: Method, model: Any) -> dict[str, Any]:
    """The countable fields of the evidence `Quantized`: which modules are stored the method's way and which linear ones are not."""
    layers: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    weights = 0
    for name, module in model.named_modules():
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        if method.is_quantized(module):
            packed = method.packed(module)
            weights += method.stored(module.weight).weights if packed is None else packed.weights
            layers[method.kernel(module)] += 1
            modules[pattern] += 1
        elif hasattr(module, "in_features") or type(module).__name__ == "Conv1D":
            kept[pattern] += 1
    return {
        "method": method.name,
        "options": dict(method.choices),
        "theoretical_bits": method.theoretical_bits,
        "quantized_weights": weights,
        "layers": dict(layers),
        "modules": dict(modules),
        "kept": dict(kept),
    }


def roles(model: Any, method: Method) -> dict[str, int]:
    """What a generated token does with the weights of a transformers model.

    `multiplied_weights` are the matrices outside of tables, the output head included; `head_weights` the head's;
    `looked_up_bytes` the tables (embeddings) of which a token reads one row: a table that is the head too is multiplied.
    """
    tables: dict[int, Any] = {}
    matrices: dict[int, Any] = {}
    packed = 0
    for module in model.modules():
        is_table = type(module).__name__.endswith("Embedding")
        if (own := method.packed(module)) is not None:
            packed += own.weights
            continue
        for parameter in module.parameters(recurse=False):
            if is_table:
                tables[id(parameter)] = parameter
            elif parameter.dim() > 1:
                matrices[id(parameter)] = parameter
    return {
        "multiplied_weights": packed + count(method, matrices.values()).weights,
        "head_weights": _head_weights(model, method),
        "looked_up_bytes": count(method, [table for key, table in tables.items() if key not in matrices]).bytes,
    }


def _head_weights(model: Any, method: Method) -> int:
    head = model.get_output_embeddings()
    if head is None:
        return 0
    packed = method.packed(head)
    return method.stored(head.weight).weights if packed is None else packed.weights


def plain(tensor: Any) -> Stored:
    """A tensor stored as it is."""
    return Stored(tensor.numel(), tensor.numel() * tensor.element_size())


def require(packages: Iterable[str], why: str, extra: str = "worker") -> None:
    """Raises Unsupported naming the packages of these that this runtime lacks."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise Unsupported(
            f"{why} needs {', '.join(missing)}, which this runtime does not have: install {remedy(missing, extra)}"
        )


def remedy(packages: Iterable[str], extra: str) -> str:
    """What to install where these packages are missing: EffiLLM's extra, or, in an environment without EffiLLM, the packages by name."""
    # Asked of the environment alone: a child in a foreign one has our source tree on its path, which may look installed.
    is_ours = any(distributions(name="effillm", path=[sysconfig.get_path("purelib")]))
    return f"effillm[{extra}]" if is_ours else f"it there ({sys.executable} -m pip install {' '.join(packages)})"
