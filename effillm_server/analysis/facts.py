"""What an analysis knows beside the rows: sizes, prices, the machine's noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from effillm_server.catalog import Price
from effillm_server.catalog import load as load_catalog
from effillm_server.catalog import prices as catalog_prices

# Standard deviation of the ratio of two runs of one cell in fresh processes, as seen on small shared machines.
ASSUMED_NOISE_FLOOR = 0.06
UNQUANTIZED = ("fp16", "bf16", "fp32")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """`parameters` by model id; `prices` by hardware class; `noise_floor`: sd of the log ratio of A/A pairs.

    `noise_floor_degrees` is the number of A/A pairs less one behind the noise floor; None when it is assumed.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    noise_floor: float = ASSUMED_NOISE_FLOOR
    noise_floor_degrees: int | None = None
    noise_floor_source: str = "assumed; `effillm doctor` measures this machine's own"

    @classmethod
    def from_catalog(cls, prices: Mapping[str, Price] | None = None, **others: Any) -> Facts:
        """The catalog's sizes and prices; `prices` replaces the latter (the lab's own file)."""
        sizes = {facts.id: facts.parameters for facts in load_catalog().models.values() if facts.parameters}
        return cls(parameters=sizes, prices=catalog_prices() if prices is None else prices, **others)

    @property
    def process_sd(self) -> float:
        """Relative standard deviation of one process's result: a ratio has two of them."""
        return self.noise_floor / 2**0.5

    def with_sizes_of(self, rows: Iterable[Row]) -> Facts:
        """These facts, with models the catalog does not know sized by the largest count their rows report.

        The largest, because packed weights of quantized models count low.
        """
        counted: dict[str, int] = {}
        for row in rows:
            if row.get("parameters"):
                counted[row["model"]] = max(counted.get(row["model"], 0), row["parameters"])
        return replace(self, parameters=counted | dict(self.parameters))
