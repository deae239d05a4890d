"""How long a piece of work takes on a machine that others use, too: the fastest quarter, and how far the rest strays.

A profile is kept for good. A median taken while a browser starts would make the device slow for ever; the fastest
quarter is what the machine does when it is let, and what runs show beyond it is learnt (``time_factor``). How much the
rest strays is kept beside it, so that a reader sees whether to trust the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

QUICK_PERCENT, SLOW_PERCENT = 25, 90
MOST = 200


@dataclass(frozen=True)
class Taken:
    """Seconds of one repetition; ``slowdown``: the 90th percentile over it, 1 on a machine that nobody disturbed."""

    seconds: float
    slowdown: float = 1.0


def repeated(work: Callable[[], object], seconds: float) -> Taken:
    """``work`` once to warm up, then at least once, at most 200 times, for about ``seconds`` altogether."""
    end = time.perf_counter() + seconds
    work()
    times = [timed(work)]
    while time.perf_counter() < end and len(times) < MOST:
        times.append(timed(work))
    quick, slow = np.percentile(times, (QUICK_PERCENT, SLOW_PERCENT))
    return Taken(float(quick), float(slow / quick))


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
