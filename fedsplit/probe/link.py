"""The link to a server, measured through an exchange that the caller provides: no socket in here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from fedsplit.devices.profile import Link

Exchange = Callable[[int, int], None]
"""Send that many bytes to the server and receive that many back; returns when both are through."""

SMALLEST, LARGEST = 64 * 1024, 4 * 2**20
"""Bytes of a payload: it grows until it takes several round trips, so that the round trip hardly counts."""
ENOUGH_TRIPS = 4
TRIPS = 7
LOW_PERCENT = 10
MOST = 100


def measure_link(exchange: Exchange, seconds: float = 1.0) -> Link:
    """Latency as half the median round trip; rates as the 10th percentile over payloads, the round trip taken off.

    At least three payloads of at most 4 MiB each way, then as many as fit into ``seconds``. Raises what ``exchange``
    raises.
    """
    trips = sorted(timed(lambda: exchange(1, 1)) for _ in range(TRIPS))
    trip = trips[TRIPS // 2]
    up = _rates(lambda size: exchange(size, 1), trip, seconds / 2)
    down = _rates(lambda size: exchange(1, size), trip, seconds / 2)
    return Link(up_bps=_low(up), down_bps=_low(down), latency_s=float(f"{trip / 2:.3g}"))


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _rates(send: Callable[[int], None], trip: float, seconds: float) -> list[float]:
    size, took = SMALLEST, timed(partial(send, SMALLEST))
    end = time.perf_counter() + seconds
    while size < LARGEST and took < ENOUGH_TRIPS * trip:
        size *= 2
        took = timed(partial(send, size))
    found = [_rate(size, took, trip)]
    while len(found) < 3 or (time.perf_counter() < end and len(found) < MOST):
        found.append(_rate(size, timed(partial(send, size)), trip))
    return found


def _rate(size: int, took: float, trip: float) -> float:
    # Where even the largest payload hides in the round trip, half of the time is taken for the payload's.
    return size / max(took - trip, took / 2)


def _low(values: list[float]) -> float:
    return float(f"{np.percentile(values, LOW_PERCENT):.3g}")
