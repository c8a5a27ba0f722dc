from __future__ import annotations

import threading
from pathlib import Path

import pytest

from effillm_server.credentials import KEY_TEXT, admin_key, digest, is_loopback, is_required, new_key, prefix
from effillm_server.errors import BadInput
from effillm_server.settings import Settings


def test_a_key_is_one_word_of_256_bits() -> None:
    made = {new_key() for _ in range(200)}
    assert len(made) == 200
    assert {len(key) for key in made} == {47}
    assert all(
        key.startswith("eff_") and key[4:].isalnum() and key.isascii() and KEY_TEXT.fullmatch(key) for key in made
    )
    # Were the digits skewed, the last ones would show it first: each of 62 comes up in 200 x 43 with near certainty.
    assert len({letter for key in made for letter in key[4:]}) == 62


def test_the_prefix_leaves_more_than_200_bits_unknown() -> None:
    key = new_key()
    assert key.startswith(prefix(key))
    assert (len(key) - len(prefix(key))) * 5.95 > 200


def test_secrets_of_different_kinds_have_different_digests() -> None:
    assert len({digest("x"), digest("x", "session"), digest("x", "link"), digest("y")}) == 4
    assert len(digest("x")) == 32


@pytest.mark.parametrize(("settings", "required"), [
    ({}, False), ({"host": "::1"}, False), ({"host": "localhost"}, False), ({"require_keys": True}, True),
    ({"host": "0.0.0.0"}, True), ({"host": "::"}, True), ({"host": "10.0.0.5"}, True), ({"host": "lab.example"}, True),
])  # fmt: skip
def test_keys_are_asked_for_beyond_loopback_and_where_it_is_set(settings: dict[str, object], required: bool) -> None:
    assert is_required(Settings.model_validate(settings)) is required


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))


def test_the_admin_key_of_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("f" * 40)
    assert admin_key(Settings(admin_key="e" * 40, admin_key_file=file)) == "e" * 40
    assert admin_key(Settings(admin_key_file=file)) == "f" * 40
    assert admin_key(Settings()) is None


def test_a_file_that_is_not_there_gets_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "made/key"
    made = admin_key(Settings(admin_key_file=file))
    assert made is not None and made.startswith("eff_")
    assert file.stat().st_mode & 0o777 == 0o600
    assert admin_key(Settings(admin_key_file=file)) == made
    assert [path.name for path in file.parent.iterdir()] == ["key"]


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    found: list[str | None] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(admin_key(Settings(admin_key_file=tmp_path / "key")))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("text", ["short", "with spaces in it, which no header can carry as it is", "é" * 40, ""])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        admin_key(Settings(admin_key_file=file))
    assert str(file) in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"EFFILLM_ADMIN_KEY_FILE=.*cannot be used"):
        admin_key(Settings(admin_key_file=tmp_path / "file/key"))
