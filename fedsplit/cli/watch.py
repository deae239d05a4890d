"""Resident memory of other processes over time: where it peaked, and whether it still grows.

    with Watch(pid) as watch:
        ...
    watch.usage().growth_bytes_per_s

The peak is that of all resident memory. Growth, start and end are of private memory, where the platform tells the two
apart: pages of a memory-mapped model come and go as the system likes, and say nothing about a leak.

The growth is the median slope over all pairs of samples (Theil 1950, Sen 1968) after a settling time: one burst moves
an average, it does not move a median.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from fedsplit.errors import ConfigError, Problem

MOST = 512
"""Samples that the growth is computed from; more are thinned, because the pairs grow as their square."""
SETTLING = 0.2
"""Share of the samples that is left out at the start: caches fill, allocators warm up."""


class Sample(NamedTuple):
    """Resident and private bytes at ``at_s`` seconds after the watch began."""

    at_s: float
    rss_bytes: int
    private_bytes: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a watch saw. ``start_bytes``, ``end_bytes``: medians of the first and last tenth after settling, private."""

    seconds: float
    samples: int
    start_bytes: int
    end_bytes: int
    peak_bytes: int
    growth_bytes_per_s: float


class Watch:
    """Context manager: samples the process ``pid`` every ``every_s`` seconds from a thread until it ends or we do.

    Raises ConfigError on entering when there is no such process.
    """

    def __init__(self, pid: int, every_s: float = 0.05) -> None:
        self.pid, self.every_s = pid, every_s
        self.samples: list[Sample] = []
        self._high_water, self._marked_s = 0, math.inf
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {pid}", daemon=True)

    def __enter__(self) -> Watch:
        try:
            self._process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            found = f"no process {self.pid}"
            raise ConfigError([Problem("pid", found, "a process that runs", "start it first")]) from None
        self._begun = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def mark(self) -> None:
        """What comes after the last mark does not count: after the last step a process tidies up and shrinks."""
        self._marked_s = time.monotonic() - self._begun

    def usage(self) -> Usage:
        """All that was seen so far, or up to the last mark."""
        return summary([sample for sample in self.samples if sample.at_s <= self._marked_s], self._high_water)

    def _run(self) -> None:
        while not self._done.wait(self.every_s):
            if not self._sample():
                return

    def _sample(self) -> bool:
        """False once the process is gone, or only its entry in the table is left."""
        try:
            memory = self._process.memory_info()
        except psutil.Error:
            return False
        if memory.rss == 0:
            return False
        private = memory.rss - getattr(memory, "shared", 0)
        self.samples.append(Sample(time.monotonic() - self._begun, memory.rss, private))
        self._high_water = max(self._high_water, high_water(self.pid))
        return True


def high_water(pid: int) -> int:
    """The kernel's own peak of resident bytes since the process began, which no sampling misses; 0 where unknown."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def summary(samples: list[Sample], peak_bytes: int = 0) -> Usage:
    """The numbers of a series; ``peak_bytes`` is a peak known from elsewhere."""
    settled = samples[int(SETTLING * len(samples)) :]
    tenth = max(1, len(settled) // 10)
    return Usage(
        seconds=samples[-1].at_s - samples[0].at_s if samples else 0.0,
        samples=len(samples),
        start_bytes=_median(settled[:tenth]),
        end_bytes=_median(settled[-tenth:]),
        peak_bytes=max([peak_bytes, *(sample.rss_bytes for sample in samples)]),
        growth_bytes_per_s=growth(settled),
    )


def growth(samples: list[Sample]) -> float:
    """Private bytes a second: the median slope over all pairs of at most ``MOST`` samples; 0 for fewer than two."""
    thinned = samples[:: 1 + len(samples) // MOST]
    slopes = [
        (late.private_bytes - early.private_bytes) / (late.at_s - early.at_s)
        for index, early in enumerate(thinned)
        for late in thinned[index + 1 :]
        if late.at_s > early.at_s
    ]
    return statistics.median(slopes) if slopes else 0.0


def _median(samples: list[Sample]) -> int:
    return int(statistics.median(sample.private_bytes for sample in samples)) if samples else 0
