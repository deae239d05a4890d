"""What of the machine itself can be seen without any package: CPU, Python, memory, swap, disk, clock."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from fedsplit_client.doctor.finding import Finding, Level

WANTED = {
    "x86_64": {"sse4_2": "numpy and torch need it", "avx": "some builds need it", "avx2": "torch is slow without"},
    "aarch64": {"asimd": "numpy needs it", "atomics": "some builds of torch need it (ARMv8.1)", "asimddp": "int8"},
}
"""By architecture: what native wheels make use of. Missing ones are told; whether a wheel works is tried."""
NEEDED = {"sse4_2", "asimd"}
OLDEST, NEWEST = (3, 11), (3, 13)
EPOCH = 1_735_689_600
"""1 January 2025: no clock that is right is before it."""
MB = 1_000_000
LEAST_MEMORY, LITTLE_MEMORY = 120 * MB, 600 * MB
"""The edge runtime with a small model; torch with one."""
LEAST_DISK, LITTLE_DISK = 100 * MB, 1000 * MB


def features(cpuinfo: str) -> frozenset[str]:
    """The CPU's features as Linux lists them."""
    found = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    return frozenset(found[0].split()) if found else frozenset()


def cpu_here() -> frozenset[str] | None:
    """This machine's features, named as on Linux; None where the system does not tell."""
    text = _text(Path("/proc/cpuinfo"))
    if not text and sys.platform == "darwin":
        names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
        done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=10, check=False)
        words = done.stdout.lower().replace("sse4.2", "sse4_2").replace("avx1.0", "avx").split()
        # Every Mac with an ARM processor has what is looked for.
        return frozenset(words) if words else frozenset(WANTED["aarch64"])
    return features(text) or None


def lacking(arch: str, have: frozenset[str] | None) -> tuple[str, ...]:
    """Of what native wheels make use of, what this CPU does not have; empty where it is not known."""
    return () if have is None else tuple(name for name in WANTED.get(arch, {}) if name not in have)


def cpu(arch: str, have: frozenset[str] | None) -> Finding:
    """Its features against what native wheels make use of."""
    if have is None:
        return Finding(check="cpu", level="skipped", found=f"{arch}: this system does not list its features")
    lacks = lacking(arch, have)
    if not lacks:
        return Finding(check="cpu", level="ok", found=arch)
    what = "; ".join(f"no {name}: {WANTED[arch][name]}" for name in lacks)
    level: Level = "problem" if NEEDED & set(lacks) else "warning"
    fix = "whether a package works is tried below" if level == "warning" else "use a machine with a newer CPU"
    return Finding(check="cpu", level=level, found=f"{arch}, {what}", fix=fix)


def python(version: tuple[int, int], bits: int, kernel: str) -> Finding:
    """``bits``: of this Python; ``kernel``: the machine as the kernel names it."""
    said = f"Python {version[0]}.{version[1]}, {bits} bit"
    if bits == 32:
        small = "under a 64-bit kernel " if kernel.lower() in ("aarch64", "arm64", "x86_64", "amd64") else ""
        fix = "install the 64-bit edition of the operating system"
        found = f"{said} {small}: there are no packages of onnxruntime or torch for it".replace(" :", ":")
        return Finding(check="python", level="problem", found=found, fix=fix)
    if version < OLDEST:
        fix = f"install Python {OLDEST[0]}.{OLDEST[1]} or newer"
        return Finding(check="python", level="problem", found=f"{said} is too old", fix=fix)
    if version > NEWEST:
        fix = f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} are tested"
        return Finding(check="python", level="warning", found=f"{said} is newer than what is tested", fix=fix)
    return Finding(check="python", level="ok", found=said)


def memory(meminfo: str, swaps: str) -> Iterator[Finding]:
    """From the texts of ``/proc/meminfo`` and ``/proc/swaps``."""
    kb = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, flags=re.MULTILINE)}
    if "MemAvailable" not in kb:
        yield Finding(check="memory", level="skipped", found="this system does not tell")
        return
    free, total, swap = (1024 * kb.get(name, 0) for name in ("MemAvailable", "MemTotal", "SwapTotal"))
    said = f"{free / MB:,.0f} MB free of {total / MB:,.0f} MB"
    if free < LEAST_MEMORY:
        fix = "end other programs, or restart the machine"
        yield Finding(check="memory", level="problem", found=f"{said}: not even the program fits", fix=fix)
    elif free < LITTLE_MEMORY:
        found = f"{said}: enough for the edge runtime, not for torch"
        yield Finding(check="memory", level="warning", found=found, fix="pip install 'fedsplit[edge]' without torch")
    else:
        yield Finding(check="memory", level="ok", found=said)
    yield _swap(swap, total, swaps)


def _swap(swap: int, total: int, swaps: str) -> Finding:
    card = re.search(r"^\S*mmcblk\S*|^/\S*swap\S*\s+file", swaps, flags=re.MULTILINE)
    zram = "zram" in swaps
    if not swap:
        if total >= 1500 * MB:
            return Finding(check="swap", level="ok", found="none")
        fix = "sudo apt install zram-tools, or raise reserve_bytes in the profile"
        return Finding(check="swap", level="warning", found="none: a peak of memory ends a process at once", fix=fix)
    said = f"{swap / MB:,.0f} MB" + (" of compressed memory (zram)" if zram else "")
    if card and not zram:
        found = f"{said} in a file or on an SD card, which is slow and wears it out"
        return Finding(check="swap", level="warning", found=found, fix="use zram instead: sudo apt install zram-tools")
    return Finding(check="swap", level="ok", found=said)


def disk(folder: Path) -> Finding:
    """Can the state be written to ``folder``, and is there room? A file is written, flushed and removed."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".fedsplit-doctor-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror or error}"
        return Finding(check="disk", level="problem", found=found, fix="give another folder: --state FOLDER")
    said = f"{free / MB:,.0f} MB free at {folder}"
    if free < LEAST_DISK:
        return Finding(
            check="disk", level="problem", found=said, fix="free space, or give another folder: --state FOLDER"
        )
    if free < LITTLE_DISK:
        return Finding(check="disk", level="warning", found=f"{said}: room for a small model only", fix="free space")
    return Finding(check="disk", level="ok", found=said)


def clock(now: float) -> Finding:
    """Is it plausible? No message of fedsplit carries a time, so there is none of the server to compare with."""
    said = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if EPOCH <= now < EPOCH + 40 * 31_557_600:
        return Finding(check="clock", level="ok", found=f"{said}, if that is right; a server does not tell its own")
    found = f"{said} cannot be: limits by hour and day would hold at wrong times, and downloads over HTTPS fail"
    return Finding(check="clock", level="problem", found=found, fix="sudo timedatectl set-ntp true")


def machine(folder: Path) -> list[Finding]:
    """All of this file for this machine; ``folder``: where state would be kept."""
    arch = architecture()
    version = sys.version_info[:2]
    return [
        cpu(arch, cpu_here()),
        python((version[0], version[1]), 8 * struct.calcsize("P"), platform.machine()),
        *memory(_text(Path("/proc/meminfo")), _text(Path("/proc/swaps"))),
        disk(folder),
        clock(time.time()),
    ]


def architecture() -> str:
    """``x86_64``, ``aarch64``, …"""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def missing_here() -> Collection[str]:
    """CPU features that are missing on this machine."""
    return lacking(architecture(), cpu_here())


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
