"""The interface of a quantization method, and the count of what a loaded model really stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from effillm_worker.engines.base import Unsupported


@dataclass(frozen=True)
class Stored:
    """One weight tensor as it is stored: how many weights it stands for and in how many bytes, scales included."""

    weights: int
    bytes: int


class Method(Protocol):
    """One way of storing weights."""

    name: str

    def check(self, device: str, dtype: str) -> None:
        """Raises Unsupported, with what is missing, when the method cannot run here."""
        ...

    def start(self, device: str, dtype: str) -> None:
        """Import the method's kernels and run one of them, so that `baseline` memory holds them."""
        ...

    def options(self, dtype: str) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained` beyond the dtype."""
        ...

    def stored(self, parameter: Any) -> Stored:
        """What one parameter stands for."""
        ...


def count(method: Method, parameters: Iterable[Any]) -> Stored:
    """Weights and bytes of distinct parameters together."""
    each = [method.stored(parameter) for parameter in parameters]
    return Stored(sum(stored.weights for stored in each), sum(stored.bytes for stored in each))


def kernels(modules: Iterable[Any]) -> dict[str, int]:
    """How many modules of each class hold parameters of their own: the evidence of which kernels run."""
    owners = (module for module in modules if next(module.parameters(recurse=False), None) is not None)
    return dict(sorted(Counter(type(module).__name__ for module in owners).items()))


def roles(model: Any, method: Method) -> dict[str, int]:
    """What a generated token does with the weights of a transformers model.

    `multiplied_weights` are the matrices outside of tables, the output head included; `head_weights` the head's;
    `looked_up_bytes` the tables (embeddings) of which a token reads one row: a table that is the head too is multiplied.
    """
    tables: dict[int, Any] = {}
    matrices: dict[int, Any] = {}
    for module in model.modules():
        is_table = type(module).__name__.endswith("Embedding")
        for parameter in module.parameters(recurse=False):
            if is_table:
                tables[id(parameter)] = parameter
            elif parameter.dim() > 1:
                matrices[id(parameter)] = parameter
    head = model.get_output_embeddings()
    return {
        "multiplied_weights": count(method, matrices.values()).weights,
        "head_weights": 0 if head is None else method.stored(head.weight).weights,
        "looked_up_bytes": count(method, [table for key, table in tables.items() if key not in matrices]).bytes,
    }


def plain(parameter: Any) -> Stored:
    """A parameter stored as it is."""
    return Stored(parameter.numel(), parameter.numel() * parameter.element_size())


def require(packages: Iterable[str], why: str) -> None:
    """Raises Unsupported naming the packages of these that this runtime lacks."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise Unsupported(
            f"{why} needs {', '.join(missing)}, which this runtime does not have: install effillm[worker]"
        )
