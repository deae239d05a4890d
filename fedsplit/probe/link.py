"""The link to a server, measured through an exchange that the caller provides: no socket in here.

Payloads begin small and grow while they are too quick to be timed well, so a slow link is not flooded and a fast one is
not measured by its latency. Time and bytes are bounded: whatever the link, it takes about as long as asked, and never
more than 8 MiB each way.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.profile import Link
from fedsplit.probe.repeat import timed
from fedsplit.wire.messages import PROBE_BYTES

Exchange = Callable[[int, int], None]
"""Send that many bytes to the server and receive that many back; returns when both are through."""

SMALLEST, LARGEST = 1024, PROBE_BYTES
MOST_BYTES = 8 * 2**20
"""Each way. A fast link is through with it in less than the time that was asked for."""
ENOUGH_TRIPS, ENOUGH_S, LONG_S = 3, 0.05, 0.3
"""A payload stops growing where it takes, beyond the round trip, this many of them and this long: then neither the
latency counts, nor the timer, nor what routers let through in one burst. 0.3 s are enough in any case."""
NEARLY, MOST_GROWTH = 0.8, 16
TRIPS = 7
FEWEST = 3
LOW_PERCENT = 10
HIGH_PERCENT = 75
"""The rate of a server that computes for others meanwhile: its answers wait, and the link is not to blame."""


def measure_link(exchange: Exchange, seconds: float = 1.5, *, percent: float = LOW_PERCENT) -> Link:
    """Latency as half the median round trip; rates as the 10th percentile (``percent``) over payloads of one size,
    the shortest round trip taken off.

    At least three payloads each way, then as many as fit into ``seconds`` and 8 MiB. Raises what ``exchange`` raises.
    """
    trips = _trips(exchange, 0.2 * seconds)
    # Of two, the shorter one: the first may have paid for the connection.
    trip = trips[(len(trips) - 1) // 2]
    up = _rates(lambda size: exchange(size, 1), trips[0], 0.4 * seconds)
    down = _rates(lambda size: exchange(1, size), trips[0], 0.4 * seconds)
    return Link(up_bps=_low(up, percent), down_bps=_low(down, percent), latency_s=float(f"{trip / 2:.3g}"))


def steady(before: Link | None, now: Link, within: float = 0.25) -> Link:
    """``before`` where ``now`` says the same but for the noise of measuring, else ``now``: plans shall not flicker."""
    if before is None:
        return now
    pairs = (before.up_bps, now.up_bps), (before.down_bps, now.down_bps), (before.latency_s, now.latency_s)
    close = all(abs(new - old) <= within * old for old, new in pairs)
    same = before.source.rpartition(" on ")[0] == now.source.rpartition(" on ")[0]
    return before if close and same else now


def noise(size: int = PROBE_BYTES) -> NDArray[np.uint8]:
    """Bytes that nothing on the way can make fewer of; the same ones on every machine."""
    # Not from numpy.random: importing it keeps several MB on a small device for good.
    return np.frombuffer(hashlib.shake_128(b"fedsplit").digest(size), np.uint8)


def _trips(exchange: Exchange, seconds: float) -> list[float]:
    """Up to seven round trips, sorted: as many as fit into ``seconds``, at least two."""
    end = time.perf_counter() + seconds
    trips: list[float] = []
    while len(trips) < 2 or (len(trips) < TRIPS and time.perf_counter() < end):
        trips.append(timed(partial(exchange, 1, 1)))
    return sorted(trips)


def _rates(send: Callable[[int], None], trip: float, seconds: float) -> list[float]:
    """Bytes per second of several payloads of one size: the smallest that takes long enough."""
    enough = max(ENOUGH_S, min(ENOUGH_TRIPS * trip, LONG_S))
    end = time.perf_counter() + seconds
    size, took = SMALLEST, timed(partial(send, SMALLEST))
    spent = size
    while size < LARGEST and took - trip < NEARLY * enough:
        size = min(LARGEST, size * _growth(enough / max(took - trip, enough / MOST_GROWTH)))
        took = timed(partial(send, size))
        spent += size
    found = [_rate(size, took, trip)]
    while len(found) < FEWEST or (time.perf_counter() + took < end and spent + size <= MOST_BYTES):
        found.append(_rate(size, timed(partial(send, size)), trip))
        spent += size
    return found


def _growth(room: float) -> int:
    """By what a payload grows that could take ``room`` times as long: doubled at least, and never far too much."""
    return max(2, min(MOST_GROWTH, math.ceil(room)))


def _rate(size: int, took: float, trip: float) -> float:
    # Where even the largest payload hides in the round trip, half of the time is taken for the payload's.
    return size / max(took - trip, took / 2)


def _low(values: list[float], percent: float) -> float:
    return float(f"{np.percentile(values, percent):.3g}")
