"""Methods under test and the rounds they are tested on: modules whose M, N and R are pairwise different primes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method import ClientUpdate, GlobalState, Method, Phases, per_device, phases, stock
from fedsplit.method.merge import exact, fold_all
from fedsplit.method.registry import discover
from fedsplit.method.server_opt import fedadam, momentum
from fedsplit.method.weights import uniform

SHAPES: dict[ModuleKey, tuple[int, int, int]] = {
    ModuleKey(0, "attention.query"): (11, 7, 3),
    ModuleKey(1, "attention.query"): (5, 13, 2),
    ModuleKey(1, "mlp.up"): (17, 19, 5),
    ModuleKey(-1, "score"): (3, 23, 2),
}
"""(M, N, R) of each module. None is square and no side equals a rank, so that a transposed product cannot pass."""


@dataclass(frozen=True)
class Case:
    """A method with what the laws need to know: which apply follows from the method itself."""

    name: str
    method: Method | Phases

    @property
    def first(self) -> Method:
        return self.method.at(0)

    @property
    def replaces(self) -> bool:
        """The merged tensor is the next one: laws about a single client hold as they stand."""
        return not self.first.server_opt.entrywise

    def resting(self, round: int = 0) -> frozenset[str]:
        """The factors that no client trains in that round."""
        return frozenset("AB") - self.method.at(round).factors.of(round).trains

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


def all_cases() -> list[Case]:
    """Every registered method, and stock parts that no registered method uses by itself."""
    registered = [Case(name, factory()) for name, factory in sorted(discover().factories.items())]
    plain = Method()
    composed = [
        Case("uniform-weights", plain.but(weights=uniform)),
        Case("momentum", plain.but(server_opt=momentum())),
        Case("fedadam", plain.but(server_opt=fedadam())),
        Case("exact", plain.but(merge=exact)),
        Case("exact-per-device", plain.but(merge=exact, ranks=per_device())),
        Case("only-B-momentum", plain.but(factors=stock.only_B, server_opt=momentum())),
        Case("alternate-adam", plain.but(factors=stock.alternate, server_opt=fedadam())),
        Case("fold-then-average", phases({0: plain.but(merge=fold_all, start=stock.redrawn), 2: plain})),
        Case("phases", phases({0: plain, 1: plain.but(server_opt=momentum())})),
    ]
    return registered + composed


def factors(seed: int, key: ModuleKey, rank: int | None = None) -> LowRank:
    """Random float32 factors of a module."""
    m, n, r = SHAPES[key]
    rng = np.random.default_rng([seed, *key.path.encode(), key.layer + 1])
    rank = rank or r
    return LowRank(rng.normal(size=(m, rank)).astype(np.float32), rng.normal(size=(rank, n)).astype(np.float32))


def head(seed: int) -> dict[str, np.ndarray]:
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
    keys: Mapping[ModuleKey, object] | list[ModuleKey] | None = None,
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


def effective(state: GlobalState) -> dict[ModuleKey, np.ndarray]:
    """W + D with W = 0: folds plus adapter, dense float64. The only thing laws compare, but for bits."""
    total = {key: part.astype("float64").dense() for key, part in state.adapter.items()}
    for fold in state.folds:
        for key, patch in fold.patch.items():
            total[key] = total[key] + patch.astype("float64").dense()
    return total


def products(adapter: Mapping[ModuleKey, LowRank]) -> dict[ModuleKey, np.ndarray]:
    return {key: part.astype("float64").dense() for key, part in adapter.items()}
