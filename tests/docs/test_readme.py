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

from tests.support.commands import Up, environment, up

README = (Path(__file__).parents[2] / "README.md").read_text()
# The sweep of the README would take minutes: one cell of a smaller model stands for it.
SMALLER = {
    "facebook/opt-125m": "EleutherAI/pythia-70m",
    "quantization: [fp32, int8]": "quantization: [fp32]",
    "batch_size: [1, 8]": "batch_size: [1]",
    "sequence_length: [128, 512]": "sequence_length: [16]",
    "generate_tokens: 64": "generate_tokens: 4\nmeasurement: {warmup: 3, iterations: 5}",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that other users may pass, for Ray's sockets and Postgres's own user."""
    path = Path(tempfile.mkdtemp(prefix="effillm-readme-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def test_a_sweep_of_ones_own_goes_as_the_readme_says(folder: Path) -> None:
    section = README.split("## A sweep of your own")[1].split("\n## ")[0]
    (folder / "mine.yaml").write_text(shrunk(block(section, "yaml")))
    commands = [line for line in section.splitlines() if line.startswith(".venv/bin/effillm ") and " up" not in line]
    posted = re.search(r"^curl .*$", section, re.MULTILINE)
    assert posted is not None
    with up(folder) as server:
        said = {command: run(command, folder, server) for command in commands}
        created = json.loads(post(posted[0], folder, server))
    assert re.search(r"would be measured\s+1\b", said[command_with(said, "preview")])
    assert "measured" in said[command_with(said, "submit")]
    assert "int8-against-fp32" in said[command_with(said, "ls")]
    assert (folder / "mine.csv").read_text().count("\n") == 2
    assert created["name"] == "int8-against-fp32"


def block(section: str, language: str) -> str:
    """The first fenced block in this language."""
    return section.split(f"```{language}\n")[1].split("```")[0]


def shrunk(text: str) -> str:
    for large, small in SMALLER.items():
        assert large in text, f"the README's sweep no longer has {large!r}"
        text = text.replace(large, small)
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
