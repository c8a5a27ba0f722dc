"""What the parent saw while a child worked: memory at its stages, conditions of its windows, energy; and the whole result."""

from __future__ import annotations

from dataclasses import dataclass, field

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.contract.outcome import CellMemory, ChildRecord, Conditions, Measured, MemoryReading
from effillm_server.contract.quantization import bits_of
from effillm_worker.messages import CellRecord, Opened, Stage
from effillm_worker.meters.account import Mapped, account
from effillm_worker.meters.conditions import Watch
from effillm_worker.meters.energy import EnergyMeter, find_counter
from effillm_worker.meters.gpu import GpuWatch
from effillm_worker.meters.memory import TreeMeter, median
from effillm_worker.meters.nvml import GpuProbe, NvmlError, NvmlGpu
from effillm_worker.meters.verdict import judge

SIMULATED = "simulated: times and memory are declared, there is nothing to watch"


@dataclass(frozen=True)
class Instruments:
    """What can be read of one device: its GPU through NVML, or why not."""

    device: DeviceDeclaration
    gpu: GpuProbe | None = None
    no_gpu: str = ""

    @classmethod
    def of(cls, device: DeviceDeclaration) -> Instruments:
        """The instruments for `device`; a declared device has none."""
        if device.gpu_uuid is None or device.declared:
            return cls(device)
        try:
            return cls(device, NvmlGpu(device.gpu_uuid))
        except NvmlError as error:
            return cls(device, None, f"NVML: {error}")

    @property
    def kind(self) -> str:
        """Which limits its conditions are held against."""
        return "cpu" if self.device.gpu_uuid is None else "gpu"

    def watch(self, pid: int, energy: EnergyMeter) -> Watch:
        """Conditions around the process tree below `pid`."""
        gpu = None if self.kind == "cpu" else GpuWatch(self.gpu, self.no_gpu)
        return Watch(pid, self.device.processors, energy, gpu)

    def energy(self) -> EnergyMeter:
        """A meter for one cell."""
        missing = self.no_gpu if self.kind == "gpu" and self.gpu is None else ""
        return EnergyMeter(missing or find_counter(self.gpu))


@dataclass
class Witness:
    """One child seen from outside. `stages` holds the latest reading of each stage, `steady` all of the present cell.

    `network` says which one the child has: `none`, or `host` and why where none was wanted.
    """

    instruments: Instruments
    pid: int
    network: str = "host"
    stages: dict[str, MemoryReading] = field(default_factory=dict)
    steady: list[MemoryReading] = field(default_factory=list)
    mapped: dict[str, int | None] = field(default_factory=dict)
    peak_resets: bool = True

    def __post_init__(self) -> None:
        self.meter = TreeMeter(self.pid, self.instruments.gpu)
        self.begin_cell()

    def begin_cell(self) -> None:
        """Forget the last cell; the child's own stages stay."""
        self.end_window()
        self.steady.clear()
        for name in ("prefill_end", "decode_end"):
            self.stages.pop(name, None)
            self.mapped.pop(name, None)
        self.energy = self.instruments.energy()
        self.watch = self.instruments.watch(self.pid, self.energy)

    def stage(self, stage: Stage) -> None:
        """Read memory while the child stands still."""
        name = stage.stage
        if name.endswith("_begin"):
            self.peak_resets = self.meter.reset_peak() and self.peak_resets
            return
        reading = self.meter.read(stage.allocator, peak=name.endswith("_end"))
        if name == "steady":
            self.steady.append(reading)
        else:
            self.stages[name] = reading
            self.mapped[name] = self.meter.file_backed_bytes()
        if name == "baseline":
            self.meter.reset_peak()  # so that the reading `loaded` carries the peak of loading

    def window(self, *, is_open: bool) -> None:
        """The timed part begins or ends."""
        if is_open:
            self.watch.open()
        else:
            self.watch.close()

    def end_window(self) -> None:
        """No thread of ours outlives a cell, however it ended."""
        if hasattr(self, "watch"):
            self.watch.close()

    def measured(self, record: CellRecord, opened: Opened, child: ChildRecord, quantization: str) -> Measured:
        """The complete result of a cell of this quantization that the child has measured."""
        conditions = Conditions(not_watched={"all": SIMULATED}) if opened.simulated else self.watch.conditions()
        verdict, reasons = judge(conditions, self.instruments.kind, record.warnings)
        energy_j, energy_source = self._energy(record, simulated=opened.simulated)
        return Measured(
            samples=record.samples,
            stop_reason=record.stop_reason,
            memory=self._memory(record, opened, child, _bits(opened, quantization)),
            energy_j=energy_j,
            energy_source=energy_source,
            conditions=conditions,
            verdict=verdict,
            reasons=reasons,
            fingerprint=Fingerprint(hardware=self.instruments.device.hardware, software=opened.software),
            child=child,
            simulated=opened.simulated,
            prompts=record.prompts,
            details=record.details | {"network": self.network},
        )

    def _energy(self, record: CellRecord, *, simulated: bool) -> tuple[float | None, str]:
        if simulated:
            return record.energy_j, record.energy_source if record.energy_j is not None else SIMULATED
        joules, source = self.energy.result
        return (
            (record.energy_j, record.energy_source)
            if joules is None and record.energy_j is not None
            else (joules, source)
        )

    def _memory(self, record: CellRecord, opened: Opened, child: ChildRecord, bits: float | None) -> CellMemory:
        """Readings from outside; those a simulated engine declares come first."""
        said = record.memory
        seen = CellMemory(
            peak_prefill=self._peak("prefill_end"), peak_decode=self._peak("decode_end"), steady=median(self.steady)
        )
        first, second = (said, seen) if opened.simulated else (seen, said)
        chosen = CellMemory(
            peak_prefill=first.peak_prefill or second.peak_prefill,
            peak_decode=first.peak_decode or second.peak_decode,
            steady=first.steady or second.steady,
        )
        lines = account(opened.model, said.account, child.baseline, child.loaded, chosen.peak, self._mapped(), bits)
        return chosen.model_copy(update={"account": lines})

    def _mapped(self) -> Mapped:
        ends = [self.mapped.get(name) for name in ("prefill_end", "decode_end")]
        baseline, loaded = self.mapped.get("baseline"), self.mapped.get("loaded")
        peak = max((end for end in ends if end is not None), default=None)
        return Mapped(
            loading=None if baseline is None or loaded is None else loaded - baseline,
            since_loaded=None if loaded is None or peak is None else peak - loaded,
        )

    def _peak(self, name: str) -> MemoryReading | None:
        reading = self.stages.get(name)
        if reading is None or self.peak_resets:
            return reading
        note = f"{reading.ram_source}; the kernel did not allow resetting the mark: peak since the child began"
        return reading.model_copy(update={"ram_source": note})


def _bits(opened: Opened, quantization: str) -> float | None:
    """Bits of one weight in theory: a published checkpoint's own, else those of the label."""
    own: float | None = (opened.model.details.get("quantization") or {}).get("theoretical_bits")
    return bits_of(quantization) if own is None else own
