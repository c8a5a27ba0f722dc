"""Settings from the environment: read once, and wrong values named."""

from __future__ import annotations

from pathlib import Path

import pytest

from effillm_server.errors import BadInput
from effillm_server.settings import PREFIX, Settings


def test_no_variable_is_needed() -> None:
    settings = Settings.from_environment({})
    assert settings.database_url is None
    assert settings.max_jobs == 1_000_000
    assert settings.host == "127.0.0.1"


def test_variables_are_read_by_their_prefix_and_empty_ones_count_as_unset() -> None:
    settings = Settings.from_environment(
        {
            "EFFILLM_MAX_JOBS": "500", "EFFILLM_LEASE_TTL_S": "2.5", "EFFILLM_MODEL_ROOT": "/models", "EFFILLM_PORT": "",
            "EFFILLM_ALLOW_PICKLED": "a/b, c/d,", "EFFILLM_RUNTIMES": '{"old": "/opt/old/bin/python"}', "MAX_JOBS": "3",
        }
    )  # fmt: skip
    assert (settings.max_jobs, settings.lease_ttl_s, settings.port) == (500, 2.5, 8750)
    assert settings.model_root == Path("/models")
    assert settings.allow_pickled == ("a/b", "c/d")
    assert settings.runtimes == {"old": "/opt/old/bin/python"}


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"), ("PORT", "70000"), ("MAX_JOBS", "0"), ("LEASE_TTL_S", "-1"), ("LEASE_TTL_S", "nan"),
        ("RUNTIMES", "not json"), ("RUNTIMES", "[1]"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(BadInput) as caught:
        Settings.from_environment({PREFIX + name: value})
    assert str(caught.value).startswith(f"EFFILLM_{name}={value!r}: ")
    assert caught.value.field == f"EFFILLM_{name}"


def test_the_databases_url_may_come_from_a_file_that_the_variable_itself_overrules(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://from-file/x\n")
    named = {"EFFILLM_DATABASE_URL_FILE": str(file)}
    assert Settings.from_environment(named).database_url == "postgresql://from-file/x"
    both = named | {"EFFILLM_DATABASE_URL": "postgresql://from-variable/x"}
    assert Settings.from_environment(both).database_url == "postgresql://from-variable/x"


def test_a_file_for_the_databases_url_that_gives_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "url"
    named = {"EFFILLM_DATABASE_URL_FILE": str(file)}
    with pytest.raises(BadInput, match=f"{file} cannot be read: No such file"):
        Settings.from_environment(named)
    file.write_text("\n")
    with pytest.raises(BadInput, match="is empty"):
        Settings.from_environment(named)
