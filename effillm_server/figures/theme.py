"""One look for every figure: colours that stay apart for colour-blind readers, on paper and on a dark page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of one background. Series differ in shape as well, so colour is never alone."""

    name: str
    background: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]
    ramp: tuple[str, ...]
    on_ramp: tuple[str, str]


# Okabe and Ito's hues, darkened or lightened to at least 3:1 against the background.
LIGHT = Theme(
    "light", "#ffffff", "#1b1f24", "#57606a", "#e3e6ea",
    ("#0067a5", "#c8500a", "#00795a", "#b0508a", "#9a6f00", "#2383bd", "#5b4fa8", "#6b6b6b"),
    ("#fcfdbf", "#fec488", "#fb8861", "#d3436e", "#8c2981", "#3b0f70"),
    ("#1b1f24", "#ffffff"),
)  # fmt: skip
DARK = Theme(
    "dark", "#14171a", "#e6e9ec", "#a0a8b1", "#30363d",
    ("#56b4e9", "#ff8c4b", "#2fc59a", "#e39ac6", "#e6b422", "#8fd0f5", "#a99df0", "#b5b5b5"),
    ("#fcfdbe", "#fec487", "#fb8860", "#d3436d", "#8c2980", "#3b0f6f"),
    ("#1b1f25", "#fffffe"),
)  # fmt: skip
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}

# The last ones are paths in a square from -1 to 1, as Vega takes them.
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
    "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z",
    "M-0.9,-0.55L-0.55,-0.9L0,-0.35L0.55,-0.9L0.9,-0.55L0.35,0L0.9,0.55L0.55,0.9L0,0.35L-0.55,0.9L-0.9,0.55L-0.35,0Z",
    "M-0.85,-0.85L0.85,-0.85L0,0L0.85,0.85L-0.85,0.85L0,0Z",
    "M-0.3,-0.95L0.3,-0.95L0.3,0.95L-0.3,0.95Z",
    "M-0.95,-0.3L0.95,-0.3L0.95,0.3L-0.95,0.3Z",
    "M-0.85,-0.85L-0.85,0.85L0,0L0.85,0.85L0.85,-0.85L0,0Z",
    "M-0.95,0.55A0.95,0.95,0,0,1,0.95,0.55Z",
    "M-0.9,-0.9L-0.3,-0.9L-0.3,0.3L0.9,0.3L0.9,0.9L-0.9,0.9Z",
)  # fmt: skip
MAX_SERIES = len(LIGHT.series)


def config(theme: Theme) -> dict[str, Any]:
    """Vega-Lite configuration of `theme`."""
    text = {"labelColor": theme.muted, "titleColor": theme.ink, "labelFont": FONT, "titleFont": FONT}
    return {
        "background": theme.background,
        "font": FONT,
        "padding": 12,
        "view": {"stroke": None},
        "axis": {
            **text, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": theme.grid,
            "domainColor": theme.muted, "tickColor": theme.muted, "titlePadding": 8, "labelOverlap": True,
        },
        "legend": {
            **text, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "symbolSize": 80,
            "labelLimit": 220, "symbolStrokeWidth": 2,
        },
        "title": {
            "color": theme.ink, "subtitleColor": theme.muted, "font": FONT, "subtitleFont": FONT, "fontSize": 15,
            "subtitleFontSize": 11, "subtitleLineHeight": 15, "anchor": "start", "frame": "group", "offset": 14,
            "subtitlePadding": 6,
        },
        "text": {"font": FONT, "color": theme.ink, "fontSize": 11},
    }  # fmt: skip


def dark_css(selector: str) -> str:
    """Style rules that turn a light figure inside `selector` into a dark one, colour by colour."""
    pairs = list(zip(LIGHT.series, DARK.series, strict=True))
    pairs += [(getattr(LIGHT, name), getattr(DARK, name)) for name in ("background", "ink", "muted", "grid")]
    rules = [f"{selector} [{what}='{light}']{{{what}:{dark}}}" for light, dark in pairs for what in ("fill", "stroke")]
    return "\n".join(rules)
