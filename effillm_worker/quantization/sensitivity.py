"""How much a model suffers when one of its layers is stored in few bits: measured on a text, layer by layer."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effillm_worker.engines.base import Tick, Unsupported, silent
from effillm_worker.quality.text import calibration, encode
from effillm_worker.quantization.base import Conversion
from effillm_worker.quantization.codes import dequantize, linear_layers, quantize, weight_of
from effillm_worker.weights import written_once

FORMAT = 1
# More bits do too little harm to be told from rounding; it falls by four with each bit, as the power of the error does.
MEASURED = (2, 3, 4)
TOKENS = 2048
MIN_TOKENS = 256
UNSEEN_TOKENS = 8192
LONGEST = 256
WORST = 1e6
KEPT_BYTES = 128 * 2**20  # of the unquantized model's distributions held while layers are tried


@dataclass(frozen=True)
class Sample:
    """Calibration text as windows of token ids, none overlapping, and what a record says of it.

    `unseen` is the text behind them, on which finished plans are compared.
    """

    windows: tuple[tuple[int, ...], ...]
    described: dict[str, Any]
    unseen: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> str:
        """Digest of the ids themselves."""
        return hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sensitivity:
    """`kl[layer][bits]`: mean KL(unquantized || with this layer alone at these bits) of next tokens, nats; `seconds` it took."""

    kl: dict[str, dict[int, float]]
    seconds: float

    def harm(self, layer: str, bits: int) -> float:
        """Measured, or carried on from the most bits measured; never more than fewer bits do."""
        measured = self.kl[layer]
        most = max(measured)
        known = min(kl for each, kl in measured.items() if each <= min(bits, most))
        return known * 4.0 ** (min(bits, most) - bits)


def sample_of(text: Any, context: Conversion, vocabulary: int) -> Sample:
    """The calibration sample by the model's own tokens. Raises Unsupported when the text is too short."""
    source = calibration(None if text is None else str(text), context.model_root)
    most = max(MIN_TOKENS, min(TOKENS, KEPT_BYTES // (4 * vocabulary)))
    ids = encode(context.encode, source, most + UNSEEN_TOKENS)
    if len(ids) < MIN_TOKENS:
        raise Unsupported(
            f"the calibration text {source.name!r} has {len(ids)} tokens, {MIN_TOKENS} are needed: use a longer text"
        )
    length = min(LONGEST, context.longest or LONGEST)
    windows, unseen = _windows(ids[:most], length), _windows(ids[most:], length)
    said = {
        "text": source.name, "digest": source.digest, "tokens": sum(map(len, windows)),
        "unseen_tokens": sum(map(len, unseen)),
    }  # fmt: skip
    return Sample(windows, said, unseen)


def _windows(ids: list[int], length: int) -> tuple[tuple[int, ...], ...]:
    """Windows one behind the other; a last one of less than half the length is left out."""
    return tuple(tuple(ids[start : start + length]) for start in range(0, len(ids) - length // 2, length))


def kept(model: Any, sample: Sample, context: Conversion) -> Sensitivity:
    """The model's sensitivity, measured once for weights, text and dtype and kept on disk."""
    parts = [FORMAT, context.identity, context.dtype, context.device, sample.key, MEASURED]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    folder = Path(context.cache_dir) / "sensitivity" / digest
    with written_once(folder) as part:
        if part is not None:
            found = measure(model, sample, context.tick)
            text = json.dumps({"kl": found.kl, "seconds": found.seconds})
            (part / "sensitivity.json").write_text(text)
    read = json.loads((folder / "sensitivity.json").read_text())
    kl = {layer: {int(bits): value for bits, value in by_bits.items()} for layer, by_bits in read["kl"].items()}
    return Sensitivity(kl, read["seconds"])


def measure(model: Any, sample: Sample, tick: Tick = silent) -> Sensitivity:
    """Each linear layer at 2, 3 and 4 bits, all others as they are. Weights are put back bit by bit. `tick` is called after each layer."""
    begin = time.monotonic()
    original = list(distributions(model, sample))
    kl: dict[str, dict[int, float]] = {}
    layers = linear_layers(model)
    for name, layer in layers.items():
        kl[name] = {}
        for bits in MEASURED:
            with stored_as(layer, bits):
                kl[name][bits] = mean_kl(original, distributions(model, sample))
        tick(len(kl), len(layers))
    return Sensitivity(kl, time.monotonic() - begin)


def distributions(model: Any, sample: Sample) -> Iterator[torch.Tensor]:
    """Log probabilities of the token behind each one, a tensor [window, vocabulary] for each window, float32."""
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        for window in sample.windows:
            ids = torch.tensor([window], device=device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            yield torch.log_softmax(logits.float(), dim=-1)


def mean_kl(original: list[torch.Tensor], other: Iterator[torch.Tensor]) -> float:
    """Mean over all positions of KL(original || other), nats, from 0 to 1e6: what is not finite counts as that much."""
    total, count = 0.0, 0
    for ours, theirs in zip(original, other, strict=True):
        total += float((ours.exp() * (ours - theirs)).sum(dim=-1).double().sum())
        count += len(ours)
    return min(max(0.0, total / count), WORST) if math.isfinite(total) else WORST


def mean_nll(model: Any, sample: Sample) -> float:
    """Mean negative log likelihood of each window's tokens after its first, nats."""
    total, count = 0.0, 0
    for window, logp in zip(sample.windows, distributions(model, sample), strict=True):
        targets = torch.tensor(window[1:], device=logp.device)
        total -= float(logp[:-1].gather(1, targets[:, None]).double().sum())
        count += len(targets)
    return total / count


@contextmanager
def stored_as(layer: Any, bits: int) -> Iterator[None]:
    """The layer's matrix is what its codes of so many bits stand for, by output channel, while the context is open."""
    matrix = layer.weight.data
    layer.weight.data = _values(layer, bits)
    try:
        yield
    finally:
        layer.weight.data = matrix


@contextmanager
def planned(model: Any, bits: Mapping[str, int | None]) -> Iterator[None]:
    """All layers at their planned bits, None as they are, while the context is open. Holds a second copy of the matrices."""
    layers = linear_layers(model)
    matrices = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            if (each := bits[name]) is not None:
                layer.weight.data = _values(layer, each)
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = matrices[name]


def _values(layer: Any, bits: int) -> torch.Tensor:
    """What the layer's codes stand for, laid out as its weight is."""
    values = dequantize(*quantize(weight_of(layer), bits, channel=True), layer.weight.dtype)
    return values.T.contiguous() if type(layer).__name__ == "Conv1D" else values
