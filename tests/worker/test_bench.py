from __future__ import annotations

from pathlib import Path

from effillm_server.settings import Settings
from effillm_worker import ceilings
from effillm_worker.bench import Bench
from tests.support.isolation import device
from tests.support.ledger import measured


def bench(settings: Settings) -> Bench:
    return Bench(device(), settings, lambda _: None)


def test_a_measurement_takes_the_ceiling_kept_for_its_own_fingerprint_along(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, lock_dir=tmp_path)
    outcome = measured(simulated=False, details={"passes": 1})
    assert bench(settings)._with_ceiling(outcome).details == {"passes": 1}
    file = ceilings._file(settings, outcome.fingerprint)
    file.parent.mkdir()
    file.write_text('{"copy_bytes_s": 1e10}')
    assert bench(settings)._with_ceiling(outcome).details == {"passes": 1, "ceiling": {"copy_bytes_s": 1e10}}


def test_a_simulated_result_has_no_ceiling(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, lock_dir=tmp_path)
    outcome = measured(simulated=True)
    file = ceilings._file(settings, outcome.fingerprint)
    file.parent.mkdir()
    file.write_text('{"copy_bytes_s": 1e10}')
    assert "ceiling" not in bench(settings)._with_ceiling(outcome).details
