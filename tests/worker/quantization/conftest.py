"""What the slow tests of GPTQ share: each checkpoint is made once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import gptq
from tests.support.gptq import Answers

GPTQ = "gptq-b3-g64@calibration.txt"


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(gptq.model_root(tmp_path_factory.mktemp("root")), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def autogptq() -> str:
    return gptq.autogptq()


@pytest.fixture(scope="session")
def by_gptqmodel(answers: Answers) -> Path:
    return answers.checkpoint(GPTQ)


@pytest.fixture(scope="session")
def by_autogptq(answers: Answers, autogptq: str) -> Path:
    return answers.checkpoint(GPTQ, autogptq)
