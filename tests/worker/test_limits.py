"""Control groups: made where this machine lets us, and on a recorded tree of each version."""

from __future__ import annotations

from pathlib import Path

from effillm_worker import limits


def hierarchy(folder: Path, kind: str, options: str, path: str) -> tuple[Path, Path]:
    """The files that describe one mounted hierarchy with our group at `path`."""
    membership, mounts = folder / "cgroup", folder / "mountinfo"
    membership.write_text(f"{0 if kind == 'cgroup2' else 4}:{'' if kind == 'cgroup2' else options}:{path}\n")
    mounts.write_text(
        f"20 1 0:5 / /proc rw - proc proc rw\n30 1 0:28 / {folder / 'fs'} rw shared:1 - {kind} {kind} rw,{options}\n"
    )
    (folder / "fs" / path.lstrip("/")).mkdir(parents=True)
    return membership, mounts


def test_groups_are_made_and_removed_or_none_is_the_answer() -> None:
    groups = limits.prepare("test-of-limits", 2**30)
    assert groups.memory is None or groups.memory in groups.all
    for group in groups.all:
        assert group.is_dir()
    if groups.memory is not None:
        limit = [groups.memory / name for name in ("memory.max", "memory.limit_in_bytes")]
        assert [file.read_text().strip() for file in limit if file.exists()] == [str(2**30)]
    groups.remove()
    assert not any(group.exists() for group in groups.all)


def test_a_folder_that_is_no_control_group_holds_nothing(tmp_path: Path) -> None:
    membership, mounts = hierarchy(tmp_path, "cgroup2", "nsdelegate", "/user/scope")
    assert limits.prepare("x", 100, membership, mounts) == limits.Groups()
    assert list((tmp_path / "fs/user/scope").iterdir()) == []


def test_hierarchies_of_other_controllers_are_left_alone(tmp_path: Path) -> None:
    membership, mounts = hierarchy(tmp_path, "cgroup", "cpuset", "/a")
    assert limits.prepare("x", 100, membership, mounts) == limits.Groups()


def test_without_control_groups_there_are_none(tmp_path: Path) -> None:
    assert limits.prepare("x", 100, tmp_path / "none", tmp_path / "none") == limits.Groups()
