"""What a measuring child may know of its surroundings, and what may be said of it afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "container",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE", "CUDA_HOME", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
REFUSED = re.compile(r"(^PG)|(^RAY)|(^EFFILLM_(DATABASE_URL|ADMIN_KEY|API_KEY))|DATABASE_URL|PASSWORD", re.IGNORECASE)
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY$|^KEY$|PROXY$", re.IGNORECASE)
SECRET_TEXT = re.compile(r"\beff_[0-9A-Za-z]{43}\b|hf_[A-Za-z0-9]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SOURCE_TREE = Path(__file__).resolve().parents[1]


def child_environment(
    threads: int, gpu_uuid: str | None, extra: Mapping[str, str], own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The child's whole environment: an allow-list of ours, its threads and device, and what the caller adds on purpose.

    Raises ValueError when `extra` holds what a child must never see.
    """
    refused = sorted(name for name in extra if REFUSED.search(name))
    if refused:
        raise ValueError(f"a measuring child gets no {', '.join(refused)}: it talks to pipes and nothing else")
    source = os.environ if own is None else own
    kept = {name: source[name] for name in PASSED_ON if name in source}
    return kept | {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": gpu_uuid or "",  # empty hides every GPU from a processor's child
        "TOKENIZERS_PARALLELISM": "false",
        # Otherwise transformers asks a service of the hub to convert what it finds pickled, beside the measurement.
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "PYTHONPATH": str(SOURCE_TREE),  # a foreign runtime has our source tree and nothing else of ours
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        **extra,
    }


def redact(lines: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """These lines without the values of secret variables and without what looks like a credential."""
    secrets = sorted(
        (value for name, value in environment.items() if len(value) >= 6 and SECRET_NAME.search(name)),
        key=len,
        reverse=True,
    )
    return tuple(SECRET_TEXT.sub("***", _without(line, secrets)) for line in lines)


def _without(line: str, secrets: list[str]) -> str:
    for secret in secrets:
        line = line.replace(secret, "***")
    return line
