"""What the owner's limits are checked against: the time of day, power, heat, and what other programs compute.

A record of functions, so that tests give their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from fedsplit.devices.here import on_battery

THERMAL = Path("/sys/class/thermal")
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
WINDOW_S = 2.0
"""A share of computing is taken over at least so long."""


@dataclass(frozen=True)
class Sensors:
    """``now``: the device's own calendar and clock; ``clock``: seconds that only grow; ``battery``: None where unknown;
    ``others``: the share of the machine that other programs compute with, 0 to 1; ``celsius``: None without a sensor.
    """

    now: Callable[[], datetime]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    battery: Callable[[], bool | None]
    others: Callable[[], float]
    celsius: Callable[[], float | None]


def of_this_machine() -> Sensors:
    """The real ones."""
    return Sensors(datetime.now, time.monotonic, time.sleep, on_battery, Others(), hottest)


class Others:
    """The share of the machine's cores that other processes computed with since the last call that was long enough."""

    def __init__(self) -> None:
        self._own = psutil.Process(os.getpid())
        self._at, self._busy_s, self._own_s = self._read()
        self._share = 0.0

    def __call__(self) -> float:
        """0 before the first window is over."""
        at, busy_s, own_s = self._read()
        passed_s = at - self._at
        if passed_s >= WINDOW_S:
            others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
            self._share = min(1.0, max(0.0, others_s / (passed_s * (os.cpu_count() or 1))))
            self._at, self._busy_s, self._own_s = at, busy_s, own_s
        return self._share

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        # Guests are counted in user already; waiting for a disk is not computing.
        busy_s = sum(times) - times.idle - sum(getattr(times, name, 0.0) for name in ("iowait", "guest", "guest_nice"))
        own = self._own.cpu_times()
        return time.monotonic(), busy_s, own.user + own.system


def hottest(thermal: Path = THERMAL) -> float | None:
    """°C of the processor's hottest part; None where no sensor tells."""
    read = getattr(psutil, "sensors_temperatures", None)
    try:
        chips = read() if read is not None else {}
    except (OSError, RuntimeError):
        chips = {}
    found = [one.current for chip in CPU_CHIPS for one in chips.get(chip, ())]
    return max(found) if found else _zones(thermal)


def _zones(thermal: Path) -> float | None:
    """The kernel's thermal zones, in thousandths of a degree."""
    found = []
    for zone in thermal.glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)
