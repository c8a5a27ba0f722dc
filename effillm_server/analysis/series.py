"""Every metric of a result, iteration by iteration, from the stored timestamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effillm_server.contract import timeline
from effillm_server.contract.outcome import Phase
from effillm_server.records import ResultRecord


@dataclass(frozen=True)
class Series:
    """What the counted iterations say. `metrics` maps a metric's name to one value per iteration, outliers left out."""

    metrics: dict[str, list[float]]
    itl_s: list[float]
    second_token_s: list[float]
    iterations: int
    warmup_iterations: int
    ttft_iterations: int
    excluded_outliers: int
    timed_tokens: int
    prompt_tokens_per_batch: float | None
    prompt_tokens_per_sequence: tuple[int, float, int] | None


def series(result: ResultRecord) -> Series:
    """Series of `result`. `iterations` counts every measured iteration of whole passes, the excluded ones too.

    `ttft_s` comes from the iterations of phase ttft (one token), everything else from phase measured.
    """
    batch_size = result.job.cell.batch_size
    prompts = (result.measurement or {}).get("prompts") or {}
    full = _whole_passes(_phase(result.samples, Phase.MEASURED), prompts)
    first = _whole_passes(_phase(result.samples, Phase.TTFT), prompts)
    # The energy counter runs from the first measured iteration to the last one-token iteration, outliers and all.
    window = [sample for sample in result.samples if sample["phase"] in (Phase.MEASURED, Phase.TTFT)]
    counted = [sample for sample in full if not sample.get("outlier")]
    counted_first = [sample for sample in first if not sample.get("outlier")]
    stamps = [sample["timestamps_ns"] for sample in counted]
    gaps_of = [timeline.itl_s(stamp) for stamp in stamps]
    throughput = [timeline.throughput_tok_s(stamp, batch_size) for stamp in stamps]
    return Series(
        metrics={
            "throughput_tok_s": throughput,
            "ttft_s": [timeline.ttft_s(sample["timestamps_ns"]) for sample in counted_first],
            "ttft_in_run_s": [timeline.ttft_s(stamp) for stamp in stamps],
            "tpot_s": _present(timeline.tpot_s(stamp) for stamp in stamps),
            "decode_tok_s": _present(timeline.decode_tok_s(stamp, batch_size) for stamp in stamps),
            "prefill_tok_s": [timeline.prefill_tok_s(s["timestamps_ns"], s["prompt_tokens"]) for s in counted],
            "per_instance_tok_s": [value / batch_size for value in throughput],
            "e2e_s": [timeline.e2e_s(stamp) for stamp in stamps],
        },
        itl_s=[gap for gaps in gaps_of for gap in gaps],
        second_token_s=[gaps[0] for gaps in gaps_of if gaps],
        iterations=len(full),
        warmup_iterations=len(_phase(result.samples, Phase.WARMUP)),
        ttft_iterations=len(first),
        excluded_outliers=len(full) - len(counted) + len(first) - len(counted_first),
        timed_tokens=sum((len(sample["timestamps_ns"]) - 1) * batch_size for sample in window),
        prompt_tokens_per_batch=_mean([float(sample["prompt_tokens"]) for sample in counted]),
        prompt_tokens_per_sequence=_lengths(prompts, counted, batch_size),
    )


def _phase(samples: Sequence[Mapping[str, Any]], phase: Phase) -> list[Mapping[str, Any]]:
    return sorted((s for s in samples if s["phase"] == phase), key=lambda sample: int(sample["iteration"]))


def _whole_passes(samples: list[Mapping[str, Any]], prompts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`samples` up to the last complete pass over the prompts; all of them where not even one pass was completed."""
    length = prompts.get("iterations_per_pass") or 1
    whole = len(samples) // length * length
    return samples[:whole] if whole else samples


def _lengths(
    prompts: Mapping[str, Any], counted: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[int, float, int] | None:
    lengths = prompts.get("lengths")
    if lengths:
        return min(lengths), sum(lengths) / len(lengths), max(lengths)
    per_sequence = [sample["prompt_tokens"] / batch_size for sample in counted]
    if not per_sequence:
        return None
    return int(min(per_sequence)), sum(per_sequence) / len(per_sequence), int(max(per_sequence))


def _present(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
