"""The fleet's integer program: who does what, so that all fit and the slowest step is as short as can be.

For a deadline τ the shares that candidates need are numbers, and a choice is a solution of

    Σ_j x_kj = n_k;   Σ need_kj x_kj ≤ 1;   Σ bytes_kj x_kj + layer_bytes Σ_l z_l ≤ room;   Σ_j hold_kjl x_kj ≤ n_k z_l

with x whole (clients of a row that take candidate j) and z 0 or 1 (the server holds layer l), so bisection on τ is
exact. HiGHS solves it (scipy.optimize.milp, an optional dependency). It works without a clock, so equal inputs give
equal answers on every machine; a problem that takes more than ``NODES`` counts as one without a solution.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from fedsplit.plan.coupling import NEAR, Offers, Room, slowest
from fedsplit.plan.grid import Floats, Ints

NODES = 2000
HALVINGS = 14


def solver_here() -> bool:
    """Whether scipy is installed."""
    return find_spec("scipy") is not None


def improved(offers: Offers, room: Room, bound_s: float, known_KJ: Ints | None) -> Ints | None:
    """The choice with the shortest slowest step that fits; ``known_KJ``: one that fits, ``bound_s``: none is faster.

    None: there is none at all. Needs scipy (``solver_here``).
    """
    program = _Program(offers, room)
    best = known_KJ if known_KJ is not None else program.least_bytes()
    if best is None:
        return None
    low, high = bound_s, slowest(offers, best, room.total)
    for _ in range(HALVINGS):
        if high - low <= NEAR * high:
            break
        middle = (low + high) / 2
        found = program.by(middle)
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, slowest(offers, found, room.total))
    return best


class _Program:
    """Variables: x of every candidate that is offered, row by row, then z of every layer."""

    def __init__(self, offers: Offers, room: Room) -> None:
        from scipy import sparse

        self.offers, self.room = offers, room
        self.rows, self.columns = np.nonzero(offers.offered)
        count, layers = len(self.rows), room.layers
        ones = np.ones(count)
        each = sparse.csr_array((ones, (self.rows, np.arange(count))), shape=(len(offers.count_K), count + layers))
        weights = np.append(self._of(offers.bytes_KJ), np.full(layers, room.layer_bytes)) / max(1, room.bytes)
        self.matrix: Any = sparse.vstack([each, sparse.csr_array(weights[None]), self._held()])
        clients = offers.count_K.astype(np.float64)
        self.low = np.concatenate([clients, [0.0], np.full(self.matrix.shape[0] - len(clients) - 1, -np.inf)])
        self.high = np.concatenate([clients, [1.0], np.zeros(self.matrix.shape[0] - len(clients) - 1)])
        self.most = np.append(clients[self.rows], np.ones(layers))

    def least_bytes(self) -> Ints | None:
        """The choice of fewest bytes, whatever it takes; None: even that is too much."""
        weights = np.append(self._of(self.offers.bytes_KJ), np.full(self.room.layers, self.room.layer_bytes))
        return self._solved(weights / max(1, self.room.bytes), self.most, None)

    def by(self, deadline: float) -> Ints | None:
        """The choice that needs least of the server to be done by then; None: there is none."""
        need = np.append(self._of(self.offers.needs(deadline)), np.zeros(self.room.layers))
        possible = np.isfinite(need)
        return self._solved(np.where(possible, need, 0.0), np.where(possible, self.most, 0.0), need)

    def _of(self, values_KJ: Floats | Ints) -> Floats:
        found: Floats = values_KJ[self.rows, self.columns].astype(np.float64)
        return found

    def _held(self) -> Any:
        """Σ_j hold x - n z ≤ 0, a row a client and layer that any of its candidates needs."""
        from scipy import sparse

        holds = self.offers.holds(self.room.layers)[self.rows, self.columns]
        candidate, layer = np.nonzero(holds)
        kinds, index = np.unique(np.stack([self.rows[candidate], layer]), axis=1, return_inverse=True)
        line, count = np.arange(kinds.shape[1]), len(self.rows)
        shape = kinds.shape[1], count + self.room.layers
        x = sparse.csr_array((np.ones(len(candidate)), (index.reshape(-1), candidate)), shape=shape)
        z = sparse.csr_array((self.offers.count_K[kinds[0]].astype(np.float64), (line, count + kinds[1])), shape=shape)
        return x - z

    def _solved(self, cost: Floats, most: Floats, need: Floats | None) -> Ints | None:
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp

        limits = [LinearConstraint(self.matrix, self.low, self.high)]
        if need is not None:
            line = sparse.csr_array(np.where(np.isfinite(need), need, 0.0)[None])
            limits.append(LinearConstraint(line, -np.inf, self.room.total))
        found = milp(
            cost, integrality=np.ones(len(cost)), bounds=Bounds(0, most), constraints=limits,
            options={"node_limit": NODES, "mip_rel_gap": 0.01},
        )  # fmt: skip
        if found.x is None:
            return None
        picks_KJ = np.zeros(self.offers.own_KJ.shape, dtype=np.int64)
        picks_KJ[self.rows, self.columns] = np.rint(found.x[: len(self.rows)]).astype(np.int64)
        return picks_KJ if self.room.taken(self.offers, picks_KJ) <= self.room.bytes else None
