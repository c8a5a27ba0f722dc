"""What a process loads only by starting: nothing large that most commands and requests never need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"scipy", "statsmodels", "altair", "pyarrow", "vl_convert", "pandas"}


@pytest.mark.parametrize(
    "module", ["effillm_server.api.app", "effillm_server.api.__main__", "effillm_server.cli.main", "effillm_server.cli"]
)
def test_starting_loads_no_statistics_and_no_drawing(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not HEAVY & set(json.loads(done.stdout))
