"""What this machine has: memory within container limits, cores this process may use, disk, mains or battery.

The operating system does not report a container's limit: the smallest one on the way up the control groups counts.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def total_memory(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """Bytes of memory that this process could ever have."""
    limits = [limit for limit, _ in _limits(root, own)]
    return min([int(psutil.virtual_memory().total), *limits])


def free_memory(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """Bytes that this process can still take, caches that the system gives back counted as free."""
    left = [max(0, limit - used) for limit, used in _limits(root, own)]
    return min([int(psutil.virtual_memory().available), *left])


def _limits(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every control group above this process that limits memory, versions 2 and 1."""
    for line in _text(own).splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        folder = base / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(base):
                yield from _limit(place, names)


def _limit(folder: Path, names: tuple[str, str, str]) -> Iterator[tuple[int, int]]:
    limit, used = (_number(_text(folder / name)) for name in names[:2])
    # Version 1 writes a huge number where there is no limit.
    if limit is not None and used is not None and limit < 2**60:
        yield limit, max(0, used - _stat(folder, names[2]))


def _stat(folder: Path, key: str) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return _number(value) or 0
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def cores() -> int:
    """Physical cores, or what the system counts where it does not tell them apart."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def usable_threads(root: Path = CGROUPS) -> int:
    """Threads that this process may run at once: its CPU mask and the container's quota."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(root / "cpu.max").partition(" ")
    if quota.isdecimal() and period.strip().isdecimal():
        mask = min(mask, max(1, math.ceil(int(quota) / int(period))))
    return max(1, mask)


def others(seconds: float = 0.3) -> float:
    """Share of the machine's cores that is busy while this process waits for ``seconds``."""
    return float(psutil.cpu_percent(seconds)) / 100


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def free_disk(folder: Path) -> int:
    """Bytes free where ``folder`` is, or will be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Bytes of memory that this process held at its peak; 0 where the system does not tell."""
    for line in _text(status).splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    if platform.system() == "Darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0


def on_battery() -> bool | None:
    """True on battery, False on mains, None where the system does not know."""
    state = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if state is None else not state.power_plugged


def architecture() -> str:
    """``x86_64``, ``aarch64``, …"""
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    return names.get(platform.machine().lower(), platform.machine().lower())
