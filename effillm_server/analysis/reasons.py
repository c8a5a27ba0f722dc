"""Why one precision is slower or faster than another on this device, as far as what was measured says so."""

from __future__ import annotations

from effillm_server.analysis.cells import Cell
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.ratios import Ratio, cell_ratio

# Shares of what the device can do, and of the time that turning codes back into numbers takes.
SHARES = (
    "mbu_decode", "mfu_prefill", "mfu_decode", "dequantization_share_prefill", "dequantization_share_decode",
)  # fmt: skip
NOTABLE = 0.05  # a smaller share of the time explains nothing that noise would not


def shares(cell: Cell) -> dict[str, float | None]:
    """Each of SHARES, None where it was not measured."""
    found = {name: cell.estimate(name) for name in SHARES}
    return {name: None if estimate is None else estimate.value for name, estimate in found.items()}


def reason(cell: Cell, base: Cell, facts: Facts) -> str | None:
    """A sentence on why `cell` is surely slower or faster than `base`; None within noise and where nothing measured tells."""
    speed = cell_ratio(cell, base, "throughput_tok_s", facts)
    if speed is None or speed.low <= 1 <= speed.high:
        return None
    parts = _slower(cell, base, facts) if speed.high < 1 else _faster(cell, base)
    name, than = cell.axes["quantization"], base.axes["quantization"]
    word = "slower" if speed.high < 1 else "faster"
    return f"{name} is {word} than {than} here: {'; '.join(parts)}" if parts else None


def _slower(cell: Cell, base: Cell, facts: Facts) -> list[str]:
    found = [_dequantization(cell, base, facts), _bandwidth(cell, base), _prefill(cell, base, facts)]
    return [part for part in found if part is not None]


def _faster(cell: Cell, base: Cell) -> list[str]:
    own, theirs, size = shares(cell)["mbu_decode"], shares(base)["mbu_decode"], _size(cell, base)
    if own is None or theirs is None or size is None or size >= 1:
        return []
    return [
        f"a decoding step reads weights of {_said(size)} the size, at {_said(own)} of the memory bandwidth instead of {_said(theirs)}"
    ]


def _dequantization(cell: Cell, base: Cell, facts: Facts) -> str | None:
    """What turning codes back takes, and whether that is all of the difference.

    The profile is of batch size 1: for larger batches the share is of another whole, so nothing is reckoned with it.
    """
    share = shares(cell)["dequantization_share_decode"]
    if share is None or share < NOTABLE:
        return None
    text = f"{_said(share)} of its decoding time turns codes back into numbers (profiled at batch size 1)"
    longer = cell_ratio(cell, base, "tpot_s", facts)
    if cell.axes["batch_size"] != 1 or longer is None or longer.value <= 1:
        return text
    part = share * longer.value / (longer.value - 1)
    return f"{text}, which is {'enough to account for it' if part >= 1 else f'{_said(part)} of the difference'}"


def _bandwidth(cell: Cell, base: Cell) -> str | None:
    own, theirs, size = shares(cell)["mbu_decode"], shares(base)["mbu_decode"], _size(cell, base)
    if own is None or theirs is None or size is None or own >= theirs or size >= 1:
        return None
    return (
        f"its decoding steps reach {_said(own)} of the memory bandwidth, those of {base.axes['quantization']} {_said(theirs)}: reading "
        f"the weights, {_said(size)} the size, is not what takes the time"
    )


def _prefill(cell: Cell, base: Cell, facts: Facts) -> str | None:
    own, theirs = shares(cell)["mfu_prefill"], shares(base)["mfu_prefill"]
    later: Ratio | None = cell_ratio(cell, base, "ttft_s", facts)
    if own is None or theirs is None or own >= theirs or later is None or later.low <= 1:
        return None
    return f"its prefill reaches {_said(own)} of the rate of the type it multiplies in, that of {base.axes['quantization']} {_said(theirs)}"


def _size(cell: Cell, base: Cell) -> float | None:
    own, theirs = cell.estimate("weight_bytes"), base.estimate("weight_bytes")
    return own.value / theirs.value if own is not None and theirs is not None and theirs.value > 0 else None


def _said(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
