"""A verdict is limits held against values: each code at, below and above its limit."""

from __future__ import annotations

from typing import Any

import pytest

from effillm_server.contract.outcome import Conditions, Verdict
from effillm_worker.meters.verdict import judge

QUIET: dict[str, Any] = {
    "processors": 2, "others_cpus": 0.02, "resolution_cpus": 0.01, "steal_share": 0.0, "machine_swap_bytes": 0,
    "tree_swap_bytes": 0, "gpu_throttle": [], "gpu_processes": 1, "gpu_foreign_processes": 0,
}  # fmt: skip


def verdict(kind: str = "cpu", **watched: Any) -> tuple[Verdict, tuple[str, ...]]:
    return judge(Conditions(watched=QUIET | watched), kind)


def test_a_quiet_machine_is_valid_without_reasons() -> None:
    assert verdict() == (Verdict.VALID, ())
    assert verdict("gpu") == (Verdict.VALID, ())


@pytest.mark.parametrize(
    ("kind", "watched", "expected", "code"),
    [
        ("cpu", {"others_cpus": 0.10}, Verdict.VALID, None),
        ("cpu", {"others_cpus": 0.13}, Verdict.SUSPECT, "other_processes"),
        ("cpu", {"others_cpus": 0.35}, Verdict.INVALID, "other_processes"),
        ("cpu", {"others_cpus": 0.35, "resolution_cpus": 0.3}, Verdict.VALID, None),
        ("cpu", {"others_cpus": 0.9, "processors": 64}, Verdict.SUSPECT, "other_processes"),
        ("cpu", {"others_cpus": 1.6, "processors": 64}, Verdict.INVALID, "other_processes"),
        ("gpu", {"others_cpus": 0.9}, Verdict.VALID, None),
        ("gpu", {"others_cpus": 1.9}, Verdict.INVALID, "other_processes"),
        ("cpu", {"steal_share": 0.02}, Verdict.SUSPECT, "steal"),
        ("cpu", {"steal_share": 0.06}, Verdict.INVALID, "steal"),
        ("cpu", {"machine_swap_bytes": 2 * 2**20}, Verdict.SUSPECT, "swapping"),
        ("cpu", {"machine_swap_bytes": 2**30}, Verdict.INVALID, "swapping"),
        ("cpu", {"tree_swap_bytes": 4096}, Verdict.INVALID, "swapped_out"),
        ("cpu", {"clock_drop": 0.09}, Verdict.VALID, None),
        ("cpu", {"clock_drop": 0.2}, Verdict.SUSPECT, "processor_clock"),
        ("cpu", {"clock_drop": 0.5}, Verdict.INVALID, "processor_clock"),
        ("cpu", {"processor_throttle_events": 1}, Verdict.INVALID, "processor_throttled"),
        ("gpu", {"gpu_throttle": ["sw_power_cap"]}, Verdict.SUSPECT, "gpu_throttled"),
        ("gpu", {"gpu_throttle": ["hw_thermal"]}, Verdict.INVALID, "gpu_throttled"),
        ("gpu", {"gpu_foreign_processes": 1}, Verdict.INVALID, "gpu_shared"),
    ],
)
def test_each_condition_has_its_limits(kind: str, watched: dict[str, Any], expected: Verdict, code: str | None) -> None:
    found, reasons = verdict(kind, **watched)
    assert found is expected
    assert [reason.partition(":")[0] for reason in reasons] == ([code] if code else [])


def test_reasons_carry_value_limit_and_names() -> None:
    _, reasons = verdict(others_cpus=1.01, top_others=[{"pid": 5, "name": "python", "cpus": 0.98}])
    assert reasons == ("other_processes: they used 1.00 of 2 processors, limit 0.30 (python 0.98)",)
    assert verdict(steal_share=0.06)[1] == ("steal: 6.0 %, limit 5.0 %",)


def test_the_worst_finding_decides_and_all_are_told() -> None:
    found, reasons = verdict(others_cpus=0.13, steal_share=0.06)
    assert found is Verdict.INVALID and len(reasons) == 2


def test_the_childs_warnings_make_a_result_suspect() -> None:
    assert judge(Conditions(watched=QUIET), "cpu", ["unstable_warmup"]) == (Verdict.SUSPECT, ("unstable_warmup",))


def test_what_must_be_watched_and_was_not_makes_a_result_suspect() -> None:
    blind = Conditions(not_watched={"others_cpus": "no /proc", "processor_clock": "virtual"})
    assert judge(blind, "cpu") == (Verdict.SUSPECT, ("not_watched: others_cpus: no /proc",))
    no_driver = Conditions(watched=QUIET, not_watched={"gpu_throttle": "NVML: none"})
    assert judge(no_driver, "gpu")[0] is Verdict.SUSPECT
