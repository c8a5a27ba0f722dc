from __future__ import annotations

import os
from pathlib import Path

import pytest

from effillm_server.contract.outcome import Fault, FaultKind
from effillm_worker.spool import Spool, Spooled, SpoolFull


def entry(job_id: int = 7, fence: int = 3, message: str = "gone") -> Spooled:
    return Spooled(
        device_id="cpu-1", boot_id="b", job_id=job_id, fence=fence, outcome=Fault(fault=FaultKind.LOST, message=message)
    )


def test_an_outcome_is_found_again_by_the_next_life_of_the_device(tmp_path: Path) -> None:
    Spool(tmp_path).add(entry())
    assert list(Spool(tmp_path).entries()) == [entry()]


def test_outcomes_come_back_oldest_job_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for job_id in (10, 9, 100):
        spool.add(entry(job_id))
    assert [found.job_id for found in spool.entries()] == [9, 10, 100]


def test_attempts_of_one_job_are_kept_apart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(entry(fence=1))
    spool.add(entry(fence=2))
    assert [found.fence for found in spool.entries()] == [1, 2]


def test_a_removed_outcome_is_gone_and_removing_it_twice_is_no_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(entry())
    spool.remove(entry())
    spool.remove(entry())
    assert list(spool.entries()) == []


def test_a_file_torn_by_a_crash_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "0-0.outcome.json.tmp").write_text('{"device_id": "cp')
    assert list(Spool(tmp_path).entries()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_is_set_aside_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(tmp_path)
    (tmp_path / f"{0:020d}-{0:010d}.outcome.json").write_text("not JSON")
    spool.add(entry())
    assert list(spool.entries()) == [entry()]
    assert "spool.unreadable" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.unreadable"))) == 1


def test_the_content_is_synced_before_the_name_appears_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_at_sync: list[list[str]] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        names_at_sync.append(sorted(path.name for path in tmp_path.iterdir()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Spool(tmp_path).add(entry())
    assert names_at_sync == [[entry().name + ".tmp"], [entry().name]]


def test_a_disk_without_room_is_an_error_that_names_the_job_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpoolFull, match=r"job 7 .*No space left"):
        Spool(tmp_path).add(entry())
    assert list(tmp_path.iterdir()) == []
