"""Whether a result can be trusted: conditions held against stated limits. Codes and the values behind them, no score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from effillm_server.contract.outcome import Conditions, Verdict
from effillm_server.contract.units import format_bytes

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Above `suspect` a value raises a doubt, above `invalid` the result does not count."""

    suspect: float
    invalid: float

    def judge(self, value: float) -> Verdict:
        """Where `value` stands."""
        if value > self.invalid:
            return Verdict.INVALID
        return Verdict.SUSPECT if value > self.suspect else Verdict.VALID


# Others may use this share of the device's processors, but never more than so many whole processors: on a large box a
# single spinning process already delays every barrier of the measured threads. A GPU's child needs few processors.
OTHERS_SHARE = {"cpu": Limits(0.05, 0.15), "gpu": Limits(0.50, 0.90)}
OTHERS_CPUS = {"cpu": Limits(0.5, 1.5), "gpu": Limits(float("inf"), float("inf"))}
STEAL_SHARE = Limits(0.01, 0.05)
MACHINE_SWAP_BYTES = Limits(MIB, 64 * MIB)
TREE_SWAP_BYTES = Limits(0, 0)  # weights that were swapped out are read from disk inside the timed part
CLOCK_DROP = Limits(0.10, 0.30)  # (max - min) / max of the mean processor clock inside the window
GPU_INVALID = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"})
GPU_SUSPECT = frozenset({"sw_power_cap", "sync_boost"})
MUST_WATCH = {"cpu": ("others_cpus",), "gpu": ("others_cpus", "gpu_processes", "gpu_throttle")}

Finding = tuple[Verdict, str]


def judge(conditions: Conditions, kind: str, warnings: Sequence[str] = ()) -> tuple[Verdict, tuple[str, ...]]:
    """Verdict on a measurement on a device of `kind` ("cpu" or "gpu") and its reasons, `code: value and limit` each.

    `warnings` are the child's own codes; each makes the result suspect. What must be watched and was not does, too.
    """
    watched = conditions.watched
    findings: list[Finding] = [
        *_others(watched, kind),
        *_host(watched),
        *_gpu(watched),
        *((Verdict.SUSPECT, warning) for warning in warnings),
        *(
            (Verdict.SUSPECT, f"not_watched: {name}: {conditions.not_watched[name]}")
            for name in MUST_WATCH[kind]
            if name in conditions.not_watched
        ),
    ]
    return _worst(verdict for verdict, _ in findings), tuple(reason for _, reason in findings)


def _others(watched: dict[str, Any], kind: str) -> Iterator[Finding]:
    if "others_cpus" not in watched:
        return
    # The kernel's clock ticks make a short window uncertain by so much: only what is beyond doubt counts.
    used = max(0.0, watched["others_cpus"] - watched["resolution_cpus"])
    processors = watched["processors"]
    share, most = OTHERS_SHARE[kind], OTHERS_CPUS[kind]
    limits = Limits(min(share.suspect * processors, most.suspect), min(share.invalid * processors, most.invalid))
    verdict = limits.judge(used)
    if verdict is not Verdict.VALID:
        names = ", ".join(f"{other['name']} {other['cpus']:.2f}" for other in watched.get("top_others", []))
        yield (
            verdict,
            (
                f"other_processes: they used {used:.2f} of {processors} processors, limit {_limit(limits, verdict):.2f}"
                + (f" ({names})" if names else "")
            ),
        )


def _host(watched: dict[str, Any]) -> Iterator[Finding]:
    for name, code, limits, show in (
        ("steal_share", "steal", STEAL_SHARE, _percent),
        ("machine_swap_bytes", "swapping", MACHINE_SWAP_BYTES, format_bytes),
        ("tree_swap_bytes", "swapped_out", TREE_SWAP_BYTES, format_bytes),
        ("clock_drop", "processor_clock", CLOCK_DROP, _percent),
    ):
        verdict = limits.judge(watched.get(name, 0))
        if verdict is not Verdict.VALID:
            yield verdict, f"{code}: {show(watched[name])}, limit {show(_limit(limits, verdict))}"
    if watched.get("processor_throttle_events", 0) > 0:
        yield Verdict.INVALID, f"processor_throttled: {watched['processor_throttle_events']} times, limit 0"


def _gpu(watched: dict[str, Any]) -> Iterator[Finding]:
    for reason in watched.get("gpu_throttle", []):
        if reason in GPU_INVALID:
            yield Verdict.INVALID, f"gpu_throttled: {reason}"
        elif reason in GPU_SUSPECT:
            yield Verdict.SUSPECT, f"gpu_throttled: {reason}"
    foreign = watched.get("gpu_foreign_processes", 0)
    if foreign:
        yield Verdict.INVALID, f"gpu_shared: {foreign} other process{'es' if foreign > 1 else ''} on the GPU, limit 0"


def _limit(limits: Limits, verdict: Verdict) -> float:
    return limits.invalid if verdict is Verdict.INVALID else limits.suspect


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    order = (Verdict.VALID, Verdict.SUSPECT, Verdict.INVALID)
    return max(verdicts, key=order.index, default=Verdict.VALID)
