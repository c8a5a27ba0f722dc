"""Methods of other packages: found by the entry point that an installed distribution registers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from effillm_server.contract.quantization import PLUGINS, label, parse
from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import method
from effillm_worker.quantization.base import Method

NAME = "lab-ternary"
MODULE = "effillm_test_ternary"
SOURCE = """
from effillm_worker.quantization.base import Method

class Ternary(Method):
    @property
    def theoretical_bits(self):
        return 1.58
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution on the path, as pip would have put it there."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    about = tmp_path / f"{MODULE}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{PLUGINS}]\n{NAME} = {MODULE}:Ternary\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(MODULE, None)


@pytest.mark.usefixtures("installed")
def test_a_registered_method_is_a_label_without_being_imported_and_loads_by_it() -> None:
    assert label(NAME) == NAME
    assert label({"method": NAME}) == NAME
    assert parse(NAME).options == {}
    assert MODULE not in sys.modules
    found = method(NAME)
    assert isinstance(found, Method)
    assert type(found).__name__ == "Ternary"
    assert (found.name, dict(found.choices), found.theoretical_bits) == (NAME, {}, 1.58)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"{NAME}-b2", "is not allowed"),
        (f"{NAME}@text.txt", "is not allowed"),
        ({"method": NAME, "bits": 2}, f"{NAME} comes from another package and takes no options"),
    ],
)
def test_a_registered_method_takes_no_options(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        label(value)


def test_a_method_that_nobody_registers_is_none() -> None:
    with pytest.raises(ValueError, match="'lab-binary' is not allowed"):
        label("lab-binary")
    with pytest.raises(Unsupported, match="no quantization 'lab-binary' in this runtime"):
        method("lab-binary")
