"""`effillm runtime`: environments other than the worker's own, for libraries that cannot live together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from effillm_server import runtimes
from effillm_server.cli.options import AsJson
from effillm_server.cli.render import plain, print_json, print_table
from effillm_server.errors import BadInput, Conflict, EffillmError, NotFound
from effillm_server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Environments cells can be measured in: create, add, list, check.")

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
RuntimeName = Annotated[str, typer.Argument(metavar="NAME", help="Name on the axis `runtime`.", show_default=False)]


class BuildFailed(EffillmError):
    """An environment could not be built; nothing of it is left."""


@app.command()
def create(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help=f"One of: {', '.join(runtimes.RECIPES)}.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Name on the axis `runtime`; else the recipe's.", show_default=False)
    ] = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter to build it with; else this one.", show_default=False)
    ] = None,
    torch_index: Annotated[
        str | None, typer.Option(metavar="URL", help="Package index to take torch from.", show_default=False)
    ] = None,
) -> None:
    """Build an environment of its own from a locked list and register it on this box."""
    if recipe not in runtimes.RECIPES:
        raise BadInput(
            f"there is no recipe {recipe!r}; there are {', '.join(runtimes.RECIPES)}. An environment of your own is registered "
            "with `effillm runtime add`",
            field="RECIPE",
        )
    settings = Settings.from_environment()
    chosen = _name(name or recipe)
    folder = settings.data_dir.absolute() / "runtimes" / chosen
    if chosen in runtimes.registered(settings.data_dir) or folder.exists():
        raise Conflict(f"there is a runtime {chosen!r} already: name another with --name, or remove {folder} first")
    interpreter = _build(runtimes.RECIPES[recipe], folder, str(python or runtimes.own_interpreter()), torch_index)
    runtimes.register(settings.data_dir, chosen, interpreter)
    print(plain(f"runtime {chosen}: {interpreter}"))


@app.command()
def add(
    name: RuntimeName,
    interpreter: Annotated[
        Path, typer.Argument(metavar="PYTHON", help="Interpreter of the environment.", show_default=False)
    ],
) -> None:
    """Register an environment of your own on this box, if a child could be started in it."""
    settings = Settings.from_environment()
    path = interpreter.expanduser().absolute()  # not resolved: a venv's interpreter is a link that says where it is
    if (why := runtimes.lacking(str(path))) is not None:
        raise BadInput(f"{path} cannot be the runtime {name!r}: it {why}", field="PYTHON")
    runtimes.register(settings.data_dir, _name(name), path)
    print(plain(f"runtime {name}: {path}"))


@app.command("list")
def ls(as_json: AsJson = False) -> None:
    """List the runtimes of this box and the versions in them."""
    found = [_described(name, path) for name, path in _all().items()]
    if as_json:
        return print_json(found)
    rows = [
        [
            entry["name"],
            entry["python"] or "-",
            ", ".join(f"{k} {v}" for k, v in entry["versions"].items()) or entry["problem"],
        ]
        for entry in found
    ]
    return print_table(["name", "python", "holds"], rows, empty="no runtimes")


@app.command()
def check(name: RuntimeName, as_json: AsJson = False) -> None:
    """Say whether a measuring child can be started in a runtime of this box; exit code 1 when it cannot."""
    known = _all()
    if name not in known:
        raise NotFound(f"there is no runtime {name!r} on this box; there are {', '.join(known)}")
    entry = _described(name, known[name])
    if as_json:
        print_json(entry)
    else:
        held = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
        print(plain(f"{name}: {entry['problem'] or 'a child can be started'}\n  {entry['interpreter']}\n  {held}"))
    if entry["problem"] is not None:
        raise typer.Exit(1)


def _all() -> dict[str, str]:
    return {runtimes.DEFAULT: runtimes.own_interpreter()} | runtimes.known(Settings.from_environment())


def _described(name: str, interpreter: str) -> dict[str, Any]:
    found = runtimes.probe(interpreter)
    return {
        "name": name,
        "interpreter": interpreter,
        "python": found.python,
        "versions": dict(found.versions),
        "problem": runtimes.lacking(interpreter),
    }


def _name(name: str) -> str:
    if NAME.fullmatch(name) is None or name == runtimes.DEFAULT:
        raise BadInput(
            f"{name!r} is no name for a runtime: small letters, digits, '.' and '-', and not {runtimes.DEFAULT!r}",
            field="NAME",
        )
    return name


def _build(recipe: runtimes.Recipe, folder: Path, python: str, torch_index: str | None) -> Path:
    """The interpreter of a new environment with exactly the locked packages. Raises BadInput, BuildFailed."""
    found = runtimes.probe(python, ())
    if found.problem is not None:
        raise BadInput(found.problem, field="--python")
    if not f"{found.python}.".startswith(f"{recipe.python}."):
        raise BadInput(
            f"{recipe.name} is locked for Python {recipe.python}, {python} is {found.python}: name another with --python",
            field="--python",
        )
    interpreter = folder / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:"]
    pinned = next(line for line in recipe.locked.read_text().splitlines() if line.startswith("torch=="))
    # torch comes first and may bring what its build for this box's GPU needs; all others are the list and nothing else.
    torch = [*pip, "--constraint", str(recipe.locked), pinned, *(["--index-url", torch_index] if torch_index else [])]
    steps = [
        [python, "-m", "venv", str(folder)],
        torch,
        [*pip, "--no-deps", "--requirement", str(recipe.locked)],
    ]
    print(plain(f"building {folder}: {recipe.about}; a gigabyte or two, some minutes"), file=sys.stderr)
    for step in steps:
        # What pip has to tell goes beside the answer.
        if subprocess.run(step, stdout=sys.stderr, check=False).returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise BuildFailed(
                f"`{' '.join(step[:4])} …` failed, nothing is left of {folder}: its last lines above say why"
            )
    if (why := runtimes.lacking(str(interpreter))) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise BuildFailed(f"the new environment {why}")
    return interpreter
