"""How the clients of a round share the server's speed and its link, so that the slowest is as fast as possible.

Candidate j of client k takes ``o`` seconds of its own, ``s`` of the whole server, ``u`` up and ``d`` down on the whole
of the server's link. With shares φ and ω it is done after

    o + s/φ + u·max(1/ω, 1/w_up) + d·max(1/ω, 1/w_down)

where w is the share from which on the device's own link is the slower one. The dual: with a price y on the link and
1 - y on speed, a client that must be done by τ pays min_j (1 - y)φ + yω, in closed form (between the two values of w
only one direction still gains from a larger ω, so two pieces suffice; D is u + d, then the one that gains):

    ω = √(D/y)·(√((1-y)s) + √(yD)) / (τ - o),   clipped to its piece,   φ = s / (τ - o - D/ω).

No choice is done by τ when all together pay more than there is: for every y that τ is a certified lower bound, and
bisection on y, against what is asked for too much, finds the best one. Choices met on the way are then settled each
for itself, which is a convex problem without a gap, and the fastest is kept. Shape letters: C choices settled at once,
K clients (equal ones once, counted n times), G candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.grid import Floats, Ints

STEPS = 40
"""Of the search for a deadline; about ten suffice."""
NEAR = 1e-6
PRICES = 14
STEEP = 16.0
"""The largest |log(y / (1 - y))|: beyond it one of the two is free."""
MOST_CHOICES = 128
MIXES = 6
ROUNDS = 4
MOST_SWAPS = 400
"""Up to so many candidates of all clients together, single changes to the best choice are tried as well."""
SAMPLE = 256
"""Rows of a large fleet that the price is looked for on; the bound is then taken over all of them."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Seconds of each candidate (module docstring), infinite where it does not fit; a row has at least one that does.

    ``near_K2``: the device's own rates up and down over the server's. ``count_K``: clients of a row.
    """

    own_KG: Floats
    server_KG: Floats
    up_KG: Floats
    down_KG: Floats
    near_K2: Floats
    count_K: Ints

    def every(self, step: int) -> Demand:
        """Each ``step``-th row, standing for its neighbours."""
        part = {one.name: getattr(self, one.name)[::step] for one in fields(self)}
        return Demand(**part | {"count_K": self.count_K[::step] * step})


@dataclass(frozen=True, kw_only=True)
class Split:
    """``bound_s``: no choice makes the slowest step shorter; the shares of speed and link, each at most all of it."""

    bound_s: float
    slowest_s: float
    share_K: Floats
    link_K: Floats


def divide_both(demand: Demand, total: float = 1.0) -> Split:
    """Shares of ``total`` server and ``total`` link that make the largest step time smallest."""
    market = _Market.of(demand, total)
    step = max(1, len(demand.count_K) // SAMPLE)
    if step == 1:
        bound_C, log_C, visited = market.priced()
    else:
        _, log_C, _ = _Market.of(demand.every(step), total).priced()
        bound_C, soon_C = market.soonest(log_C)
        visited = [market.paid(soon_C, log_C + shift).pick_CK[0] for shift in (-0.05, 0.0, 0.05)]
    best = _settled(demand, total, _choices(visited))
    for _ in range(ROUNDS if demand.own_KG.size <= MOST_SWAPS else 0):
        better = _settled(demand, total, _swaps(demand, best.pick_K))
        if better.slowest_s >= best.slowest_s * (1 - NEAR):
            break
        best = better
    return Split(bound_s=float(bound_C[0]), slowest_s=best.slowest_s, share_K=best.share_K, link_K=best.link_K)


@dataclass(frozen=True, kw_only=True)
class _Settled:
    slowest_s: float
    pick_K: Ints
    share_K: Floats
    link_K: Floats


def _settled(demand: Demand, total: float, pick_CK: Ints) -> _Settled:
    """The fastest of these choices, with its own best shares."""
    market = _Market.of(demand, total, pick_CK)
    share_CK, link_CK = market.shares(market.priced()[1])
    slowest_C = market.finish(share_CK, link_CK).max(axis=1)
    best = int(slowest_C.argmin())
    return _Settled(
        slowest_s=float(slowest_C[best]), pick_K=pick_CK[best], share_K=share_CK[best], link_K=link_CK[best]
    )


def _swaps(demand: Demand, pick_K: Ints) -> Ints:
    """Every choice in which one client does something else."""
    clients, options = np.nonzero(np.isfinite(demand.own_KG))
    found = np.repeat(pick_K[None], len(clients), axis=0)
    found[np.arange(len(clients)), clients] = options
    return found


def _choices(visited: Sequence[Ints]) -> Ints:
    """The choices worth settling (C, K): those visited, and mixtures of them."""
    found = {tuple(pick_K.tolist()): pick_K for pick_K in visited}
    per_client = [sorted(set(options)) for options in zip(*found, strict=True)]
    if np.prod([float(len(options)) for options in per_client]) <= MOST_CHOICES:
        return np.array(list(product(*per_client)), dtype=np.int64)
    # The last two lie on both sides of the best price: between them clients change one by one.
    ends = list(found.values())[-2:]
    differ = np.flatnonzero(ends[0] != ends[-1])
    for part in range(1, MIXES + 1):
        mixed = ends[0].copy()
        changed = differ[: len(differ) * part // (MIXES + 1)]
        mixed[changed] = ends[-1][changed]
        found[tuple(mixed.tolist())] = mixed
    return np.stack(list(found.values()))


@dataclass(frozen=True, kw_only=True)
class _Paid:
    cost_CK: Floats
    pick_CK: Ints
    share_CK: Floats
    link_CK: Floats
    gain_CK: Floats
    """How much less is paid for a deadline one second later."""


@dataclass(frozen=True, kw_only=True)
class _Market:
    """C independent problems over the same clients: all candidates once, or C choices of one candidate a client."""

    own_CKG: Floats
    server_CKG: Floats
    up_CKG: Floats
    down_CKG: Floats
    near_K2: Floats
    count_K: Ints
    total: float

    @classmethod
    def of(cls, demand: Demand, total: float, picks_CK: Ints | None = None) -> _Market:
        """All candidates as one problem, or each of some choices with one candidate a client."""

        def taken(values_KG: Floats) -> Floats:
            if picks_CK is None:
                return values_KG[None]
            chosen: Floats = values_KG[np.arange(len(values_KG)), picks_CK][..., None]
            return chosen

        return cls(
            own_CKG=taken(demand.own_KG), server_CKG=taken(demand.server_KG), up_CKG=taken(demand.up_KG),
            down_CKG=taken(demand.down_KG), near_K2=demand.near_K2, count_K=demand.count_K, total=total,
        )  # fmt: skip

    def finish(self, share_CK: Floats, link_CK: Floats) -> Floats:
        """Seconds of the fastest candidate of each client at these shares (C, K)."""
        share, link = share_CK[..., None], link_CK[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            body = np.where(self.server_CKG > 0, self.server_CKG / share, 0.0)
            up = np.where(self.up_CKG > 0, self.up_CKG / np.minimum(link, self.near_K2[:, :1]), 0.0)
            down = np.where(self.down_CKG > 0, self.down_CKG / np.minimum(link, self.near_K2[:, 1:]), 0.0)
        done: Floats = (self.own_CKG + body + up + down).min(axis=2)
        return done

    def paid(self, deadline_C: Floats, log_C: Floats) -> _Paid:
        """What each client pays at least to be done by the deadline, at the price y = 1 / (1 + exp(-log))."""
        price = 1 / (1 + np.exp(-log_C))[:, None, None]
        left = deadline_C[:, None, None] - self.own_CKG
        up_first = self.near_K2[:, :1] <= self.near_K2[:, 1:]
        low, high = self.near_K2.min(axis=1)[:, None], self.near_K2.max(axis=1)[:, None]
        later = np.where(up_first, self.down_CKG, self.up_CKG)
        both = self.up_CKG + self.down_CKG
        nothing = np.zeros_like(low)
        found = _piece(price, left, self.server_CKG, both, nothing, low)
        # Where the server's link is the slower one for any share, the second piece is empty.
        if (low < 1).any():
            with np.errstate(invalid="ignore"):  # nothing fits there: no time is left anyway
                rest = left - (both - later) / low
            other = _piece(price, rest, self.server_CKG, later, low, high)
            better = other[0] < found[0]
            found = tuple(np.where(better, b, a) for a, b in zip(found, other, strict=True))
        pick = found[0].argmin(axis=2)[..., None]
        cost, share, link, gain = (np.take_along_axis(values, pick, axis=2)[..., 0] for values in found)
        return _Paid(cost_CK=cost, pick_CK=pick[..., 0], share_CK=share, link_CK=link, gain_CK=gain)

    def soonest(self, log_C: Floats, guess_C: Floats | None = None) -> tuple[Floats, Floats]:
        """(a deadline that cannot be paid, or the smallest at all, and one that can), next to each other (C)."""
        low, high = self._ends
        middle = (low + high) / 2 if guess_C is None else guess_C
        for _ in range(STEPS):
            paid = self.paid(middle, log_C)
            over = paid.cost_CK @ self.count_K - self.total
            low, high = np.where(over > 0, middle, low), np.where(over > 0, high, middle)
            if (high - low <= NEAR * high).all():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = (middle + over / (paid.gain_CK @ self.count_K)) * (1 + np.sign(over) * NEAR / 3)
            inside = (newton > low) & (newton < high)
            middle = np.where(inside, newton, (low + high) / 2)
        return low, high

    def priced(self) -> tuple[Floats, Floats, list[Ints]]:
        """(lower bounds, logarithms of the prices at which both are asked for alike, choices met in problem 0)."""
        low, high = np.full(len(self.own_CKG), -STEEP), np.full(len(self.own_CKG), STEEP)
        bound = np.zeros(len(low))
        visited: list[Ints] = []
        soon = None
        for _ in range(PRICES):
            middle = (low + high) / 2
            bottom, soon = self.soonest(middle, soon)
            bound = np.maximum(bound, bottom)
            paid = self.paid(soon, middle)
            visited.append(paid.pick_CK[0])
            dear = (paid.link_CK - paid.share_CK) @ self.count_K > 0
            low, high = np.where(dear, middle, low), np.where(dear, high, middle)
        return bound, (low + high) / 2, visited

    def shares(self, log_C: Floats) -> tuple[Floats, Floats]:
        """The shares paid at these prices; what is left over is divided equally."""
        paid = self.paid(self.soonest(log_C)[1], log_C)
        return self._whole(paid.share_CK), self._whole(paid.link_CK)

    def _whole(self, part_CK: Floats) -> Floats:
        asked, clients = part_CK @ self.count_K, self.count_K.sum()
        scaled = part_CK * np.minimum(1.0, self.total / np.maximum(asked, 1e-30))[:, None]
        spare = np.maximum(0.0, self.total - asked)[:, None] / clients
        whole: Floats = np.maximum(scaled + spare, _LEAST * self.total / clients)
        return whole

    @cached_property
    def _ends(self) -> tuple[Floats, Floats]:
        """No deadline below the first can be met, and an equal share for everybody meets the second."""
        ones = np.full(self.own_CKG.shape[:2], self.total)
        equal = ones / self.count_K.sum()
        return self.finish(ones, ones).max(axis=1), self.finish(equal, equal).max(axis=1) * (1 + 1e-9)


_LEAST = 1e-6
"""A client without need keeps this part of an equal share, so that its other candidates have a price."""


def _piece(price: Floats, left: Floats, server: Floats, wire: Floats, low: Floats, high: Floats) -> tuple[Floats, ...]:
    """(cost, share of speed, share of the link, gain) of the cheapest way with low ≤ ω ≤ high; infinite: none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt((1 - price) * server) + np.sqrt(price * wire)
        link = np.clip(np.sqrt(wire / price) * root / left, low, high)
        gap = left - np.where(wire > 0, wire / link, 0.0)
        share = np.where(server > 0, server / gap, 0.0)
        possible: NDArray[np.bool_] = (left > 0) & (gap >= -1e-12 * left) & (share >= 0)
        cost = np.where(possible, (1 - price) * share + price * link, np.inf)
        gain = np.where(server > 0, (1 - price) * share**2 / server, np.where(wire > 0, price * link**2 / wire, 0.0))
    return cost, share, link, gain
