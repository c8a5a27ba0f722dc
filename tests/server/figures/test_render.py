from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from effillm_server.analysis import Facts
from effillm_server.errors import BadInput
from effillm_server.figures import FIGURES, Options, chart, render
from tests.support.sweeps import SIZES, Grid, invent

OPTIONS = Options(facts=Facts(parameters=SIZES))
ROWS = invent(
    Grid(models=tuple(SIZES)[:4], quantization=("fp32", "int8"), batch_size=(1, 2, 4, 8), sequence_length=(128, 256))
)
SPEC = chart("throughput-vs-batch", ROWS, OPTIONS)


def test_png_pdf_and_svg_are_files_of_their_kind() -> None:
    assert render(SPEC, "png").startswith(b"\x89PNG\r\n")
    assert render(SPEC, "pdf").startswith(b"%PDF-")
    assert ET.fromstring(render(SPEC, "svg")).tag.endswith("svg")


def test_json_is_the_specification_itself() -> None:
    assert json.loads(render(SPEC, "json")) == json.loads(json.dumps(SPEC))


def test_html_carries_everything_it_needs() -> None:
    page = render(SPEC, "html").decode()
    assert "vega" in page.lower() and "cdn.jsdelivr.net/npm/vega@" not in page


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders_with_its_title_and_without_script_or_link(name: str) -> None:
    svg = render(chart(name, ROWS, OPTIONS), "svg").decode()
    assert f"Figure {FIGURES[name].number}." in svg
    assert "<script" not in svg and "http://" not in svg.replace("http://www.w3.org", "") and "https://" not in svg


def test_the_message_of_a_figure_without_data_is_drawn() -> None:
    assert (
        "not enough data: needs valid measured rows" in render(chart("throughput-vs-size", [], OPTIONS), "svg").decode()
    )


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="no figure format 'gif'; there are svg, png, pdf, html, json"):
        render(SPEC, "gif")
