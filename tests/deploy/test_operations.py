"""What the pages on deployment say is what programs and files really do: commands, names of secrets, sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy
import yaml

from effillm_server.ledger import roles
from effillm_worker import node
from tests.support.api import add_device, declaration, finish, lease, measured, serving

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("deploy.md", "operations.md")}
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_every_service_that_a_command_names_exists(page: str) -> None:
    named = re.findall(
        r"docker compose (?:run --rm|exec|stop|restart|logs)((?: -T| -e \S+)*(?: [a-z-]+)+)", PAGES[page]
    )
    assert named
    for words in named:
        assert re.sub(r" -T| -e \S+", "", words).split()[0] in SERVICES, words


def test_what_concerns_a_worker_concerns_the_gpu_worker_too() -> None:
    for line in commands("operations.md"):
        if re.match("docker compose (stop|restart) ", line):
            assert {"worker", "worker-gpu"} <= set(line.split()) or "worker" not in line.split(), line
    (rotated,) = (line for line in commands("operations.md") if "--rotate" in line and "run --rm migrate" in line)
    given = [word for word in SERVICES["migrate"]["command"] if word.startswith("--login=")]
    assert [word for word in rotated.split() if word.startswith("--login=")] == given
    assert "`docker compose stop api fleet worker worker-gpu`" in PAGES["operations.md"]


def test_every_database_login_and_node_command_in_the_pages_is_one_the_programs_take() -> None:
    logins = [word for page in PAGES for line in commands(page) for word in re.findall(r"--login='?([^' ]+)", line)]
    logins += re.findall(r"--login=(\S+?)[`,]? ", PAGES["operations.md"])
    assert len(logins) >= 7
    for login in logins:
        roles.parse_login(login.rstrip("`,"))
    joins = [line.split("effillm node ")[1] for line in commands("deploy.md") if "effillm node " in line]
    assert joins
    for join in joins:
        node._parser().parse_args(join.split())


def test_the_readmes_more_boxes_are_started_by_options_that_a_node_takes() -> None:
    section = (ROOT / "README.md").read_text().split("## More boxes")[1].split("\n## ")[0]
    starts = re.findall(r"^\.venv/bin/effillm node (.*)$", section, re.MULTILINE)
    head, box = (node._parser().parse_args(start.split()) for start in starts)
    assert (head.head, head.port) == (True, 6379)
    assert box.address == f"head.lab:{head.port}"
    assert f"EFFILLM_RAY_ADDRESS={box.address} .venv/bin/effillm up" in section
    # The login in it is the owner's; where each box gets one of its own is said beside it.
    assert "[docs/deploy.md](docs/deploy.md)" in section.split("```")[2].split("\n\n")[1]


def test_every_file_that_a_command_installs_is_shipped() -> None:
    shipped = {file.name for file in (ROOT / "deploy/lab").iterdir()}
    text = PAGES["deploy.md"]
    for group in re.findall(r"deploy/lab/(\S+)", text):
        found = re.fullmatch(r"([a-z-]+)\{([a-z,]+)\}(\.service)", group)
        names = [f"{found[1]}{one}{found[3]}" for one in found[2].split(",")] if found else [group.strip("`")]
        assert {name for name in names if name} <= shipped, group


def test_the_sentences_of_the_table_are_said_by_the_code() -> None:
    table = PAGES["operations.md"].split("## When it does not start")[1]
    source = "\n".join(
        file.read_text() for part in ("effillm_server", "effillm_worker") for file in (ROOT / part).rglob("*.py")
    )
    for sentence in (
        "keys are asked for, and nobody has", "does not answer (", "does not know: it was", "run the migration first",
        "no GPU is visible here", "must belong to user", "clock.off", "fleet.standby", "a Ray cluster needs the same on every node",
    ):  # fmt: skip
        assert sentence in source, sentence
        assert sentence in table, sentence


def test_the_query_for_durations_tells_what_the_ledger_has(database_url: str) -> None:
    (query,) = re.findall(r"^```sql\n(.*?)^```", PAGES["operations.md"], re.MULTILINE | re.DOTALL)
    with serving(database_url) as api:
        api.submit(sequence_length=[128], batch_size=[1, 2, 4])
        device = add_device(api.engine)
        for seconds in (10, 20, 60):
            held = lease(api.engine)
            finish(api.engine, held, measured(held))
            with api.engine.begin() as c:
                c.execute(
                    sqlalchemy.text("UPDATE attempt SET started_at = ended_at - make_interval(secs => :s) WHERE job_id = :job"),
                    {"s": seconds, "job": held.job_id},
                )  # fmt: skip
        with api.engine.connect() as c:
            (row,) = c.execute(sqlalchemy.text(query)).all()
    assert (row.hardware_class, row.outcome, row.attempts) == (declaration(device).hardware_class, "measured", 3)
    # Between the two upper of three values, by linear interpolation: 20 + 0.8 * 40 and 20 + 0.98 * 40.
    assert [float(second) for second in row.seconds] == pytest.approx([20, 52, 59.2])
