"""Options and arguments that several commands share, and the client that the global ones lead to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import typer

from effillm_server.cli.client import Client
from effillm_server.errors import BadInput

# The server reads no larger body; refusing it here saves the upload.
LARGEST_DEFINITION_BYTES = 1024 * 1024

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
SweepId = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Id of the sweep, the beginning of one, or `latest`.", show_default=False)
]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="Number of the job.", min=1, show_default=False)]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", metavar="AXIS=VALUE", help="Only rows with AXIS=VALUE[,VALUE]; may be repeated.", show_default=False
    ),
]
DefinitionFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Sweep definition, YAML or JSON; `-` reads stdin.", show_default=False)
]


def client(context: typer.Context) -> Client:
    """The client for the server that `--url` or the environment names, closed when the command ends."""
    made = Client(context.find_root().params.get("url"))
    context.call_on_close(made.close)
    return made


def read_definition(file: Path) -> bytes:
    """The bytes of a definition file. Raises BadInput when there are none to be had."""
    if str(file) == "-":
        content = sys.stdin.buffer.read(LARGEST_DEFINITION_BYTES + 1)
    else:
        try:
            with file.open("rb") as stream:
                content = stream.read(LARGEST_DEFINITION_BYTES + 1)
        except FileNotFoundError:
            raise BadInput(f"there is no file {file}: name a sweep definition in YAML or JSON", field="FILE") from None
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error.strerror}", field="FILE") from None
    if len(content) > LARGEST_DEFINITION_BYTES:
        raise BadInput(f"{file} is larger than 1 MiB, which no sweep definition is: name the right file", field="FILE")
    return content


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes `file` once it is complete; until then the old one stays. Raises BadInput."""
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            yield stream
        part.replace(file)
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}", field="output") from None
    finally:
        with suppress(OSError):
            part.unlink()


def writable_folder(folder: Path) -> Path:
    """`folder`, made if it is not there. Raises BadInput when files cannot be written into it."""
    with replacing(folder / ".writable"):
        pass
    (folder / ".writable").unlink()
    return folder
