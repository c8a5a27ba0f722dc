"""The figures by name, and the one way to draw them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from effillm_server.errors import BadInput, NotFound
from effillm_server.figures import bars, heatmaps, lines, parts, tradeoffs
from effillm_server.figures.theme import THEMES
from effillm_server.figures.view import NotEnough, Options

Row = Mapping[str, Any]


class Figure(Protocol):
    """A figure of the paper."""

    @property
    def number(self) -> int: ...

    @property
    def title(self) -> str: ...

    def draw(self, rows: list[Row], options: Options) -> dict[str, Any]: ...


FIGURES: dict[str, Figure] = dict(
    sorted(
        {**lines.FIGURES, **heatmaps.FIGURES, **bars.FIGURES, **tradeoffs.FIGURES}.items(),
        key=lambda item: item[1].number,
    )
)


def chart(name: str, rows: Iterable[Row], options: Options | None = None) -> dict[str, Any]:
    """Vega-Lite specification of figure `name`; what it lacks is said in its place and in `usermeta.not_enough`.

    Raises NotFound for an unknown name (with the nearest), BadInput for options that cannot be met.
    """
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise NotFound(f"no figure {name!r}; {hint}There are {', '.join(FIGURES)}")
    chosen = options or Options()
    if chosen.theme not in THEMES:
        raise BadInput(f"no theme {chosen.theme!r}; there are {', '.join(THEMES)}", field="theme")
    figure, everything = FIGURES[name], list(rows)
    try:
        spec = figure.draw(everything, chosen)
    except NotEnough as lacking:
        spec = parts.not_enough(figure.number, figure.title, str(lacking), chosen)
    spec["usermeta"]["name"] = name
    return spec
