from __future__ import annotations

import json
import subprocess
import sys

import pytest

from effillm_worker.meters.ceiling import DTYPES, main, measure
from tests.support.child import REPOSITORY


def test_ceiling_is_the_rate_its_own_sizes_and_times_give() -> None:
    found = measure("cpu", 1, seconds_each=0.01)
    assert found.copy_bytes_s > 0
    assert set(found.matmul_flop_s) | set(found.not_measured) == set(DTYPES)
    assert set(found.matmul_sizes) == set(found.matmul_flop_s)
    assert found.matmul_flop_s["float32"] > 1e8
    assert all(size >= 256 for size in found.matmul_sizes.values())


def test_program_prints_one_json_line_for_programs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "effillm_worker.meters.ceiling", "--device", "cpu", "--threads", "1", "--json"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["threads"] == 1
    assert done.stderr == ""


def test_threads_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--threads", "0"])
    assert "at least 1, found '0'" in capsys.readouterr().err
