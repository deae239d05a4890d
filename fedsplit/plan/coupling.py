"""Choices of all clients together that fit what the server has once: memory, with the weights held only once.

A candidate of a client takes ``own`` seconds without the server, ``server`` seconds of the whole of it, ``bytes`` of
its memory, and the layers [first, stop). All are done by τ when the shares they need, s / (τ - o), add up to at most
all of the server (``fleet``), and fit when

    Σ bytes + layer_bytes · |layers that anybody needs|  ≤  room.

``relieved`` is quick and needs no library: a price on bytes, the layers held to a window, clients moved one by one
from the cheap side of the price to the other. ``integer`` closes what is left. Shape letters: K clients (equal ones
once, counted n times), J candidates, I clients one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.grid import Floats, Ints

PRICES = 24
STEEP = 9.0
"""Decimal logarithm of the highest price of all bytes of the largest candidate, in servers."""
DEADLINES = 16
MOST_WINDOWS = 40
NEAR = 1e-3
"""A slowest step this close to the best is as good."""


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What each client may do; ``own_KJ`` is infinite where a row has fewer candidates. ``count_K``: its clients."""

    own_KJ: Floats
    server_KJ: Floats
    bytes_KJ: Ints
    first_KJ: Ints
    stop_KJ: Ints
    count_K: Ints

    @property
    def offered(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.isfinite(self.own_KJ)
        return found

    def needs(self, deadline: float) -> Floats:
        """The share of the server with which a candidate is done by then; infinite if none is enough."""
        left = deadline - self.own_KJ
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.where(self.server_KJ > 0, self.server_KJ / left, 0.0)
        found: Floats = np.where(self.offered & ((left > 0) | ((left >= 0) & (self.server_KJ == 0))), need, np.inf)
        return found

    def soonest(self, total: float) -> float:
        """No choice is done by then, each client having all of the server."""
        return float(np.where(self.offered, self.own_KJ + self.server_KJ / total, np.inf).min(axis=1).max())

    def holds(self, layers: int) -> NDArray[np.bool_]:
        """Whether a candidate needs a layer on the server (K, J, layer)."""
        layer = np.arange(layers)
        found: NDArray[np.bool_] = (self.first_KJ[..., None] <= layer) & (layer < self.stop_KJ[..., None])
        return found & self.offered[..., None]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is: bytes of the server, bytes of a layer's weights, layers, the part of the server's speed."""

    bytes: int
    layer_bytes: int
    layers: int
    total: float = 1.0

    def taken(self, offers: Offers, picks_KJ: Ints) -> int:
        """Bytes of a choice; ``picks_KJ``: how many clients of a row take a candidate."""
        chosen = picks_KJ > 0
        held = int((offers.holds(self.layers) & chosen[..., None]).any(axis=(0, 1)).sum())
        return int((offers.bytes_KJ * picks_KJ)[chosen].sum()) + held * self.layer_bytes


def slowest(offers: Offers, picks_KJ: Ints, total: float) -> float:
    """The slowest step of a choice at its own best shares: bisection on Σ s / (τ - o) ≤ total."""
    chosen = picks_KJ > 0
    own, server, count = offers.own_KJ[chosen], offers.server_KJ[chosen], picks_KJ[chosen]
    low, high = float((own + server / total).max()), float((own + server * count.sum() / total).max())
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.where(server > 0, server / (middle - own), 0.0)
        late = middle < own
        if late.any() or float((need * count).sum()) > total:
            low = middle
        else:
            high = middle
    return high


def relieved(offers: Offers, room: Room, bound_s: float) -> Ints | None:
    """A choice that fits, its slowest step near the best (K, J); None: none was found. ``bound_s``: none is faster."""
    row_I = np.repeat(np.arange(len(offers.count_K)), offers.count_K)
    alone = Offers(
        **{one.name: getattr(offers, one.name)[row_I] for one in fields(offers)} | {"count_K": row_I * 0 + 1}
    )
    ends = (alone.own_KJ + alone.server_KJ * len(row_I) / room.total)[alone.offered]
    high, best_I = float(ends.max()) * (1 + 1e-9), None
    for window in _windows(alone):
        low, deadline = bound_s, high
        for _ in range(DEADLINES):
            found = _chosen(alone, room, window, deadline)
            if found is None and deadline == high:
                break
            if found is None:
                low = deadline
            else:
                best_I, high = found, deadline
            if high - low <= NEAR * high:
                break
            deadline = (low + high) / 2
    if best_I is None:
        return None
    picks_KJ = np.zeros(offers.own_KJ.shape, dtype=np.int64)
    np.add.at(picks_KJ, (row_I, best_I), 1)
    return picks_KJ


def least_bytes(offers: Offers, room: Room) -> int:
    """What the choice takes that takes least, each client held to the same run of layers."""
    found = []
    for first, stop in _windows(offers):
        inside = (offers.first_KJ >= offers.stop_KJ) | ((offers.first_KJ >= first) & (offers.stop_KJ <= stop))
        size_K = np.where(inside & offers.offered, offers.bytes_KJ.astype(np.float64), np.inf).min(axis=1)
        found.append(float(size_K @ offers.count_K) + (stop - first) * room.layer_bytes)
    return int(min(size for size in found if np.isfinite(size)))


def _windows(offers: Offers) -> list[tuple[int, int]]:
    """Runs of layers to hold clients to, the longest first; some of them where there are many."""
    used = offers.offered & (offers.first_KJ < offers.stop_KJ)
    firsts, stops = np.unique(offers.first_KJ[used]), np.unique(offers.stop_KJ[used])
    every = [(int(first), int(stop)) for first in firsts for stop in stops if first < stop]
    every.sort(key=lambda window: (window[0] - window[1], window))
    step = max(1, len(every) // MOST_WINDOWS)
    return [*every[::step], (0, 0)]


def _chosen(alone: Offers, room: Room, window: tuple[int, int], deadline: float) -> Ints | None:
    """Everybody's candidate with bodies inside the window, done by the deadline, within the room; None: none found."""
    first, stop = window
    inside = (alone.first_KJ >= alone.stop_KJ) | ((alone.first_KJ >= first) & (alone.stop_KJ <= stop))
    need_IJ = np.where(inside, alone.needs(deadline), np.inf)
    left = room.bytes - (stop - first) * room.layer_bytes
    if not np.isfinite(need_IJ).any(axis=1).all():
        return None
    clients, scale = np.arange(len(need_IJ)), max(1, int(alone.bytes_KJ.max()))

    def at(price: float) -> Ints:
        cost = need_IJ + price * (alone.bytes_KJ / scale) if price else need_IJ
        picked: Ints = cost.argmin(axis=1)
        return picked

    def taken(pick_I: Ints) -> int:
        return int(alone.bytes_KJ[clients, pick_I].sum())

    cheap, dear = at(0.0), at(10.0**STEEP)
    if taken(dear) > left:
        return None
    low, high = -STEEP, STEEP
    for _ in range(PRICES if taken(cheap) > left else 0):
        middle = (low + high) / 2
        pick_I = at(10.0**middle)
        if taken(pick_I) > left:
            cheap, low = pick_I, middle
        else:
            dear, high = pick_I, middle
    saved = alone.bytes_KJ[clients, cheap] - alone.bytes_KJ[clients, dear]
    moved = np.cumsum(saved) - saved < taken(cheap) - left
    pick_I = np.where(moved, dear, cheap)
    fits = taken(pick_I) <= left and float(need_IJ[clients, pick_I].sum()) <= room.total
    return pick_I if fits else None
