from __future__ import annotations

from pathlib import Path

import pytest

from effillm_server.contract.job import Lease
from effillm_server.contract.sweep import MeasurementPlan
from effillm_server.settings import Settings
from effillm_worker import ceilings
from effillm_worker.bench import Bench
from tests.support.fake_engine import cell
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


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({"model": "EleutherAI/pythia-70m", "weights": "synthetic"}, False),
        ({"model": "EleutherAI/pythia-70m", "weights": "pretrained"}, True),
        ({"model": "lab/mine", "weights": "pretrained"}, False),
        ({"model": "lab/unknown", "weights": "synthetic"}, True),
        ({"model": "lab/unknown", "weights": "synthetic", "engine": "simulated"}, False),
    ],
)
def test_a_child_has_a_network_only_when_it_must_download(
    tmp_path: Path, changes: dict[str, str], network: bool
) -> None:
    (tmp_path / "models" / "lab" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "lab" / "mine" / "config.json").write_text("{}")
    settings = Settings(data_dir=tmp_path, lock_dir=tmp_path, model_root=tmp_path / "models")
    lease = Lease(
        job_id=1, sweep_id="s", fence=1, device_id="box-cpu", attempt=1, cell=cell(**changes), plan=MeasurementPlan(),
        load_group="g", ttl_s=60,
    )  # fmt: skip
    assert bench(settings)._spec(lease, "python").network is network
