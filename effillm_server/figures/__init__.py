"""The paper's figures 2 to 16 from rows, and the report. `chart(name, rows, options)`, `render(spec, format)`, `FIGURES`."""

from effillm_server.figures.catalogue import FIGURES, chart
from effillm_server.figures.render import MEDIA_TYPES, render
from effillm_server.figures.report import report
from effillm_server.figures.view import Options

__all__ = ["FIGURES", "MEDIA_TYPES", "Options", "chart", "render", "report"]
