"""The quality of one loaded model, whole: perplexity, agreement and tasks in one record, with words for what is missing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effillm_server.contract.quality import MIN_TOKENS, Agreement, Losses, Quality, QualityPlan, TaskScore, TimeShares
from effillm_worker.engines.base import Unsupported
from effillm_worker.measure.refusal import answer
from effillm_worker.quality import agreement, perplexity
from effillm_worker.quality.text import Encode, Text, encode, evaluation
from effillm_worker.weights import written_once

# What quality is compared with: computed in single precision on a processor, in half precision on a GPU.
REFERENCE = {"cpu": ("fp32", "float32"), "cuda": ("fp16", "float16")}


class TooLong(Exception):
    """Quality has used up its time."""


@dataclass(frozen=True)
class Subject:
    """A model to judge. `identity` names its unquantized weights exactly; `is_reference`: these are they, in the reference's precision.

    `no_reference` says why the unquantized model's distributions are not there, where that is known.
    """

    model: Any
    tokenizer: Callable[[], Any]
    encode: Encode
    name: str
    identity: str
    device: str
    cache_dir: Path
    model_root: str | None
    context_window: int | None
    is_reference: bool
    is_quantized: bool = False
    no_reference: str = ""


def reference_folder(cache_dir: Path, identity: str, device: str, plan: QualityPlan, text: Text, window: int) -> Path:
    """Where the unquantized model's distributions over this text are kept: a name made from all that decides them."""
    parts = [agreement.FORMAT, identity, REFERENCE[device], text.digest, plan.tokens, window]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return cache_dir / "quality" / digest


def judge(
    subject: Subject, plan: QualityPlan, time_limit_s: float, tick: Callable[[int, int], None] | None = None
) -> Quality:
    """What was found about the subject. Never raises for what has an answer in words: that goes into `notes`."""
    begin = time.monotonic()
    sitting = Sitting(subject, plan, begin + time_limit_s, tick)
    notes: list[str] = []
    found: dict[str, Any] = {}
    try:
        found = sitting.read()
    except TooLong as error:
        notes.append(str(error))
    except Exception as error:
        refusal = answer(error)
        if refusal is None:
            raise
        notes.append(refusal[1])
    shares = sitting.shares()
    scores, task_notes = sitting.tasks()
    return Quality(
        text=plan.text,
        **found,
        tasks=scores,
        shares=shares,
        notes=(*notes, *sitting.notes, *task_notes),
        seconds=round(time.monotonic() - begin, 3),
    )


def refuse(subject: Subject, plan: QualityPlan, why: str) -> Quality:
    """The record of a model without a quality worth the name: why, and where its time goes, for which no weights need be real."""
    begin = time.monotonic()
    sitting = Sitting(subject, plan, begin, None)
    found = sitting.shares()
    return Quality(
        text=plan.text, shares=found, notes=(why, *sitting.notes), seconds=round(time.monotonic() - begin, 3)
    )


class Sitting:
    """One judging of one model."""

    def __init__(
        self, subject: Subject, plan: QualityPlan, until: float, tick: Callable[[int, int], None] | None
    ) -> None:
        self.subject, self.plan, self.until = subject, plan, until
        self.notes: list[str] = []
        self._tick = tick
        self._windows = self._total = 0
        self._ids: list[int] = []

    def read(self) -> dict[str, Any]:
        """Text, losses and agreement as fields of the record. Raises Unsupported, TooLong."""
        subject, plan = self.subject, self.plan
        text = evaluation(plan.text, subject.model_root)
        window, stride = perplexity.sizes(subject.context_window)
        ids = token_ids(subject.encode, text, plan)
        self._total = sum(1 for _ in perplexity.windows(len(ids), window, stride))
        compared: tuple[Losses, Agreement | None] | None = None
        if plan.agreement:
            folder = reference_folder(subject.cache_dir, subject.identity, subject.device, plan, text, window)
            compared = self._compare(folder, ids, window, stride)
        losses = compared[0] if compared else self._losses(ids, window, stride, None)
        agreed = compared[1] if compared else None
        if compared and agreed is None:
            self.notes.append("no agreement: this model's distributions are not finite numbers")
        self._ids = ids
        return {
            "text_digest": text.digest, "window": window, "stride": stride, "losses": losses, "agreement": agreed,
        }  # fmt: skip

    def shares(self) -> TimeShares | None:
        """Where a quantized model's time goes; None for an unquantized one, or when its profile failed."""
        if not self.subject.is_quantized:
            return None
        from effillm_worker.quality import shares

        try:
            return shares.measure(
                self.subject.model, self._ids or self._any_ids(shares.PROMPT), self.subject.context_window
            )
        except RuntimeError as error:  # a profiler that is not permitted here costs an explanation, not the quality
            self.notes.append(f"no profile: {' '.join(str(error).split())[:200]}")
            return None

    def _any_ids(self, count: int) -> list[int]:
        """Ids for a model that has read no text: how long a product takes does not depend on which they are."""
        vocabulary = vocabulary_of(self.subject.model)
        return [number % vocabulary for number in range(1, count + 1)]

    def tasks(self) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
        """Scores of the plan's tasks and a sentence for each that could not be run."""
        if not self.plan.tasks:
            return (), ()
        from effillm_worker.quality import tasks

        return tasks.run(self.subject.model, self.subject.tokenizer(), self.plan, self.subject.model_root)

    def _compare(
        self, folder: Path, ids: list[int], window: int, stride: int
    ) -> tuple[Losses, Agreement | None] | None:
        """Losses and agreement with the reference in `folder`, which the unquantized model itself writes; None without one."""
        if self.subject.is_reference:
            with written_once(folder) as part:
                if part is not None:
                    return self._record(part, ids, window, stride)
        if not folder.is_dir():
            self.notes.append(
                self.subject.no_reference or "no agreement: the unquantized model was not read beforehand"
            )
            return None
        model, reference, losses = agreement.read(folder)
        return self._against(reference, model, losses, ids, window, stride)

    def _against(
        self, reference: agreement.Reference, model: str, theirs: Losses, ids: list[int], window: int, stride: int
    ) -> tuple[Losses, Agreement | None]:
        if len(reference.top) != len(ids) - 1:
            raise Unsupported(
                f"the unquantized model was read over {len(reference.top)} tokens, this one has {len(ids) - 1} of the same text: "
                "their tokenizers differ"
            )
        comparison = agreement.Comparison(reference)
        losses = self._losses(ids, window, stride, comparison.look)
        return losses, comparison.result(model, theirs)

    def _record(self, folder: Path, ids: list[int], window: int, stride: int) -> tuple[Losses, Agreement | None]:
        """The subject is the unquantized model: what it says is kept, and compared in the form it is kept in."""
        name = f"{self.subject.name} {REFERENCE[self.subject.device][0]}"
        vocabulary = vocabulary_of(self.subject.model)
        reference = agreement.Reference.new(folder, len(ids) - 1, vocabulary)
        comparison = agreement.Comparison(reference)

        def look(first: int, logp: Any) -> None:
            reference.look(first, logp)
            comparison.look(first, logp)

        losses = self._losses(ids, window, stride, look)
        agreement.write_about(folder, name, reference, losses)
        return losses, comparison.result(name, losses)

    def _losses(self, ids: list[int], window: int, stride: int, look: perplexity.Look | None) -> Losses:
        nll = perplexity.score(self.subject.model, ids, window, stride, look, self._after_window)
        found = perplexity.losses(nll)
        if found is None:
            raise Unsupported("the model's loss on the text is not a finite number: its weights or its dtype overflow")
        return found

    def _after_window(self) -> None:
        self._windows += 1
        if self._tick is not None:
            self._tick(self._windows, self._total)
        if time.monotonic() > self.until:
            raise TooLong(
                f"no perplexity: {self._windows} of {self._total} windows were read in the time a cell has "
                "(measurement.time_limit_s): raise it or ask for fewer quality.tokens"
            )


def token_ids(by: Encode, text: Text, plan: QualityPlan) -> list[int]:
    """The ids to read: one more than is scored. Raises Unsupported when the text has fewer than 256."""
    ids = encode(by, text, plan.tokens + 1)
    if len(ids) <= MIN_TOKENS:
        raise Unsupported(
            f"the text {text.name!r} has {len(ids)} tokens, quality needs more than {MIN_TOKENS}: use a longer text"
        )
    return ids


def vocabulary_of(model: Any) -> int:
    """Width of the model's distributions."""
    return int(model.config.get_text_config(decoder=True).vocab_size)
