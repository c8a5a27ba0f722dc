"""GPTQ: a published checkpoint, or one made here once with calibration text, run by GPTQModel or, in its runtime, auto-gptq."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.quantization import Value
from effillm_worker import aside
from effillm_worker.engines.base import OutOfMemory, Unsupported
from effillm_worker.engines.checkpoint import folder_of
from effillm_worker.quality.text import Text, calibration, encode
from effillm_worker.quantization import base, gptq_kernels
from effillm_worker.quantization.gptq_make import ABOUT, CANNOT
from effillm_worker.weights import Source, written_once

FORMAT = 1
LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
DEFAULTS = {"bits": 4, "group_size": 128, "act_order": False}
# Enough for a Hessian of full rank in the middle of the paper's models; the text may give less.
SEQUENCES, LENGTH = 128, 256
MIN_TOKENS = 1024
# Weights that mean nothing need no more text than it takes to go the way of others.
SYNTHETIC_SEQUENCES = 8
WEIGHTS_FILE = "model.safetensors"
SETTINGS_FILES = ("quantize_config.json", "quant_config.json")
# Import name and package name of the libraries that run GPTQ, in the order of preference.
LIBRARIES = {"gptqmodel": "GPTQModel", "auto_gptq": "auto-gptq"}


class GptqFailed(Exception):
    """The process that quantizes ended without a checkpoint and without a reason a cell could be refused with."""


class Gptq(base.Method):
    """Linear layers of the blocks as packed codes with scales and zero points per group of a row.

    Plain `gptq` takes a published checkpoint as it is and makes 4 bits in groups of 128 of any other; with options it makes,
    or demands, exactly those.
    """

    def __init__(self, name: str, options: Mapping[str, Value]) -> None:
        super().__init__(name, options)
        self._published: dict[str, Any] | None = None
        self._about: dict[str, Any] = {}

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        return None

    def check(self, device: str, dtype: str) -> None:
        # One of the kernels is compiled at its first product; a pool of compilers would stay beside the measurement.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        self._library = library()
        if self._library == "gptqmodel":
            base.require(("optimum", "accelerate"), f"{self.name} by GPTQModel", extra="gptq")

    def accept(self, config: Any, source: Source) -> None:
        settings = published(config, source)
        if settings is None:
            return
        if str(settings.get("quant_method", "gptq")).lower() != "gptq":
            raise Unsupported(
                f"the checkpoint is stored quantized by {settings['quant_method']}, not by GPTQ: name its own method"
            )
        wanted = {key: self.choices[key] for key in DEFAULTS if key in self.choices}
        found = {
            "bits": settings.get("bits"),
            "group_size": settings.get("group_size"),
            "act_order": _act_order(settings),
        }
        differing = [key for key, value in wanted.items() if found[key] != value]
        if differing:
            raise Unsupported(
                f"the published checkpoint has {', '.join(f'{key} {found[key]}' for key in differing)} where {self.name} asks for "
                f"{', '.join(f'{key} {wanted[key]}' for key in differing)}: plain gptq takes it as it is"
            )
        self._published = settings
        # What transformers reads; older checkpoints have it in a file of its own.
        config.quantization_config = {**settings, "quant_method": "gptq"} | gptq_kernels.loading(self._kernel)

    def start(self, device: str, dtype: str) -> None:
        logging.getLogger("auto_gptq").setLevel(logging.ERROR)
        settings = self._published
        if settings is None:
            raise Unsupported(f"{self.name}: there is no checkpoint to choose a kernel for")
        gptq_kernels.choose(self._library, settings, self._kernel, device)

    def prepare(self, context: base.Conversion) -> Source:
        if self._published is not None:
            self._read_about(folder_of(context.source))
            return context.source if self._library == "auto_gptq" else _findable(context)
        text, sequences = self._calibration(context)
        chosen = DEFAULTS | {key: self.choices[key] for key in DEFAULTS if key in self.choices}
        package = LIBRARIES[self._library]
        parts = [FORMAT, context.identity, context.device, chosen, text.digest, sequences, package, version(package)]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
        folder = context.cache_dir / "gptq" / f"{context.identity[:60]}-{digest}"
        with written_once(folder) as part:
            if part is not None:
                said = {
                    "text": text.name,
                    "digest": text.digest,
                    "sequences": len(sequences),
                    "tokens": sum(map(len, sequences)),
                }
                _make(context, self._library, chosen, sequences, part, said)
        self._read_about(folder)
        made = Source(str(folder), LOCAL, synthetic=context.source.synthetic)
        return made if self._library == "auto_gptq" else _findable(replace(context, source=made))

    def load(self, auto: Any, location: str, arguments: dict[str, Any]) -> Any:
        with gptq_kernels.reasons(self.name):
            if self._library == "gptqmodel":
                model = super().load(auto, location, arguments)
            else:
                model = gptq_kernels.by_autogptq(location, arguments)
            # Some kernels pack the weights anew at their first product: what is counted is what stays.
            gptq_kernels.run_once(model)
        return model

    def evidence(self, model: Any) -> dict[str, Any]:
        package = LIBRARIES[self._library]
        settings = self._published or {}
        facts: dict[str, Any] = {"library": f"{package} {version(package)}"}
        facts |= {key: settings[key] for key in ("bits", "group_size", "desc_act", "sym") if key in settings}
        facts["made"] = "here" if self._about else "published"
        if self._about:
            facts["calibration"] = self._about.get("calibration")
        return {
            "seconds": self._about.get("seconds"),
            "theoretical_bits": float(settings["bits"]) if "bits" in settings else self.theoretical_bits,
            "facts": facts,
        }

    def packed(self, module: Any) -> base.Packed | None:
        return gptq_kernels.packed(module)

    @property
    def _kernel(self) -> str:
        return str(self.choices.get("kernel", "auto"))

    def _calibration(self, context: base.Conversion) -> tuple[Text, list[list[int]]]:
        named = self.choices.get("text")
        text = calibration(None if named is None else str(named), context.model_root)
        length = min(LENGTH, context.longest or LENGTH)
        most = (SYNTHETIC_SEQUENCES if context.source.synthetic else SEQUENCES) * length
        ids = encode(context.encode, text, most)
        if len(ids) < MIN_TOKENS:
            raise Unsupported(
                f"the calibration text {text.name!r} has {len(ids):,} tokens, gptq needs at least {MIN_TOKENS:,}: use a longer text"
            )
        return text, [ids[begin : begin + length] for begin in range(0, len(ids) - length + 1, length)]

    def _read_about(self, folder: Path | None) -> None:
        path = None if folder is None else folder / ABOUT
        self._about = json.loads(path.read_text()) if path is not None and path.is_file() else {}


def library() -> str:
    """The GPTQ library of this runtime. Raises Unsupported where there is none."""
    for name, package in LIBRARIES.items():
        if find_spec(name) is not None:
            try:
                version(package)
            except PackageNotFoundError:
                continue
            return name
    raise Unsupported(
        f"gptq needs GPTQModel or auto-gptq, and this runtime has neither: install {base.remedy(('gptqmodel', 'optimum'), 'gptq')}, "
        "or make a runtime with `effillm runtime create autogptq`"
    )


def published(config: Any, source: Source) -> dict[str, Any] | None:
    """How a checkpoint says it is quantized: in its config, or in a file beside it; None when it says nothing."""
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        return dict(settings if isinstance(settings, dict) else settings.to_dict())
    folder = folder_of(source)
    for name in SETTINGS_FILES if folder is not None else ():
        path = Path(str(folder)) / name
        if path.is_file():
            read: dict[str, Any] = json.loads(path.read_text())
            return read
    return None


def _findable(context: base.Conversion) -> Source:
    """The source under the file name transformers looks for: auto-gptq calls its one file by bits and group size."""
    folder = Path(context.source.location)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if len(files) != 1 or files[0].name == WEIGHTS_FILE:
        return context.source
    linked = context.cache_dir / "gptq" / f"named-{hashlib.sha256(str(files[0]).encode()).hexdigest()[:24]}"
    with written_once(linked) as part:
        if part is not None:
            for path in folder.iterdir():
                (part / (WEIGHTS_FILE if path == files[0] else path.name)).symlink_to(path.resolve())
    return Source(str(linked), context.source.options | LOCAL, synthetic=context.source.synthetic)


def _act_order(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("desc_act", settings.get("act_order", False)))


def _make(
    context: base.Conversion, library: str, options: Mapping[str, Any], sequences: list[list[int]], out: Path, said: Mapping[str, Any]
) -> None:  # fmt: skip
    """Quantize in a process of its own: this one's memory is about to be measured. Raises Unsupported, OutOfMemory, GptqFailed."""
    job = {
        "location": context.source.location, "revision": context.source.options.get("revision"), "library": library,
        "options": dict(options), "sequences": sequences, "device": context.device, "out": str(out), "calibration": dict(said),
        "threads": context.threads,
    }  # fmt: skip
    # GPTQModel takes half of the processors for its workers, and on two processors waits for itself with one.
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": str(max(2, context.threads))}
    command = [sys.executable, "-m", "effillm_worker.quantization.gptq_make"]
    done = aside.run(command, json.dumps(job), context.tick, environment=environment)
    if done.returncode == -signal.SIGKILL:
        # Nobody else kills it: the kernel does, and counts that only where this box's control groups can be read.
        raise OutOfMemory(
            InfeasibleReason.OUT_OF_HOST_MEMORY,
            f"quantizing by {LIBRARIES[library]} was ended by SIGKILL, as the kernel does when memory runs out: take a box with more, "
            "or a published GPTQ checkpoint",
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        if done.returncode == CANNOT:
            raise Unsupported(f"{LIBRARIES[library]} cannot quantize this model: {last}")
        raise GptqFailed(f"quantizing by {LIBRARIES[library]} failed with exit code {done.returncode}: {last}")
