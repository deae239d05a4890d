"""Memory and threads of this machine, containers' limits included, from copies of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from fedsplit.devices import here

MB = 10**6


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_the_system_counts(tmp_path: Path) -> None:
    assert here.total_memory(tmp_path, tmp_path / "none") == psutil.virtual_memory().total
    assert 0 < here.free_memory(tmp_path, tmp_path / "none") <= psutil.virtual_memory().total


def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "fs", tmp_path / "own"
    own.write_text("0::/pod/box\n")
    write(root)
    write(root / "pod", memory__max=f"{100 * MB}", memory__current=f"{30 * MB}", memory__stat=f"inactive_file {5 * MB}")
    write(root / "pod" / "box", memory__max=f"{80 * MB}", memory__current=f"{1 * MB}")
    assert here.total_memory(root, own) == 80 * MB
    # Pages of files that nobody used lately are given back: 100 - (30 - 5).
    assert here.free_memory(root, own) == 75 * MB


def test_max_means_no_limit_and_a_full_group_has_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    write(tmp_path / "open", memory__max="max", memory__current="7")
    assert here.total_memory(tmp_path / "open", own) == psutil.virtual_memory().total
    write(tmp_path / "full", memory__max="100", memory__current="300")
    assert here.free_memory(tmp_path / "full", own) == 0


def test_first_version_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    root = tmp_path / "fs"
    write(root / "memory", memory__limit_in_bytes=f"{2**63 - 4096}", memory__usage_in_bytes="1")
    write(
        root / "memory" / "docker" / "abc",
        memory__limit_in_bytes=f"{60 * MB}",
        memory__usage_in_bytes=f"{20 * MB}",
        memory__stat=f"cache 1\ntotal_inactive_file {2 * MB}",
    )
    assert here.total_memory(root, own) == 60 * MB
    assert here.free_memory(root, own) == 42 * MB


@pytest.mark.parametrize(("quota", "threads"), [("max 100000", None), ("50000 100000", 1), ("junk", None)])
def test_threads_respect_a_quota(tmp_path: Path, quota: str, threads: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert here.usable_threads(tmp_path) == (threads or here.usable_threads(tmp_path / "none"))


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert here.free_disk(tmp_path / "a" / "b") > 0


def test_the_rest_has_values() -> None:
    assert here.cores() >= 1
    assert here.architecture() == here.architecture().lower()
    assert here.on_battery() in (None, True, False)
