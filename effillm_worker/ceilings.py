"""What a device can do at most, measured once for each fingerprint and kept in the data directory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.settings import Settings
from effillm_worker import fingerprint as box
from effillm_worker.environment import child_environment
from effillm_worker.isolate import lock_file
from effillm_worker.log import event
from effillm_worker.supervisor import take_lock

MODULE = "effillm_worker.meters.ceiling"
MEASURE_WITHIN_S = 300.0
# Counted up when a ceiling holds more than before, so that one kept by an older version is measured anew.
EDITION = 2
# What a ceiling depends on; our own version and Ray's do not move it.
LIBRARIES = ("torch", "numpy", "triton")


class NoCeiling(Exception):
    """The ceiling could not be measured; `reason` is the event's name for why, `fields` what it tells."""

    def __init__(self, reason: str, **fields: Any) -> None:
        super().__init__(", ".join(f"{name} {value}" for name, value in fields.items()))
        self.reason, self.fields = reason, fields


def ceiling(device: DeviceDeclaration, settings: Settings, fingerprint: Fingerprint) -> dict[str, Any] | None:
    """The kept ceiling, or one measured now under the device's lock. None for a declared device, or when it cannot be had."""
    if device.declared:
        return None
    known = kept(settings, fingerprint)
    if known is not None:
        return known
    try:
        measured = measure(device, settings, fingerprint)
    except NoCeiling as error:
        event(error.reason, device=device.id, **error.fields)
        return None
    event("ceiling.measured", device=device.id, ceiling=measured)
    return measured


def kept(settings: Settings, fingerprint: Fingerprint) -> dict[str, Any] | None:
    """The ceiling measured earlier for this hardware and these libraries; None when there is none."""
    try:
        known: dict[str, Any] = json.loads(_file(settings, fingerprint).read_text())
    except (OSError, ValueError):
        return None
    return known


def measure(
    device: DeviceDeclaration, settings: Settings, fingerprint: Fingerprint, within_s: float = MEASURE_WITHIN_S
) -> dict[str, Any]:
    """The ceiling measured now in a process of its own under the device's lock, and kept. Raises NoCeiling."""
    settings.lock_dir.mkdir(parents=True, exist_ok=True)
    lock = take_lock(lock_file(settings.lock_dir, device.id), f"device {device.id}, measuring its ceiling")
    if isinstance(lock, str):
        raise NoCeiling("ceiling.busy", holder=lock)
    threads = box.threads(device.processors)
    try:
        # The process inherits the lock: should this one die, the device stays taken until the other has ended.
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "--device", "cuda" if device.gpu_uuid else "cpu", "--threads", str(threads)],
            env=child_environment(threads, device.gpu_uuid, {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
            pass_fds=(lock,),
            check=True,
        )
        measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        tail = error.stderr.decode(errors="replace").splitlines()[-5:]
        raise NoCeiling("ceiling.failed", exit_code=error.returncode, log_tail=tail) from None
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise NoCeiling("ceiling.failed", why=str(error)) from None
    finally:
        os.close(lock)
    path = _file(settings, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured))
    return measured


def _file(settings: Settings, fingerprint: Fingerprint) -> Path:
    return settings.data_dir / "ceilings" / f"{_key(fingerprint)}.json"


def _key(fingerprint: Fingerprint) -> str:
    software = fingerprint.software
    parts = {
        "edition": EDITION,
        "hardware": fingerprint.hardware.model_dump(mode="json"),
        "python": software.python,
        "kernel": software.kernel,
        "libraries": {name: software.versions.get(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
