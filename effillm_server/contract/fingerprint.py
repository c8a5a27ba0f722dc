"""What a measurement ran on: static hardware and software, and the digest that names it."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from effillm_server.contract.base import Contract


class Processor(Contract):
    model: str
    architecture: str
    sockets: int
    physical_cores: int
    logical_cores: int
    numa_nodes: int
    caches_bytes: dict[str, int] = Field(default_factory=dict)
    max_mhz: float | None = None
    features: tuple[str, ...] = ()


class Gpu(Contract):
    name: str
    uuid: str
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None
    power_limit_w: float | None = None
    max_clocks_mhz: dict[str, int] = Field(default_factory=dict)
    pcie_generation: int | None = None
    pcie_width: int | None = None
    ecc: bool | None = None
    mig: bool | None = None
    compute_capability: str | None = None


class Hardware(Contract):
    """One device and the box around it. `declared` means claimed for a test cluster, not detected."""

    hardware_class: str
    declared: bool = False
    processor: Processor
    memory_bytes: int
    gpu: Gpu | None = None


class Software(Contract):
    """The environment a child measures in. `versions` maps distribution name to version, None when absent."""

    python: str
    kernel: str
    container: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    blas: str | None = None
    threads: dict[str, int | str | None] = Field(default_factory=dict)
    code_version: str


class Fingerprint(Contract):
    """Hardware and software of a measurement; equal digests mean comparable conditions."""

    hardware: Hardware
    software: Software

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this fingerprint, first 16 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class DeviceDeclaration(Contract):
    """One device that a node offers. `id` is stable across restarts and unique in the lab."""

    id: str
    hardware_class: str
    node: str
    memory_bytes: int
    declared: bool = False
    gpu_uuid: str | None = None
    processors: tuple[int, ...] = ()
    hardware: Hardware

    @property
    def resource(self) -> str:
        """Name of the Ray custom resource that stands for this device."""
        return f"effillm_device:{self.hardware_class}:{self.id}"
