"""`effillm doctor`: what this machine can and cannot watch, its ceiling, its noise, what measuring costs, what to change."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.errors import BadInput
from effillm_server.settings import Settings
from effillm_worker import ceilings
from effillm_worker.doctor import noise, overhead, report, sight, steadiness
from effillm_worker.engines.base import Environment
from effillm_worker.fingerprint import detected
from effillm_worker.isolate import attest
from effillm_worker.measure.software import software

# The whole default run stays under two minutes; what does not come to its end says so.
DEFAULT_S, THOROUGH_S = 100.0, 600.0
NOISE_SHARE = 0.65  # of the time that is left behind the ceiling
MOST_PROCESSES, MOST_PROCESSES_THOROUGH = 6, 20


@dataclass(frozen=True)
class Visit:
    """One run: which device is measured, with which settings, how thoroughly, and where talk goes."""

    device: DeviceDeclaration
    settings: Settings
    thorough: bool
    until: float
    say: Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, measure unless told not to, report. Exit code 0 whatever is found; 2: it cannot be asked like this."""
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    try:
        settings = Settings.from_environment()
        devices = detected("this box", with_cpu=True)
        device = _chosen(devices, options.device)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # As Ctrl-C: every step then ends its processes on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    visit = Visit(device, settings, options.measure, begin + (THOROUGH_S if options.measure else DEFAULT_S), _say)
    _say("looking at what can be watched")
    checks = sight.look(device, settings)
    advice = steadiness.advice(device)
    found = _unmeasured(report.SKIPPED) if options.quick else measurements(visit)
    document = {
        "device": device.id,
        "is_gpu": device.gpu_uuid is not None,
        "devices": [report.device_document(each) for each in devices],
        "watch": [report.check_document(check) for check in checks],
        **found,
        "advice": [asdict(each) for each in advice],
        "took_s": round(time.monotonic() - begin, 1),
    }
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(report.lines(document, checks, advice)))
    return 0


def measurements(visit: Visit) -> dict[str, dict[str, Any]]:
    """Ceiling, noise floor and probe overhead; what could not be measured says why in its place."""
    reason = attest(visit.device, visit.settings.lock_dir)
    if reason is not None:
        return _unmeasured(f"{reason}; stop what uses the device (`effillm up`?) or wait, then ask again")
    found = {"ceiling": _ceiling(visit)}
    left = visit.until - time.monotonic()
    most = MOST_PROCESSES_THOROUGH if visit.thorough else MOST_PROCESSES
    share = visit.until - (1 - NOISE_SHARE) * left
    visit.say(f"noise floor: the same cell in fresh processes, at most {most}, {NOISE_SHARE * left:.0f} s")
    found["noise_floor"] = _or_why(
        lambda: noise.measure(visit.device, visit.settings, share, most, visit.say).document()
    )
    visit.say(f"probe overhead: pairs with a bare loop, at most {max(0.0, visit.until - time.monotonic()):.0f} s")
    found["probe_overhead"] = _or_why(
        lambda: overhead.measure(visit.device, visit.settings, visit.until, visit.say).document()
    )
    return found


def _ceiling(visit: Visit) -> dict[str, Any]:
    fingerprint = Fingerprint(hardware=visit.device.hardware, software=software(Environment()))
    source, known = "measured earlier for this hardware and software", ceilings.kept(visit.settings, fingerprint)
    if known is None or visit.thorough:
        visit.say("ceiling: copy bandwidth and matrix rate per dtype, about 10 s")
        try:
            left = visit.until - time.monotonic()
            known = ceilings.measure(visit.device, visit.settings, fingerprint, within_s=left / 2)
        except ceilings.NoCeiling as error:
            return {"not_measured": str(error)}
        source = report.NOW
    rates = {name: value for name, value in known.items() if name != "not_measured"}
    return rates | {"not_measured_dtypes": known.get("not_measured", {}), "source": source}


def _or_why(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except noise.NotMeasured as error:
        return {"not_measured": str(error)}


def _unmeasured(why: str) -> dict[str, dict[str, Any]]:
    return {name: {"not_measured": why} for name in ("ceiling", "noise_floor", "probe_overhead")}


def _chosen(devices: Sequence[DeviceDeclaration], wanted: str | None) -> DeviceDeclaration:
    """The device named by its id or its class; without a name the first one. Raises BadInput."""
    for device in devices:
        if wanted is None or wanted in (device.id, device.hardware_class):
            return device
    there = ", ".join(f"{device.id} ({device.hardware_class})" for device in devices)
    raise BadInput(f"--device {wanted!r} is not on this box; there are {there}", field="device")


def _say(message: str) -> None:
    print(f"doctor: {message}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="effillm doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="measure nothing: only look, a few seconds")
    how.add_argument(
        "--measure", action="store_true", help="measure thoroughly, the ceiling anew: up to ten minutes instead of two"
    )
    parser.add_argument("--device", metavar="ID", help="which device, by id or class (default: the first)")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
