"""Markup of the report: escaped text, tables, and SVG fit to stand beside others in one page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from effillm_server.figures.theme import FONT, dark_css

ROWS_BEFORE_FOLDING = 24

STYLE = f"""
:root {{ --ink:#1b1f24; --muted:#57606a; --line:#d8dde3; --paper:#ffffff; --soft:#f5f7f9; --good:#00795a; --bad:#b3261e; --open:#7a5a00; }}
@media (prefers-color-scheme: dark) {{
:root {{ --ink:#e6e9ec; --muted:#a0a8b1; --line:#30363d; --paper:#14171a; --soft:#1c2127; --good:#2fc59a; --bad:#ff8a80; --open:#e6b422; }}
{dark_css("figure svg")}
}}
* {{ box-sizing:border-box }}
body {{ margin:0 auto; padding:2rem 1.25rem 4rem; max-width:72rem; font:15px/1.5 {FONT}; color:var(--ink); background:var(--paper) }}
h1 {{ font-size:1.7rem; margin:0 0 .25rem }}
h2 {{ font-size:1.25rem; margin:2.75rem 0 .75rem; border-bottom:1px solid var(--line); padding-bottom:.3rem }}
h3 {{ font-size:1rem; margin:1.5rem 0 .4rem }} p, li {{ max-width:60rem }} .muted {{ color:var(--muted) }}
nav {{ display:flex; flex-wrap:wrap; gap:.25rem 1rem; margin:1rem 0; font-size:.9rem }} a {{ color:inherit }}
table {{ border-collapse:collapse; font-size:.85rem; font-variant-numeric:tabular-nums }} .wide {{ overflow-x:auto; margin:.5rem 0 }}
th, td {{ padding:.28rem .7rem .28rem 0; text-align:left; vertical-align:top; border-bottom:1px solid var(--line) }}
th {{ font-weight:600; color:var(--muted); white-space:nowrap }} td.n, th.n {{ text-align:right; white-space:nowrap }}
figure {{ margin:1.75rem 0 2.25rem; break-inside:avoid }} figure svg {{ max-width:100%; height:auto; display:block }}
figcaption {{ font-size:.85rem; color:var(--muted) }} figcaption b {{ color:var(--ink); font-size:.95rem }}
details {{ margin:.4rem 0 1rem }} summary {{ cursor:pointer; color:var(--muted); font-size:.85rem }}
.confirmed, .valid {{ color:var(--good); font-weight:600 }} .refuted, .invalid {{ color:var(--bad); font-weight:600 }}
.undecided, .suspect {{ color:var(--open); font-weight:600 }}
.notice {{ background:var(--soft); border-left:4px solid var(--open); padding:.6rem .9rem; margin:.75rem 0 }}
.missing {{ background:var(--soft); padding:.5rem .9rem; margin:.4rem 0; font-size:.9rem }}
@media print {{ nav {{ display:none }} body {{ max-width:none; padding:0 }} }}
"""


class Raw(str):
    """Markup that is already escaped."""


def text(value: Any) -> str:
    """`value` as escaped text; Raw stays as it is; None is an en dash."""
    if isinstance(value, Raw):
        return value
    return "–" if value is None else escape(str(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, fold: str | None = None) -> Raw:
    """A table; columns whose name ends with `#` hold numbers. `fold`: behind a line to open when it is long."""
    body = list(rows)
    if not body:
        return Raw("<p class='muted'>None.</p>")
    numeric = [column.endswith("#") for column in columns]
    css = [" class='n'" if is_number else "" for is_number in numeric]
    head = "".join(f"<th{c}>{escape(column.rstrip('#'))}</th>" for column, c in zip(columns, css, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{c}>{text(cell)}</td>" for cell, c in zip(line, css, strict=True)) + "</tr>"
        for line in body
    )
    markup = f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    if fold is not None and len(body) > ROWS_BEFORE_FOLDING:
        return Raw(f"<details><summary>{escape(fold)} ({len(body):,} rows)</summary>{markup}</details>")
    return Raw(markup)


def folded(summary: str, markup: str) -> Raw:
    return Raw(f"<details><summary>{escape(summary)}</summary>{markup}</details>")


def tagged(word: str) -> Raw:
    """A verdict in its colour; the word itself carries the meaning."""
    return Raw(f"<span class='{escape(word, quote=True)}'>{escape(word)}</span>")


def inline_svg(svg: str, prefix: str, label: str) -> Raw:
    """`svg` for a page with others: its ids made its own (clip paths and gradients would be shared), scaling with the page."""
    own = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    own = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", own)
    own = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', own)
    return Raw(own.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1))


def page(title: str, body: str, *, head: str = "") -> str:
    """A whole document without any outside reference."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>{head}</head><body>{body}</body></html>\n"
    )
