"""The program at a glance: which commands there are, and how every expected error ends in one sentence."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from effillm_server.cli import box, devices, doctor, insight, key, results, runtime, sweeps
from effillm_server.cli.render import plain
from effillm_server.errors import BadInput, Conflict, EffillmError, NotFound

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="effillm",
    help="Which language model, at which precision, batch size and sequence length, should run on the hardware you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
START, SWEEPS, INSIGHT, LAB = "Everything on this box", "Sweeps", "From rows to decisions", "Devices"

app.command(rich_help_panel=START)(box.up)
app.command(rich_help_panel=START)(box.run)
app.command(rich_help_panel=SWEEPS)(sweeps.submit)
app.command(rich_help_panel=SWEEPS)(sweeps.preview)
app.command("watch", rich_help_panel=SWEEPS)(sweeps.watch_sweep)
app.command(rich_help_panel=SWEEPS)(sweeps.ls)
app.command(rich_help_panel=SWEEPS)(results.results)
app.command(rich_help_panel=SWEEPS)(results.jobs)
app.command(rich_help_panel=SWEEPS)(results.job)
app.command(rich_help_panel=SWEEPS)(sweeps.cancel)
app.command(rich_help_panel=SWEEPS)(sweeps.retry)
for deciding in (insight.report, insight.figure, insight.compare, insight.recommend):
    app.command(rich_help_panel=INSIGHT)(deciding)
app.command(rich_help_panel=LAB)(devices.devices)
app.command(rich_help_panel=LAB)(devices.drain)
app.add_typer(key.app, name="key", rich_help_panel=LAB)
app.add_typer(runtime.app, name="runtime", rich_help_panel=LAB)
# Commands that become a program of the worker, which reads its own options.
for becoming in (devices.node, doctor.doctor):
    app.command(
        rich_help_panel=LAB,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(becoming)


def show_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        print(f"effillm {version('effillm')}")
        raise typer.Exit


@app.callback()
def root(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Server to speak to; else EFFILLM_URL, else the `up` of this box.", show_default=False
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """The options that stand before the command; `options.client` reads them."""


def main() -> None:
    """Entry point of `effillm`: exit code 0, 1 on failures, 2 on bad input, 130 on Ctrl-C."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(prog_name="effillm", standalone_mode=False)
        sys.stdout.flush()
    except EffillmError as error:
        code = report(str(error), getattr(error, "field", None), code_of(error), as_json=as_json)
    except TyperException as error:
        code = report(usage(error), None, EXIT_BAD_INPUT, as_json=as_json)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def usage(error: TyperException) -> str:
    """What is wrong with the command line and where its options are listed; empty when the help has been shown."""
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "effillm")
    return message and f"{message}; `{command} --help` lists what is possible"


def code_of(error: EffillmError) -> int:
    """Exit code that goes with an error."""
    return EXIT_BAD_INPUT if isinstance(error, BadInput | NotFound | Conflict) else EXIT_FAILURE


def report(message: str, field: str | None, code: int, *, as_json: bool) -> int:
    """Says on stderr what went wrong; returns the exit code."""
    if not message:  # the help has been shown instead of a command
        return code
    if as_json:
        document = {"error": message, "field": field, "exit_code": code}
        sys.stderr.write(json.dumps({name: value for name, value in document.items() if value is not None}) + "\n")
    else:
        lines = [plain(line) for line in message.splitlines()]
        sys.stderr.write("effillm: " + "\n".join(lines) + "\n")
    return code
