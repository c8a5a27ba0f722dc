"""From raw samples to decisions: pure functions on records, rows and arrays.

`rows.row` makes the flat row; `analyse` says what a set of rows shows; `compare.compare` sets two against each other;
`recommend.recommend` chooses. `Facts.from_catalog()` brings sizes and prices.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effillm_server.analysis.facts import Facts
    from effillm_server.analysis.study import analyse

__all__ = ["Facts", "analyse"]


def __getattr__(name: str) -> Any:
    """Looked up when first asked for: who only makes rows does not wait for scipy."""
    if name == "Facts":
        from effillm_server.analysis.facts import Facts

        return Facts
    if name == "analyse":
        from effillm_server.analysis.study import analyse

        return analyse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
