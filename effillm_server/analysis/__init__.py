"""From raw samples to decisions: pure functions on records, rows and arrays.

`rows.row` makes the flat row; `analyse` says what a set of rows shows; `compare.compare` sets two against each other;
`recommend.recommend` chooses. `Facts.from_catalog()` brings sizes and prices.
"""

from effillm_server.analysis.facts import Facts
from effillm_server.analysis.study import analyse

__all__ = ["Facts", "analyse"]
