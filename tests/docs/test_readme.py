"""The README's own commands, run as they stand against a real `effillm up` that measures this machine's processor."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from effillm_server.cli.main import app
from effillm_server.settings import PREFIX, Settings
from effillm_worker import node
from tests.support.commands import Up, environment, up

ROOT = get_command(app)
README = (Path(__file__).parents[2] / "README.md").read_text()
# The sweep of the README would take minutes: one cell of a smaller model stands for it.
SMALLER = {
    "facebook/opt-125m": "EleutherAI/pythia-70m",
    "quantization: [fp32, int8]": "quantization: [fp32]",
    "batch_size: [1, 8]": "batch_size: [1]",
    "sequence_length: [128, 512]": "sequence_length: [16]",
    "generate_tokens: 64": "generate_tokens: 4\nmeasurement: {warmup: 3, iterations: 5}",
}


# The two sweeps that are decided on: simulated, so that a busy machine makes none of their rows invalid.
DECIDED = {"quantization: [fp32]": "quantization: [fp32]\nengine: simulated", "batch_size: [1]": "batch_size: [1, 4]"}
BECOME_THE_WORKER = {"node": node._parser}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path that other users may pass, for Ray's sockets and Postgres's own user."""
    path = Path(tempfile.mkdtemp(prefix="effillm-readme-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Up]:
    with up(folder) as running:
        yield running


def test_a_sweep_of_ones_own_goes_as_the_readme_says(folder: Path, server: Up) -> None:
    section = part("A sweep of your own")
    (folder / "mine.yaml").write_text(shrunk(block(section, "yaml")))
    commands = [command for command in commands_of(section) if " up" not in command]
    posted = re.search(r"^curl .*$", section, re.MULTILINE)
    assert posted is not None
    said = {command: run(command, folder, server) for command in commands}
    created = json.loads(post(posted[0], folder, server))
    assert re.search(r"would be measured\s+1\b", said[command_with(said, "preview")])
    assert "measured" in said[command_with(said, "submit")]
    assert "int8-against-fp32" in said[command_with(said, "ls")]
    assert (folder / "mine.csv").read_text().count("\n") == 2
    assert created["name"] == "int8-against-fp32"


def test_deciding_goes_as_the_readme_says(folder: Path, server: Up) -> None:
    definition = replaced(shrunk(block(part("A sweep of your own"), "yaml")), DECIDED)
    (folder / "decided.yaml").write_text(definition)
    names = {name: submitted(folder, server) for name in ("SWEEP_A", "SWEEP_B")}
    commands = commands_of(part("Deciding"))
    assert [command.split()[1] for command in commands] == ["report", "figure", "recommend", "compare"]
    said = {command: run(replaced(command, names, only=False), folder, server) for command in commands}
    assert "These rows are SIMULATED" in (folder / "report.html").read_text()
    assert (folder / "batch.svg").read_text().startswith("<svg")
    assert "most tokens per second" in said[command_with(said, "recommend")]
    # Two single processes that agree to the nanosecond: no difference, and no evidence that there is none.
    assert "B against A: 2 unsure" in said[command_with(said, "compare")]


def test_the_commands_of_more_boxes_are_there_with_the_options_the_readme_gives_them() -> None:
    section = part("More boxes")
    lines = [line.split("#")[0].strip() for line in block(section, "console").splitlines()]
    seen = [read_as_a_shell_would(line) for line in lines if line]
    assert [command for command, _ in seen if command] == ["node", "up", "node"]
    assert {name for _, variables in seen for name in variables} == {"EFFILLM_DATABASE_URL", "EFFILLM_RAY_ADDRESS"}
    spans = [span.removeprefix("effillm ").split() for span in re.findall(r"`([^`\n]+)`", section.split("```")[-1])]
    named = [words for words in spans if words[0] in ROOT.commands]
    assert len(named) >= 3
    for words in named:
        check_words(words)


def part(title: str) -> str:
    """The section of the README under this title."""
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def commands_of(section: str) -> list[str]:
    return [line for line in section.splitlines() if line.startswith(".venv/bin/effillm ")]


def submitted(folder: Path, server: Up) -> str:
    """The id of a sweep of decided.yaml, measured to its end."""
    created = json.loads(run("effillm submit decided.yaml --json", folder, server))
    run(f"effillm watch {created['id']}", folder, server)
    return str(created["id"])


def read_as_a_shell_would(line: str) -> tuple[str | None, list[str]]:
    """The command of EffiLLM that a line of the README runs, if any, and the settings it names. Fails on what is not there."""
    words = shlex.split(line.removeprefix("export "))
    variables = [word.split("=", 1)[0] for word in words if re.match(r"[A-Z_]+=", word)]
    for name in variables:
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields, name
    rest = words[len(variables) :]
    if not rest:
        return None, variables
    assert rest[0] == ".venv/bin/effillm", line
    command, arguments = rest[1], rest[2:]
    if command in BECOME_THE_WORKER:
        BECOME_THE_WORKER[command]().parse_args(arguments)
    else:
        ROOT.commands[command].make_context(command, arguments)
    return command, variables


def check_words(words: list[str]) -> None:
    """A command named in a sentence, perhaps without its arguments: every word of it is a command or an option."""
    command = ROOT
    for word in words:
        if word.startswith("--"):
            assert any(word in option.opts for option in command.params), words
        elif hasattr(command, "commands"):
            assert word in command.commands, words
            command = command.commands[word]


def block(section: str, language: str) -> str:
    """The first fenced block in this language."""
    return section.split(f"```{language}\n")[1].split("```")[0]


def shrunk(text: str) -> str:
    return replaced(text, SMALLER)


def replaced(text: str, by: dict[str, str], *, only: bool = True) -> str:
    """`text` with every key replaced by its value; `only`: each must be there."""
    for before, after in by.items():
        assert before in text or not only, f"the README's sweep no longer has {before!r}"
        text = text.replace(before, after)
    return text


def command_with(said: dict[str, str], verb: str) -> str:
    return next(command for command in said if f"effillm {verb}" in command)


def run(command: str, folder: Path, server: Up) -> str:
    """The command's stdout; it must succeed."""
    words = shlex.split(command, comments=True)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "effillm_server.cli", *words], cwd=folder,
        env=environment(**server.settings, EFFILLM_URL=server.url), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def post(command: str, folder: Path, server: Up) -> str:
    """What the README's curl answers, run by curl where there is one, else by httpx with the same words."""
    words = shlex.split(command.replace("http://127.0.0.1:8750", server.url))
    if shutil.which("curl"):
        return subprocess.run(
            [*words, "--silent", "--fail"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
    import httpx

    name, _, value = words[words.index("-H") + 1].partition(": ")
    url = next(word for word in words if word.startswith("http"))
    answer = httpx.post(url, headers={name: value}, content=(folder / "mine.yaml").read_bytes())
    return answer.raise_for_status().text
