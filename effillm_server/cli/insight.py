"""From rows to decisions: `report`, `figure`, `compare`, `recommend`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from effillm_server.cli import insight_tables
from effillm_server.cli.client import Client
from effillm_server.cli.options import AsJson, Filters, SweepId, client, replacing
from effillm_server.cli.render import print_json, say
from effillm_server.errors import BadInput

PICTURES = (".svg", ".png", ".pdf", ".json")
SIDE_HELP = "A sweep, or filtered rows of one: SWEEP:AXIS=VALUE,VALUE:AXIS=VALUE."

IncludeInvalid = Annotated[
    bool, typer.Option("--include-invalid", help="Count in rows whose conditions made them invalid.")
]

NoiseFloor = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="By how much two runs of a cell differ on this machine, as `effillm doctor` finds it.",
        show_default=False,
    ),
]


class Theme(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Aim(StrEnum):
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    MULTI_USER = "multi-user"
    COST = "cost"
    ENERGY = "energy"


def report(
    context: typer.Context,
    sweep: SweepId = "latest",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = Path(
        "report.html"
    ),
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Live charts; the file then carries the code that draws them.")
    ] = False,
    filters: Filters = None,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
) -> None:
    """Write the report of a sweep: one HTML file with findings, figures, fits and what they rest on."""
    server = client(context).patient()
    chosen = {"filter": filters, "include_invalid": include_invalid, "noise_floor": share(noise_floor, "noise_floor")}
    save_report(server, server.sweep_id(sweep), output, interactive=interactive, **chosen)
    say(f"wrote {output}")


def save_report(server: Client, sweep_id: str, file: Path, **options: Any) -> None:
    """Saves the report; the file is there when it is complete. Raises BadInput when it cannot be written."""
    with replacing(file) as stream:
        server.patient().download(f"/v1/sweeps/{sweep_id}/report.html", stream, **options)


def figure(
    context: typer.Context,
    sweep: SweepId,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name of the figure; without one, all are listed.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write: .svg, .png, .pdf or .json (Vega-Lite); "
                     "else NAME.svg.", show_default=False),
    ] = None,
    filters: Filters = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="AXIS", help="The axis with a line per value, instead of the figure's own.", show_default=False),
    ] = None,
    theme: Annotated[Theme, typer.Option(help="Colours.")] = Theme.LIGHT,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Draw a figure of a sweep, or list the figures and what each needs."""
    server = client(context).patient()
    common = {"filter": filters, "include_invalid": include_invalid}
    if name is None:
        if output is not None:
            raise BadInput("name the figure to write: `effillm figure SWEEP` lists them", field="NAME")
        items = server.get(f"/v1/sweeps/{server.sweep_id(sweep)}/figures", **common)["items"]
        print_json(items) if as_json else insight_tables.figures(items)
        return
    if "/" in name:
        raise BadInput(f"{name!r} is no name of a figure: `effillm figure SWEEP` lists them", field="NAME")
    file, noise = output or Path(f"{name}.svg"), share(noise_floor, "noise_floor")
    if file.suffix.lower() not in PICTURES:
        raise BadInput(
            f"{file} does not say what to draw: end its name with {', '.join(PICTURES[:-1])} or {PICTURES[-1]}",
            field="output",
        )
    path = f"/v1/sweeps/{server.sweep_id(sweep)}/figures/{name}{file.suffix.lower()}"
    with replacing(file) as stream:
        server.download(path, stream, series=series, theme=str(theme), strict=True, noise_floor=noise, **common)
    print_json({"file": str(file), "figure": name}) if as_json else say(f"wrote {file}")


def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help=f"What B is compared with. {SIDE_HELP}", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="What is compared. Like A.", show_default=False)],
    metric: Annotated[str, typer.Option(help="What is compared.")] = "throughput_tok_s",
    margin: Annotated[str, typer.Option(help="Differences within this share are the same.")] = "3%",
    across: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS", help="An axis that differs on purpose; may be repeated.", show_default=False),
    ] = None,
    filters: Filters = None,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
    fail_if: Annotated[
        str | None,
        typer.Option(metavar="VERDICT:SHARE", help="Exit 1 when a cell meets this, such as slower:3%.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare two sweeps, or two filters of one, cell by cell: faster, slower, same or unsure."""
    server = client(context).patient()
    found = server.get(
        "/v1/compare",
        a=side(server, a),
        b=side(server, b),
        metric=metric,
        margin=share(margin, "margin"),
        across=across or None,
        filter=filters,
        include_invalid=include_invalid,
        noise_floor=share(noise_floor, "noise_floor"),
        fail_if=fail_if,
    )
    print_json(found) if as_json else insight_tables.comparison(found)
    if found["tripped"]:
        raise typer.Exit(1)


def recommend(
    context: typer.Context,
    sweep: SweepId = "latest",
    aim: Annotated[Aim, typer.Option(help="What is to be best.")] = Aim.THROUGHPUT,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Peak memory, such as 16GB.", show_default=False)
    ] = None,
    max_ttft: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time to first token, such as 200ms.", show_default=False)
    ] = None,
    max_quality_loss: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Quality lost, such as 1%.", show_default=False)
    ] = None,
    max_purchase: Annotated[
        float | None, typer.Option(metavar="USD", help="Price of the device.", show_default=False)
    ] = None,
    max_hourly: Annotated[
        float | None, typer.Option(metavar="USD", help="Price of the device per hour.", show_default=False)
    ] = None,
    min_throughput: Annotated[
        float | None, typer.Option(metavar="TOK/S", help="Tokens per second.", show_default=False)
    ] = None,
    filters: Filters = None,
    noise_floor: NoiseFloor = None,
    as_json: AsJson = False,
) -> None:
    """Choose what to deploy among what a sweep has measured. Exit code 1 when nothing keeps all limits."""
    server = client(context).patient()
    limits = {
        "max_memory": max_memory,
        "max_ttft": max_ttft,
        "max_quality_loss": share(max_quality_loss, "max_quality_loss"),
        "max_purchase_usd": max_purchase,
        "max_hourly_usd": max_hourly,
        "min_throughput": min_throughput,
        "noise_floor": share(noise_floor, "noise_floor"),
    }
    wanted = {"sweep": server.sweep_id(sweep), "aim": str(aim), "filters": filters or []}
    found = server.post("/v1/recommendations", wanted | {k: v for k, v in limits.items() if v is not None})
    print_json(found) if as_json else insight_tables.recommendation(found)
    if found["recommended"] is None:
        raise typer.Exit(1)


def side(server: Client, given: str) -> str:
    """One side of a comparison with its sweep's whole id."""
    sweep, colon, filters = given.partition(":")
    return f"{server.sweep_id(sweep)}{colon}{filters}"


def share(text: str | None, field: str) -> float | None:
    """0.03 for `3%` or `0.03`, None for nothing. Raises BadInput."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise BadInput(f"{text!r} is not a share: write 3% or 0.03", field=field) from None
