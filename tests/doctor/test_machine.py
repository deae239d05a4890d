"""What the doctor says of CPU, Python, memory, swap, disk and clock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedsplit_client.doctor.machine import MB, clock, cpu, disk, features, lacking, machine, memory, python

PI4 = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
ATOM = "processor\t: 0\nflags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt\n"


def test_features_that_wheels_use_and_this_cpu_lacks() -> None:
    assert lacking("aarch64", features(PI4)) == ("atomics", "asimddp")
    assert lacking("x86_64", features(ATOM)) == ("avx", "avx2")
    warned = cpu("aarch64", features(PI4))
    assert warned.level == "warning"
    assert "ARMv8.1" in warned.found
    assert cpu("x86_64", features("flags : fpu sse2")).level == "problem"
    assert cpu("x86_64", features("flags : sse4_2 avx avx2")).level == "ok"
    assert cpu("riscv64", None).level == "skipped"


@pytest.mark.parametrize(
    ("version", "bits", "kernel", "level", "words"),
    [((3, 11), 64, "aarch64", "ok", ""), ((3, 10), 64, "x86_64", "problem", "too old"),
     ((3, 11), 32, "aarch64", "problem", "under a 64-bit kernel"), ((3, 11), 32, "armv7l", "problem", "no packages"),
     ((3, 99), 64, "x86_64", "warning", "newer")],
)  # fmt: skip
def test_python_and_the_userland(version: tuple[int, int], bits: int, kernel: str, level: str, words: str) -> None:
    found = python(version, bits, kernel)
    assert found.level == level
    assert words in found.found


def meminfo(free_mb: int, total_mb: int, swap_mb: int) -> str:
    rows = {"MemTotal": total_mb, "MemAvailable": free_mb, "SwapTotal": swap_mb}
    return "".join(f"{name}: {value * MB // 1024:>12} kB\n" for name, value in rows.items())


@pytest.mark.parametrize(
    ("free", "total", "swap", "swaps", "levels"),
    [
        (3000, 8000, 0, "", ["ok", "ok"]),
        (300, 1000, 0, "", ["warning", "warning"]),
        (50, 430, 200, "/var/swap file 100 0 -2", ["problem", "warning"]),
        (300, 1000, 500, "/dev/mmcblk0p3 partition 500 0 -2", ["warning", "warning"]),
        (900, 1000, 500, "/dev/zram0 partition 500 0 100", ["ok", "ok"]),
    ],
)
def test_memory_and_swap(free: int, total: int, swap: int, swaps: str, levels: list[str]) -> None:
    found = list(memory(meminfo(free, total, swap), "Filename Type Size Used Priority\n" + swaps))
    assert [one.level for one in found] == levels, found
    assert [one.level for one in memory("", "")] == ["skipped"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert disk(tmp_path / "not" / "yet").level in ("ok", "warning")
    assert not list(tmp_path.iterdir()), "nothing is left"
    (tmp_path / "file").write_text("")
    found = disk(tmp_path / "file" / "state")
    assert found.level == "problem"
    assert "--state" in found.fix


def test_a_clock_that_cannot_be_right() -> None:
    assert clock(0.0).level == "problem"
    assert clock(time.time()).level == "ok"


def test_this_machine_is_looked_at_without_an_error(tmp_path: Path) -> None:
    assert {"cpu", "python", "memory", "disk", "clock"} <= {one.check for one in machine(tmp_path)}
