"""A real lab for the browser: `effillm up` with declared devices, simulated sweeps, and Chromium."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.browser import Visitor, launched, visiting
from tests.support.commands import Up, up
from tests.support.waiting import until

NOBODY = "http://127.0.0.1:9"
QUICK = {"warmup": 3, "iterations": 5}
# A folder below the model root makes an id known; the engine `simulated` reads what it declares from the id itself.
DECLARED = ("simulated/slow-0.02", "simulated/oom-above-2000")
CONFIG = {
    "model_type": "opt", "max_position_embeddings": 2048, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
SLOW = {
    "name": "takes a while", "models": ["simulated/slow-0.02"], "hardware": ["t4"], "quantization": ["fp16"], "engine": "simulated",
    "batch_size": [1, 2, 4, 8, 16, 32], "sequence_length": [128], "generate_tokens": 8, "measurement": QUICK,
}  # fmt: skip
WHOLE = {
    "name": "precision against batch size", "models": ["facebook/opt-125m", "EleutherAI/pythia-410m", "simulated/oom-above-2000"],
    "hardware": ["t4"], "quantization": ["fp16", "int8", "int4"], "batch_size": [1, 2, 4, 8], "sequence_length": [128, 512, 2048],
    "generate_tokens": 16, "engine": "simulated", "measurement": QUICK,
}  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """A running lab and a finished sweep in it."""

    box: Up
    http: httpx.Client
    sweep: str

    @property
    def origin(self) -> str:
        return self.box.url

    def submit(self, definition: dict[str, Any]) -> str:
        answer = self.http.post("/v1/sweeps", json=definition)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def link(self) -> str:
        """A path that signs a browser in, once."""
        return str(self.http.post("/v1/session/links").json()["path"])

    def job(self, sweep: str, state: str, **wanted: Any) -> int:
        """A job of the sweep in this state, with these values in its cell."""
        jobs = self.http.get(f"/v1/sweeps/{sweep}/jobs", params={"state": state, "limit": 1000}).json()["items"]
        return int(next(job["id"] for job in jobs if wanted.items() <= job["cell"].items()))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    # A short path that other users may pass, for Ray's sockets and Postgres's own user.
    folder = Path(tempfile.mkdtemp(prefix="effillm-web-"))
    folder.chmod(0o711)
    for model in DECLARED:
        place = folder / "models" / model
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(CONFIG))
    try:
        settings = {"EFFILLM_MODEL_ROOT": str(folder / "models"), "HF_ENDPOINT": NOBODY}
        with (
            up(folder, "--declare", "t4:2", **settings) as box,
            httpx.Client(base_url=box.url, timeout=30, trust_env=False) as http,
        ):
            sweep = Lab(box, http, "").submit(WHOLE)
            finished(http, sweep)
            yield Lab(box, http, sweep)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def visitor(chromium: Browser, lab: Lab) -> Iterator[Visitor]:
    """Somebody at a desk who follows the link that `effillm up` printed."""
    with visiting(chromium, lab.origin) as visitor:
        visitor.go(lab.link())
        yield visitor


def finished(http: httpx.Client, sweep: str) -> None:
    """Returns once the sweep is over."""
    over = ("finished", "cancelled")
    until(f"sweep {sweep} is over", lambda: http.get(f"/v1/sweeps/{sweep}").json()["state"] in over, within_s=120)
