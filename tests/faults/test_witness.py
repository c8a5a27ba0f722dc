"""The witness's own act: a job that kills its node takes everything of that node with it, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from effillm_server import runtimes
from tests.support.faults import tree, witness
from tests.support.waiting import until

# A node, an actor below it, a supervisor that leads a session of its own, and the child that does it.
LEVEL = """
import subprocess, sys
levels = int(sys.argv[1])
if levels:
    command = [sys.executable, __file__, str(levels - 1)]
    sys.exit(subprocess.run(command, start_new_session=levels == 2).returncode)
sys.path.insert(0, {root!r})
from tests.support.faults.witness import kill_node
print("now", flush=True)
sys.stdin.readline()
kill_node()
"""


def test_a_job_that_kills_its_node_takes_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "level.py"
    script.write_text(LEVEL.format(root=str(Path.cwd())))
    bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    node = subprocess.Popen(
        [sys.executable, str(script), "3", "effillm_worker.node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert node.stdin is not None and node.stdout is not None
        assert node.stdout.readline() == "now\n"
        processes = tree.below(node.pid)
        assert len(processes) == 4
        node.stdin.write("\n")
        node.stdin.flush()
        assert node.wait(10) < 0
        until("the whole node is gone", lambda: not any(process.is_living for process in processes), within_s=10)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        if node.poll() is None:
            tree.kill_at_once(tree.below(node.pid))
        node.communicate()


def test_the_witnessed_interpreter_tells_what_its_environment_has_as_any_other(tmp_path: Path) -> None:
    stands_in = witness.interpreter(tmp_path / "witnessed", tmp_path / "witness")
    assert runtimes.lacking(str(stands_in)) is None
    assert runtimes.probe(str(stands_in)) == runtimes.probe(sys.executable)
