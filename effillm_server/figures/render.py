"""Chart specifications to files, without a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import vl_convert

from effillm_server.errors import BadInput

VEGA_LITE = "6.4"
PNG_SCALE = 2.0
# Our specifications carry their data; nothing is ever fetched for one.
NO_URLS: list[str] = []
MEDIA_TYPES = {
    "svg": "image/svg+xml",
    "png": "image/png",
    "pdf": "application/pdf",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
}


def render(spec: Mapping[str, Any], format: str) -> bytes:
    """`spec` as svg, png, pdf, html (interactive, everything inside) or json. Raises BadInput for any other format."""
    if format not in MEDIA_TYPES:
        raise BadInput(f"no figure format {format!r}; there are {', '.join(MEDIA_TYPES)}", field="format")
    chart = dict(spec)
    match format:
        case "svg":
            return str(vl_convert.vegalite_to_svg(chart, vl_version=VEGA_LITE, allowed_base_urls=NO_URLS)).encode()
        case "png":
            png: bytes = vl_convert.vegalite_to_png(
                chart, vl_version=VEGA_LITE, scale=PNG_SCALE, allowed_base_urls=NO_URLS
            )
            return png
        case "pdf":
            pdf: bytes = vl_convert.vegalite_to_pdf(chart, vl_version=VEGA_LITE, allowed_base_urls=NO_URLS)
            return pdf
        case "html":
            return str(vl_convert.vegalite_to_html(chart, vl_version=VEGA_LITE, bundle=True)).encode()
        case _:
            return json.dumps(chart, allow_nan=False, separators=(",", ":")).encode()
