"""What a child may know, and what may be kept of what it says."""

from __future__ import annotations

import pytest

from effillm_worker.environment import child_environment, redact


def test_only_named_variables_are_passed_on() -> None:
    own = {
        "PATH": "/bin",
        "HOME": "/h",
        "SECRET": "s",
        "EFFILLM_DATABASE_URL": "u",
        "RAY_ADDRESS": "r",
        "PYTHONPATH": "/x",
    }
    given = child_environment(2, None, {}, own)
    assert given["PATH"] == "/bin" and given["OMP_NUM_THREADS"] == "2"
    assert not {"SECRET", "EFFILLM_DATABASE_URL", "RAY_ADDRESS"} & set(given)
    assert "/x" not in given["PYTHONPATH"]


def test_a_gpu_is_named_by_its_uuid_and_a_processors_child_sees_none() -> None:
    assert child_environment(1, "GPU-7", {}, {})["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    assert child_environment(1, None, {}, {})["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    "name", ["EFFILLM_DATABASE_URL", "PGPASSWORD", "RAY_AUTH_TOKEN", "DATABASE_URL", "EFFILLM_ADMIN_KEY"]
)
def test_what_a_child_must_never_see_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        child_environment(1, None, {name: "x"}, {})


def test_a_hub_token_is_given_on_purpose_only() -> None:
    assert "HF_TOKEN" not in child_environment(1, None, {}, {"HF_TOKEN": "t"})
    assert child_environment(1, None, {"HF_TOKEN": "t"}, {})["HF_TOKEN"] == "t"


def test_secrets_do_not_reach_the_log() -> None:
    environment = {"HF_TOKEN": "abc-secret", "HTTPS_PROXY": "http://u:pw@proxy", "LANG": "en_GB.UTF-8", "MY_KEY": "abc"}
    lines = [
        "got abc-secret",
        "via http://u:pw@proxy",
        "en_GB.UTF-8 abc",
        "hf_0123456789abcdefXYZ",
        "http://me:word@host/x",
    ]
    assert redact(lines, environment) == ("got ***", "via ***", "en_GB.UTF-8 abc", "***", "http://***@host/x")
