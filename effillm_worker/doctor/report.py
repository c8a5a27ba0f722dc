"""The findings as text for people; `--json` prints the same as one object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.units import format_bytes
from effillm_worker.doctor.sight import Check
from effillm_worker.doctor.steadiness import Advice

NOW = "measured now"
LOAD = ("other load", "steal")
SKIPPED = "not asked for (--quick)"


def device_document(device: DeviceDeclaration) -> dict[str, Any]:
    """One device as the lab will know it."""
    box, gpu = device.hardware.processor, device.hardware.gpu
    return {
        "id": device.id,
        "hardware_class": device.hardware_class,
        "memory_bytes": device.memory_bytes,
        "name": gpu.name if gpu else box.model,
        "processors": list(device.processors),
        "physical_cores": box.physical_cores,
        "logical_cores": box.logical_cores,
    }


def check_document(check: Check) -> dict[str, Any]:
    """One check: `can`, and either what was found or why not and what would change it."""
    fields = asdict(check)
    return {name: value for name, value in fields.items() if value != ""}


def lines(document: Mapping[str, Any], checks: Iterable[Check], advice: Iterable[Advice]) -> Iterator[str]:
    """The whole report."""
    yield "Devices"
    for device in document["devices"]:
        mark = "*" if device["id"] == document["device"] else " "
        yield f" {mark} {device['id']}  class {device['hardware_class']}  {format_bytes(device['memory_bytes'])}  {device['name']}"
    yield f"   * the one looked at below; its {'GPU' if document['is_gpu'] else 'processors'} and this box"
    yield ""
    yield "What can be watched"
    checks, advice = list(checks), list(advice)
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"   {check.name:{width}}  {check.text}"
    for title, name, show in (
        ("Ceiling", "ceiling", _ceiling), ("Noise floor", "noise_floor", _noise), ("Probe overhead", "probe_overhead", _overhead),
    ):  # fmt: skip
        yield ""
        yield title
        found = document[name]
        if "not_measured" in found:
            yield f"   not measured: {found['not_measured']}"
        else:
            yield from show(found)
        if name == "ceiling" and found.get("source") == NOW and any(each.topic in LOAD for each in advice):
            yield "   measured beside other load, so it may be too low and MBU and MFU too high: --measure takes it anew"
    yield ""
    yield "For steadier numbers"
    for each in advice:
        yield f"   {each.topic}: {each.found}; {each.change}"
    if not advice:
        yield "   nothing to change that can be seen from here"


def _ceiling(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"   copy      {found['copy_bytes_s'] / 1e9:10.1f} GB/s"
    for dtype, rate in found["matmul_flop_s"].items():
        yield f"   {dtype:9} {rate / 1e9:10.1f} Gflop/s"
    for dtype, why in found["not_measured_dtypes"].items():
        yield f"   {dtype:9} not measured: {why}"
    yield f"   {found['threads']} threads, {found['source']}"


def _noise(found: Mapping[str, Any]) -> Iterator[str]:
    low, high = found["noise_floor_ci95"]
    between_low, between_high = found["relative_sd_ci95"]
    processes = found["processes"]
    speeds = ", ".join(f"{process['throughput_tok_s']:.1f}" for process in processes)
    yield f"   {100 * found['noise_floor']:.2f} %: two runs of one cell differ by so much (standard deviation) for no reason"
    yield f"   95 % interval {100 * low:.2f} to {100 * high:.2f} %, from {len(processes)} fresh processes ({speeds} tok/s)"
    yield (
        f"   between processes {100 * found['relative_sd']:.2f} % ({100 * between_low:.2f} to {100 * between_high:.2f} %), "
        f"between the iterations of one {100 * found['within_relative_sd']:.2f} %"
    )
    disturbed = [process for process in processes if process["verdict"] == "invalid"]
    if disturbed:
        reason = disturbed[0]["reasons"][0]
        yield f"   {len(disturbed)} of them under conditions that make a result invalid ({reason}): this is the noise of a busy machine"
    else:
        yield f"   for comparisons of single runs on this box: --noise-floor {100 * found['noise_floor']:.1f}%"
    yield f"   {found['cell']}"


def _overhead(found: Mapping[str, Any]) -> Iterator[str]:
    low, high = found["overhead_ci95"]
    yield (
        f"   {found['verdict']}: {100 * found['overhead']:+.2f} % (95 % interval {100 * low:+.2f} to {100 * high:+.2f} %) "
        f"over a bare loop, {found['pairs']} pairs"
    )
    if found["verdict"] == "undecided":
        yield "   the interval's half-width is above 1 %: a quieter machine or --measure (up to ten minutes) narrows it"
    yield f"   {found['cell']}"
