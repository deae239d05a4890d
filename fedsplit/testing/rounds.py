"""Rounds of made-up clients for the laws: modules whose M, N and R are pairwise different primes.

None is square and no side equals a rank, so that no transposed product passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.parts import Side
from fedsplit.method.record import ClientUpdate, GlobalState, Method, Phases
from fedsplit.train.round import for_client, run_round

Dense = dict[ModuleKey, NDArray[np.float64]]
"""M x N matrices by module, in float64."""

SHAPES: dict[ModuleKey, tuple[int, int, int]] = {
    ModuleKey(0, "attention.query"): (11, 7, 3),
    ModuleKey(1, "attention.query"): (5, 13, 2),
    ModuleKey(1, "mlp.up"): (17, 19, 5),
    ModuleKey(-1, "score"): (3, 23, 2),
}
"""(M, N, R) of each module."""


@dataclass(frozen=True)
class Case:
    """A method with what the laws need to know: which apply follows from the method itself."""

    name: str
    method: Method | Phases

    @property
    def first(self) -> Method:
        """The method of round 0."""
        return self.method.at(0)

    @property
    def replaces(self) -> bool:
        """The merged tensor is the next one, and nothing stays with a client: laws about a single client hold as they
        stand."""
        return not (self.first.server_opt.entrywise or self.first.factors.of(0).own)

    def resting(self, round: int = 0) -> frozenset[Side]:
        """The factors that no client trains in that round."""
        both: frozenset[Side] = frozenset({"A", "B"})
        return both - self.method.at(round).factors.of(round).trains

    def update(self, client: str, seed: int, examples: int = 10, **rest: Any) -> ClientUpdate:
        """As ``update``, of a client that follows this method from ``start``: what rests is as it came."""
        made, before = update(client, seed, examples, **rest), start().adapter
        return replace(made, adapter={key: self.followed(part, before[key], 0) for key, part in made.adapter.items()})

    def three(self) -> list[ClientUpdate]:
        """Three clients with unequal data."""
        return [self.update("ann", 1, 7), self.update("bob", 2, 30), self.update("cyd", 3, 1)]

    def followed(self, part: LowRank, before: LowRank, round: int) -> LowRank:
        """``part`` with those factors of ``before`` that rest in that round."""
        resting = self.resting(round)
        return LowRank(before.B_MR if "B" in resting else part.B_MR, before.A_RN if "A" in resting else part.A_RN)

    def __str__(self) -> str:
        return self.name


def factors(seed: int, key: ModuleKey, rank: int | None = None) -> LowRank:
    """Random float32 factors of a module."""
    m, n, r = SHAPES[key]
    rng = np.random.default_rng([seed, *key.path.encode(), key.layer + 1])
    rank = rank or r
    return LowRank(rng.normal(size=(m, rank)).astype(np.float32), rng.normal(size=(rank, n)).astype(np.float32))


def head(seed: int) -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors of a head."""
    rng = np.random.default_rng([seed, 99])
    return {"score.weight": rng.normal(size=(3, 7)).astype(np.float32), "score.bias": rng.normal(size=3).astype("f4")}


def start() -> GlobalState:
    """A state with all modules; factors as after some training."""
    return GlobalState.first({key: factors(0, key) for key in SHAPES}, head(0))


def update(
    client: str,
    seed: int,
    examples: int = 10,
    *,
    keys: Iterable[ModuleKey] | None = None,
    rank: Callable[[ModuleKey], int] | None = None,
    base_version: int = 0,
) -> ClientUpdate:
    """A client that trained ``keys`` (all by default) and the head."""
    chosen = list(SHAPES) if keys is None else list(keys)
    adapter = {key: factors(seed, key, rank(key) if rank else None) for key in chosen}
    return ClientUpdate(client=client, examples=examples, base_version=base_version, adapter=adapter, head=head(seed))


def three() -> list[ClientUpdate]:
    """Three clients with unequal data."""
    return [update("ann", 1, 7), update("bob", 2, 30), update("cyd", 3, 1)]


def trajectory(case: Case, rounds: int, state: GlobalState | None = None) -> GlobalState:
    """Rounds in which clients come and go and move the factors they were sent."""
    state = state or start()
    while state.round < rounds:
        updates = []
        for index in range(3):
            if (state.round + index) % 3 == 2:
                continue
            received = for_client(state, case.method, layers=[-1, 0, 1])
            moved = {key: part.slice(SHAPES[key][2]).pad(SHAPES[key][2]) for key, part in received.items()}
            away = {key: 0.1 * factors(100 * state.round + index, key) for key in moved}
            moved = {
                key: case.followed(LowRank(part.B_MR + away[key].B_MR, part.A_RN + away[key].A_RN), part, state.round)
                for key, part in moved.items()
            }
            updates.append(
                ClientUpdate(client=f"c{index}", examples=5 + index, base_version=state.base_version, adapter=moved)
            )
        state = run_round(state, updates, case.method, seed=17)
    return state


def effective(state: GlobalState) -> Dense:
    """W + D with W = 0: folds plus adapter. The only thing laws compare, but for bits."""
    total = products(state.adapter)
    for fold in state.folds:
        for key, patch in fold.patch.items():
            total[key] = total[key] + patch.astype("float64").dense()
    return total


def products(adapter: Mapping[ModuleKey, LowRank]) -> Dense:
    """``B A`` of every module."""
    return {key: part.astype("float64").dense() for key, part in adapter.items()}


def ideal(updates: Iterable[ClientUpdate], before: GlobalState) -> Dense:
    """``sum p_k B_k A_k`` of every module over the clients that trained it; what it was where none did."""
    known, after = [one for one in updates if one.examples > 0], products(before.adapter)
    for key in after:
        owners = [one for one in known if key in one.adapter]
        count = sum(one.examples for one in owners)
        if owners:
            after[key] = np.sum([one.examples / count * products(one.adapter)[key] for one in owners], axis=0)
    return after
