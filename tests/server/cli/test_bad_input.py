"""Bad input ends with one clear sentence on stderr, the right exit code, and never a traceback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import effillm

GOOD = "name: x\nmodels: [facebook/opt-125m]\nhardware: [cpu]\nquantization: [fp32]\n"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is ours and refuses connections, because nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The command ended with `code` and one message that has all `parts`."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("effillm: ") :]
    for part in parts:
        assert part in message


def run(tmp_path: Path, content: str | bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return effillm("run", str(file), "--output", str(tmp_path / "out"), *arguments)


def test_a_file_that_is_not_there() -> None:
    refused(effillm("submit", "/nowhere.yaml"), 2, "there is no file /nowhere.yaml", "sweep definition")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    refused(effillm("submit", str(tmp_path)), 2, str(tmp_path), "cannot be read")


def test_a_file_that_is_far_too_large(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.truncate(50_000_000)
    refused(effillm("submit", str(file)), 2, "larger than 1 MiB")


def test_a_run_of_what_is_not_yaml(tmp_path: Path) -> None:
    refused(run(tmp_path, "models: [a, b"), 2, "not YAML", "line 2, column 1")


def test_a_run_of_what_is_not_text(tmp_path: Path) -> None:
    refused(run(tmp_path, b"\xff\xfe\x00"), 2, "not UTF-8")


def test_a_run_with_an_unknown_key(tmp_path: Path) -> None:
    refused(run(tmp_path, GOOD + "batch_sizes: [1]\n"), 2, "batch_sizes", "batch_size")


@pytest.mark.parametrize("value", ["0", "-1", "four"])
def test_a_run_with_a_batch_size_that_is_none(tmp_path: Path, value: str) -> None:
    refused(run(tmp_path, GOOD + f"batch_size: [{value}]\n"), 2, "batch_size")


def test_a_run_into_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused(run(tmp_path, GOOD), 2, str(tmp_path / "out"), "cannot be written")


def test_no_server_at_the_address(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    refused(effillm("ls", EFFILLM_URL=url), 1, f"no EffiLLM server answers at {url}", "effillm up", "EFFILLM_URL")


def test_an_address_that_is_none() -> None:
    refused(effillm("--url", "nonsense", "ls"), 2, "'nonsense' is not a server address", "http://HOST:PORT")


def test_a_port_that_is_taken(tmp_path: Path, taken_port: int) -> None:
    done = effillm("up", "--port", str(taken_port), EFFILLM_DATA_DIR=str(tmp_path))
    refused(done, 2, f"port {taken_port} on 127.0.0.1 is taken", "--port")


def test_a_database_that_does_not_answer(tmp_path: Path, closed_port: int) -> None:
    url = f"postgresql://someone:secret@127.0.0.1:{closed_port}/effillm"
    done = effillm("up", "--port", "0", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_DATABASE_URL=url)
    refused(done, 1, "does not answer", "EFFILLM_DATABASE_URL")
    assert "secret" not in done.stderr + done.stdout


def test_a_database_url_that_is_none(tmp_path: Path) -> None:
    done = effillm("up", "--port", "0", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_DATABASE_URL="mysql://x/y")
    refused(done, 2, "postgresql://")


def test_a_ray_head_that_does_not_answer(tmp_path: Path, closed_port: int, database_url: str) -> None:
    done = effillm(
        "up", "--port", "0", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_DATABASE_URL=database_url,
        EFFILLM_RAY_ADDRESS=f"127.0.0.1:{closed_port}",
    )  # fmt: skip
    refused(done, 1, f"no Ray head answers at 127.0.0.1:{closed_port}", "EFFILLM_RAY_ADDRESS")


def test_a_ray_head_elsewhere_without_a_database_it_can_reach(tmp_path: Path) -> None:
    done = effillm("up", "--port", "0", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_RAY_ADDRESS="head.lab:6379")
    refused(done, 2, "EFFILLM_RAY_ADDRESS=head.lab:6379", "EFFILLM_DATABASE_URL")


def test_listening_for_other_boxes(tmp_path: Path) -> None:
    done = effillm("up", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_HOST="0.0.0.0")
    refused(done, 2, "EFFILLM_HOST=0.0.0.0", "EFFILLM_ADMIN_KEY", "openssl rand -hex 32")


def test_a_setting_that_is_none(tmp_path: Path) -> None:
    done = effillm("up", EFFILLM_DATA_DIR=str(tmp_path), EFFILLM_PORT="many")
    refused(done, 2, "EFFILLM_PORT='many'")


def test_a_data_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(effillm("up", "--port", "0", EFFILLM_DATA_DIR=str(tmp_path / "file")), 2, "EFFILLM_DATA_DIR")


@pytest.mark.parametrize("arguments", [("nonsense",), ("ls", "--nonsense"), ("submit",), ("job", "three"), ("cancel",)])
def test_a_command_line_that_is_none(arguments: tuple[str, ...]) -> None:
    refused(effillm(*arguments), 2)


def test_an_error_is_json_for_programs(closed_port: int) -> None:
    done = effillm("ls", "--json", EFFILLM_URL=f"http://127.0.0.1:{closed_port}")
    assert done.returncode == 1
    assert done.stderr.startswith('{"error": "no EffiLLM server answers at ')
    assert done.stderr.endswith('"exit_code": 1}\n')


def test_no_command_shows_the_help() -> None:
    done = effillm()
    assert done.returncode == 2
    assert "Usage: effillm" in done.stdout + done.stderr


def test_node_tells_its_own_errors_and_exit_code(tmp_path: Path) -> None:
    done = effillm("node", "--address", "nonsense", EFFILLM_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "HOST:PORT" in done.stderr
