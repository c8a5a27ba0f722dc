"""The paper's scaling laws: which quantity against which axis, by which curve, and what the paper found."""

from __future__ import annotations

from dataclasses import dataclass, field

from effillm_server.analysis.forms import ABSOLUTE, Form, OffsetPower, Power, Straight

Range = tuple[float, float]


@dataclass(frozen=True)
class Law:
    """A law of the paper. `x` is an axis, or `parameters`; `free` are the axes that vary within one fit."""

    name: str
    title: str
    formula: str
    x: str
    x_unit: str
    y: str
    y_unit: str
    form: Form
    free: tuple[str, ...]
    paper: dict[str, Range] = field(default_factory=dict)


SIZE_AXES = ("model", "weights")
BILLION = 1e9

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("throughput-vs-size", "Throughput against model size", "T = γ · size^(−δ)", "parameters", "billion parameters",
            "throughput_tok_s", "tok/s", Power(("gamma", "delta")), SIZE_AXES, {"delta": (0.4, 0.6)}),
        Law("throughput-vs-batch", "Throughput against batch size", "T = α · b^β", "batch_size", "sequences",
            "throughput_tok_s", "tok/s", Power(("alpha", "beta")), ("batch_size",), {"beta": (0.0, 1.0)}),
        Law("throughput-vs-sequence", "Throughput against sequence length", "T = λ · s^(−μ)", "sequence_length", "tokens",
            "throughput_tok_s", "tok/s", Power(("lambda", "mu")), ("sequence_length",), {"mu": (0.2, 0.5)}),
        Law("ttft-vs-size", "Time to first token against model size", "TTFT = α + β · size", "parameters",
            "billion parameters", "ttft_s", "s", Straight(("alpha", "beta")), SIZE_AXES),
        Law("ttft-vs-batch", "Time to first token against batch size", "TTFT(b) = TTFT(1) · b^φ", "batch_size", "sequences",
            "ttft_s", "s", Power(("ttft_1", "phi")), ("batch_size",), {"phi": (0.2, 0.5)}),
        Law("ttft-vs-sequence", "Time to first token against sequence length", "TTFT = κ + ν · s^ω", "sequence_length",
            "tokens", "ttft_s", "s", OffsetPower(("kappa", "nu", "omega")), ("sequence_length",), {"omega": (0.5, 1.0)}),
        Law("memory-vs-size", "Memory against model size", "memory = overhead + c · parameters", "parameters",
            "billion parameters", "memory_gb", "GB", Straight(("overhead", "c"), ABSOLUTE), SIZE_AXES),
    )
}  # fmt: skip
# Exponents the paper writes with a minus: T falls as size^(-delta).
NEGATED = frozenset({"delta", "mu"})
PAPER_BYTES_PER_PARAMETER = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5, "gptq": 0.5}
