from __future__ import annotations

import pytest

from effillm_server.credentials import new_key
from effillm_server.redaction import Redaction


@pytest.mark.parametrize("text", [
    "key eff_" + "a" * 43 + " was sent", "token hf_" + "B3" * 10, "postgresql://user:pa55w0rd!@host/db",
    "Authorization: Bearer abcdefgh12345678", "GET /login?token=abc-DEF_123", "authorization: BEARER " + "z" * 20,
])  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    hidden = Redaction({})(text)
    assert "***" in hidden
    for secret in ("a" * 43, "B3" * 10, "pa55w0rd!", "abcdefgh12345678", "abc-DEF_123", "z" * 20):
        assert secret not in hidden


@pytest.mark.parametrize("text", [
    "the sweep s3kq7w2m4t6y has 4 jobs", "http://127.0.0.1:8750/v1/sweeps", "eff_short", "hf_hub", "Bearer is expected",
    "model EleutherAI/pythia-70m at refs/pr/1", "",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction({})(text) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand() -> None:
    environment = {
        "EFFILLM_ADMIN_KEY": "an-operators-own-key", "HF_TOKEN": "unusual-token", "PGPASSWORD": "correct horse",
        "HOME": "/home/ada", "TOKENIZERS_PARALLELISM": "false-as-ever",
    }  # fmt: skip
    redaction = Redaction(environment, "a key out of a file", None)
    text = "/home/ada false-as-ever an-operators-own-key+unusual-token 'correct horse' a key out of a file"
    assert redaction(text) == "/home/ada false-as-ever ***+*** '***' ***"


def test_the_password_of_an_address_is_hidden_wherever_it_stands_alone() -> None:
    environment = {
        "EFFILLM_DATABASE_URL": "postgresql://ada:correct%20horse@db:5432/lab",
        "HTTPS_PROXY": "http://proxy:3128",
    }
    assert (
        Redaction(environment)("login with correct horse failed at proxy:3128") == "login with *** failed at proxy:3128"
    )


def test_what_is_nested_is_searched_and_numbers_stay_numbers() -> None:
    hidden = Redaction({"A_KEY": "12345678"}).within(
        {"a": [1, 2.5, None, True, {"b": ("x12345678", ValueError("12345678"))}]}
    )
    assert hidden == {"a": [1, 2.5, None, True, {"b": ["x***", "***"]}]}


def test_a_secret_inside_another_leaves_nothing_of_it() -> None:
    assert Redaction({"A_KEY": "12345678", "B_KEY": "12345678-and-more"})("12345678-and-more") == "***"


def test_our_own_keys_are_known_by_their_shape() -> None:
    key = new_key()
    assert Redaction({})(f"<{key}>") == "<***>"
