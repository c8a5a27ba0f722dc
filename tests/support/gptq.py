"""Loading through real children in the default runtime and in `autogptq`, which is built once and kept between runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from effillm_server import runtimes
from effillm_worker.messages import Opened, Refused, Report
from tests.support import trained
from tests.support.child import REPOSITORY, child_process, opening
from tests.support.fake_engine import cell

ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}


def model_root(folder: Path) -> Path:
    """A model root with the trained model and a calibration text of its kind."""
    shutil.copytree(trained.folder("quick"), folder / "lab" / "trained")
    (folder / "calibration.txt").write_text(trained.stories.stories(2 * trained.HELD_OUT, 200))
    return folder


def autogptq() -> str:
    """Interpreter of the runtime `autogptq`, built by the command a user types if it is not there yet."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effillm-tests" / "runtimes"
    home.mkdir(parents=True, exist_ok=True)
    if "autogptq" not in runtimes.registered(home):
        done = subprocess.run(
            [sys.executable, "-m", "effillm_server.cli", "runtime", "create", "autogptq"],
            env=os.environ | {"EFFILLM_DATA_DIR": str(home)}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return runtimes.registered(home)["autogptq"]


class Answers:
    """What loading told: the model's record, or why not; `heard` is everything the last child said."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        self.heard: list[Report] = []

    def open(self, label: str, interpreter: str = sys.executable, **changes: Any) -> Any:
        values = {"model": "lab/trained", "weights": "pretrained"} | changes
        with child_process(interpreter=interpreter, **ENVIRONMENT) as child:
            child.say(opening(cell(quantization=label, **values), self.cache, model_root=str(self.root)))
            answer = child.answer((Opened, Refused))
            self.heard = child.heard
            return answer

    def load(self, label: str, interpreter: str = sys.executable, **changes: Any) -> Any:
        answer = self.open(label, interpreter, **changes)
        assert isinstance(answer, Opened), answer
        return answer.model

    def refusal(self, label: str, interpreter: str = sys.executable, **changes: Any) -> str:
        answer = self.open(label, interpreter, **changes)
        assert isinstance(answer, Refused), answer
        return answer.message

    def made(self) -> set[Path]:
        return {path for path in (self.cache / "gptq").glob("*") if not path.name.startswith((".", "named-"))}

    def checkpoint(self, label: str, interpreter: str = sys.executable) -> Path:
        """The folder a label's checkpoint is made into, made now; it must not have been before."""
        before = self.made()
        self.load(label, interpreter)
        (folder,) = self.made() - before
        return folder

    def publish(self, checkpoint: Path, name: str) -> str:
        """The checkpoint as a model of its own below the model root, as if somebody had published it."""
        target = self.root / name
        if not target.exists():
            shutil.copytree(checkpoint, target)
            (target / "effillm.json").unlink()
        return name
