"""The same record in the words of other tools: each number with the definition that tool gives it.

All of them time tokens inside the full generation, so their first-token time is `ttft_in_run_s` here, and they count every
request: a batch of b sequences is b requests that start and end together. Marked outliers are left out, as in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from effillm_server.analysis.rows import AXES
from effillm_server.analysis.rows import COLUMN_TYPES as ROW_TYPES
from effillm_server.analysis.series import Series, series
from effillm_server.errors import BadInput
from effillm_server.records import ResultRecord

MS = 1e3


class Dialect(StrEnum):
    """A tool whose words are spoken."""

    VLLM = "vllm"
    AIPERF = "aiperf"
    GUIDELLM = "guidellm"
    LLAMA_BENCH = "llama-bench"
    MLPERF = "mlperf"


# One line per number in exports: which result it belongs to, then the number and what it means.
COLUMN_TYPES: dict[str, type] = {
    **{name: ROW_TYPES[name] for name in ("sweep", "job", "verdict", "simulated", *AXES, "repeat")},
    "dialect": str, "name": str, "value": float, "unit": str, "definition": str,
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """One number in another tool's words. `value` is None where the record does not hold it."""

    dialect: str
    name: str
    value: float | None
    unit: str
    definition: str


@dataclass(frozen=True)
class Record:
    """What the dialects draw on: the counted iterations and the shape of the cell."""

    measured: Series
    batch_size: int
    generated: int
    prompt_per_batch: float


def dialect(name: str, result: ResultRecord) -> list[dict[str, Any]]:
    """Numbers of `result` in dialect `name`, labelled; empty when the job has no measurement.

    Raises BadInput for an unknown dialect.
    """
    if name not in DIALECTS:
        raise BadInput(f"no dialect {name!r}; there are {', '.join(DIALECTS)}", field="dialect")
    measured = series(result)
    if not measured.metrics["e2e_s"]:
        return []
    cell = result.job.cell
    record = Record(measured, cell.batch_size, cell.generate_tokens, measured.prompt_tokens_per_batch or 0.0)
    return [asdict(number) for number in DIALECTS[name](record)]


def lines(name: str, row: Mapping[str, Any], result: ResultRecord) -> Iterator[dict[str, Any]]:
    """The numbers of one result as lines with the columns of COLUMN_TYPES; none for a job without a measurement."""
    identity = {column: row[column] for column in COLUMN_TYPES if column in row}
    for number in dialect(name, result):
        yield identity | number


def _vllm(record: Record) -> list[Number]:
    series_of = record.measured.metrics
    duration = sum(series_of["e2e_s"])
    batches = len(series_of["e2e_s"])
    say = _speaker("vllm")
    return [
        say("request_throughput", batches * record.batch_size / duration, "req/s", "requests / duration"),
        say("output_throughput", batches * record.batch_size * record.generated / duration, "tok/s",
            "generated tokens / duration, summed over all requests"),
        say("total_token_throughput",
            batches * (record.batch_size * record.generated + record.prompt_per_batch) / duration, "tok/s",
            "prompt and generated tokens / duration"),
        *_spread(say, "ttft_ms", series_of["ttft_in_run_s"], "first token - request start"),
        *_spread(say, "tpot_ms", series_of["tpot_s"], "(request end - first token) / (output tokens - 1), per request"),
        *_spread(say, "itl_ms", record.measured.itl_s, "time between consecutive tokens, all of them pooled"),
        *_spread(say, "e2el_ms", series_of["e2e_s"], "request end - request start"),
    ]  # fmt: skip


def _aiperf(record: Record) -> list[Number]:
    series_of = record.measured.metrics
    duration = sum(series_of["e2e_s"])
    tokens = len(series_of["e2e_s"]) * record.batch_size * record.generated
    say = _speaker("aiperf")
    second = record.measured.second_token_s
    return [
        *_spread(say, "time_to_first_token", series_of["ttft_in_run_s"], "first token - request start", joined="_"),
        *_spread(say, "time_to_second_token", second, "second token - first token", joined="_"),
        *_spread(say, "inter_token_latency", series_of["tpot_s"],
                 "(request latency - time to first token) / (output tokens - 1), per request: vLLM's TPOT", joined="_"),
        *_spread(say, "request_latency", series_of["e2e_s"], "last token - request start", joined="_"),
        say("output_token_throughput_per_user", _mean([1 / value for value in series_of["tpot_s"]]), "tok/s/user",
            "1 / inter token latency, per request, mean"),
        say("output_token_throughput", tokens / duration, "tok/s", "generated tokens / benchmark duration"),
    ]  # fmt: skip


def _guidellm(record: Record) -> list[Number]:
    series_of = record.measured.metrics
    duration = sum(series_of["e2e_s"])
    tokens = len(series_of["e2e_s"]) * record.batch_size * record.generated
    per_token = [value / record.generated for value in series_of["e2e_s"]]
    say = _speaker("guidellm")
    return [
        *_spread(say, "time_to_first_token_ms", series_of["ttft_in_run_s"], "first token - request start"),
        *_spread(say, "time_per_output_token_ms", per_token,
                 "request latency / output tokens: includes the time to the first token"),
        *_spread(say, "inter_token_latency_ms", series_of["tpot_s"],
                 "(last token - first token) / (output tokens - 1), per request"),
        *_spread(say, "request_latency", series_of["e2e_s"], "request end - request start", factor=1.0, unit="s"),
        say("output_tokens_per_second", tokens / duration, "tok/s", "generated tokens / benchmark duration"),
    ]  # fmt: skip


def _llama_bench(record: Record) -> list[Number]:
    series_of = record.measured.metrics
    prompt = round(record.prompt_per_batch / record.batch_size)
    prefill = [record.prompt_per_batch / value for value in series_of["ttft_s"]] or series_of["prefill_tok_s"]
    decode = series_of["decode_tok_s"]
    say = _speaker("llama-bench")
    pp = f"pp{prompt}"
    tg = f"tg{record.generated - 1} @ d{prompt + 1}"
    pp_text = "prompt tokens / time to process them, all sequences; here up to and including the first generated token"
    tg_text = (
        "generated tokens / time, all sequences, prompt not counted; here from the first token on, behind the prompt "
        "(llama-bench generates from an empty context unless a depth is given)"
    )
    return [
        say(f"{pp} avg_ts", _mean(prefill), "tok/s", pp_text),
        say(f"{pp} stddev_ts", _std(prefill), "tok/s", "standard deviation (n - 1) over repetitions"),
        say(f"{tg} avg_ts", _mean(decode), "tok/s", tg_text),
        say(f"{tg} stddev_ts", _std(decode), "tok/s", "standard deviation (n - 1) over repetitions"),
    ]


def _mlperf(record: Record) -> list[Number]:
    series_of = record.measured.metrics
    duration = sum(series_of["e2e_s"])
    tokens = len(series_of["e2e_s"]) * record.batch_size * record.generated
    say = _speaker("mlperf")
    levels = {"mean": None, "p50": 50, "p90": 90, "p99": 99}
    numbers = [say("tokens_per_second", tokens / duration, "tok/s",
                   "generated tokens / run duration (Offline: one fixed batch at a time, no query arrivals)")]  # fmt: skip
    for name, values, text in (
        ("first_token_latency", series_of["ttft_in_run_s"], "TTFT: first token - query issued"),
        ("time_per_output_token", series_of["tpot_s"], "TPOT: (query end - first token) / (output tokens - 1)"),
    ):
        for suffix, level in levels.items():
            value = _mean(values) if level is None else _percentile(values, level)
            numbers.append(say(f"{name}_{suffix}", value, "s", f"{text}; {suffix}; not an MLPerf submission"))
    return numbers


DIALECTS: dict[str, Callable[[Record], list[Number]]] = {
    Dialect.VLLM: _vllm,
    Dialect.AIPERF: _aiperf,
    Dialect.GUIDELLM: _guidellm,
    Dialect.LLAMA_BENCH: _llama_bench,
    Dialect.MLPERF: _mlperf,
}


def _speaker(tool: str) -> Callable[[str, float | None, str, str], Number]:
    return lambda name, value, unit, definition: Number(tool, name, value, unit, definition)


def _spread(
    say: Callable[[str, float | None, str, str], Number],
    name: str,
    values_s: list[float],
    definition: str,
    *,
    joined: str = "",
    factor: float = MS,
    unit: str = "ms",
) -> list[Number]:
    """Mean, median, standard deviation and p99 of one metric: `mean_<name>`, or `<name>_avg` where `joined` is given."""
    values = [value * factor for value in values_s]
    spread = {
        "mean": _mean(values),
        "median": _percentile(values, 50),
        "std": _std(values),
        "p99": _percentile(values, 99),
    }
    names = {"mean": "avg", "median": "p50"} if joined else {}
    return [
        say(f"{name}{joined}{names.get(key, key)}" if joined else f"{key}_{name}", value, unit, f"{definition}; {key}")
        for key, value in spread.items()
    ]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _std(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _percentile(values: list[float], level: int) -> float | None:
    return float(np.percentile(values, level)) if values else None
