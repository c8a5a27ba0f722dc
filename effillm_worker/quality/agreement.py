"""Agreement with the unquantized model: its next-token distributions, kept on disk once, against those of this one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effillm_server.contract.quality import Agreement, Losses

if TYPE_CHECKING:
    import torch

FORMAT = 1
KEPT_BYTES = 64 * 2**20  # of distributions a reference keeps at most, whatever the vocabulary
MOST_KEPT = 2048
DISTRIBUTIONS = "distributions.npy"
TOP = "top.npy"
ABOUT = "reference.json"


def kept_positions(scored: int, vocabulary: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which scored positions keep their whole distribution: evenly spaced, as many as fit."""
    count = max(1, min(scored, MOST_KEPT, KEPT_BYTES // (2 * vocabulary)))
    return np.unique(np.linspace(0, scored - 1, count).round().astype(np.int64))


@dataclass(frozen=True)
class Reference:
    """What is kept of the unquantized model: its most probable token everywhere, whole distributions at `kept` positions."""

    kept: np.ndarray[Any, np.dtype[np.int64]]
    top: np.ndarray[Any, np.dtype[np.int32]]  # [scored]
    distributions: np.ndarray[Any, np.dtype[np.float16]]  # log probabilities, [kept, vocabulary]

    @classmethod
    def new(cls, folder: Path, scored: int, vocabulary: int) -> Reference:
        """An empty one on disk, to be filled by `look`."""
        kept = kept_positions(scored, vocabulary)
        make = np.lib.format.open_memmap
        # Half precision: an error of 2^-11 of a log probability changes a KL of distributions in the second order only.
        return cls(
            kept,
            make(folder / TOP, mode="w+", dtype=np.int32, shape=(scored,)),
            make(folder / DISTRIBUTIONS, mode="w+", dtype=np.float16, shape=(len(kept), vocabulary)),
        )

    def look(self, first: int, logp: torch.Tensor) -> None:
        """Keep rows that predict the scored tokens from `first` on, shape [rows, vocabulary]."""
        self.top[first : first + len(logp)] = logp.argmax(dim=-1).cpu().numpy()
        for place, row in _rows(self.kept, first, len(logp)):
            self.distributions[place] = logp[row].cpu().numpy().clip(np.finfo(np.float16).min)


def write_about(folder: Path, model: str, reference: Reference, losses: Losses) -> None:
    """The description, written last: a folder without it is no reference."""
    about = {
        "format": FORMAT,
        "model": model,
        "kept": reference.kept.tolist(),
        "losses": losses.model_dump(mode="json"),
    }
    (folder / ABOUT).write_text(json.dumps(about))


def read(folder: Path) -> tuple[str, Reference, Losses]:
    """Name of the unquantized model, its distributions mapped from disk, and its losses."""
    about = json.loads((folder / ABOUT).read_text())
    reference = Reference(
        np.array(about["kept"], dtype=np.int64),
        np.load(folder / TOP, mmap_mode="r"),
        np.load(folder / DISTRIBUTIONS, mmap_mode="r"),
    )
    return str(about["model"]), reference, Losses.model_validate(about["losses"])


@dataclass
class Comparison:
    """Distributions looked at against a reference; memory is a few rows, however many there are."""

    reference: Reference
    agreeing: int = 0
    positions: int = 0
    kl: list[float] = field(default_factory=list)

    def look(self, first: int, logp: torch.Tensor) -> None:
        """Compare rows that predict the scored tokens from `first` on, shape [rows, vocabulary]."""
        import torch

        top = torch.from_numpy(np.array(self.reference.top[first : first + len(logp)], dtype=np.int64))
        self.agreeing += int((logp.argmax(dim=-1).cpu() == top).sum())
        self.positions += len(logp)
        for place, row in _rows(self.reference.kept, first, len(logp)):
            kept = torch.from_numpy(np.array(self.reference.distributions[place], dtype=np.float32))
            self.kl.append(divergence(kept, logp[row].cpu()))

    def result(self, model: str, losses: Losses) -> Agreement | None:
        """The agreement over everything looked at; None when a divergence is not finite."""
        kl = np.array(self.kl)
        if not len(kl) or not np.isfinite(kl).all():
            return None
        return Agreement(
            reference=model, positions=self.positions, agreeing=self.agreeing, kl_positions=len(kl),
            mean_kl=float(kl.mean()), kl_se=float(kl.std(ddof=1)) / math.sqrt(len(kl)) if len(kl) > 1 else 0.0,
            losses=losses,
        )  # fmt: skip


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """KL(reference || other) in nats of two rows of log probabilities; the reference's are normalised again."""
    import torch

    p = torch.log_softmax(reference.double(), dim=-1)
    q = torch.log_softmax(other.double(), dim=-1)
    return float((p.exp() * (p - q)).sum())


def _rows(kept: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]], first: int, count: int) -> list[tuple[int, int]]:
    """(place among the kept, row of the block) of the kept positions that lie in this block."""
    low, high = np.searchsorted(kept, [first, first + count])
    return [(place, int(kept[place]) - first) for place in range(int(low), int(high))]
