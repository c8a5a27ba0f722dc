from __future__ import annotations

import stat
from pathlib import Path

import pytest

from effillm_server import secret_files


def test_each_missing_file_gets_a_secret_of_its_own_that_nothing_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a/token", tmp_path / "b/password"]
    assert secret_files.main([str(file) for file in files]) == 0
    made = [file.read_text() for file in files]
    assert len(set(made)) == 2
    assert all(len(secret) == 64 for secret in made)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o400, 0o400]
    said = capsys.readouterr()
    assert not any(secret in said.out + said.err for secret in made)


def test_a_secret_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text("mine")
    assert secret_files.main([str(file)]) == 0
    assert (file.read_text(), capsys.readouterr().out) == ("mine", f"{file}: kept\n")


def test_readers_that_are_another_user_are_let_in_when_asked_for(tmp_path: Path) -> None:
    assert secret_files.main(["--readable", str(tmp_path / "password")]) == 0
    assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o444


def test_a_folder_that_takes_no_file_is_named_with_who_must_own_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert secret_files.main([str(tmp_path / "file/token")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file/token'} cannot be written (" in said
    assert "must belong to user" in said


def test_a_replaced_secret_is_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / "url"
    assert secret_files.write_secret(file, "one")
    assert secret_files.write_secret(file, "two") is False
    assert secret_files.write_secret(file, "two", replace=True)
    assert file.read_text() == "two"
    assert [one.name for one in tmp_path.iterdir()] == ["url"]
