"""What a method sends of the factors, round by round, for the planner: it prices a plan without knowing methods."""

from __future__ import annotations

from collections import Counter

from fedsplit.config.run import RunFile
from fedsplit.method.record import Method, Phases, every
from fedsplit.plan.travel import Travel, Travels


def travels(method: Method | Phases, run: RunFile, clients: int = 0) -> Travels:
    """Of all rounds of ``run``. ``clients``: how many there are, where that may be more than the run file expects."""
    kinds = Counter(_kind(method.at(round), round) for round in range(max(1, run.train.rounds)))
    folds = any(one.mutates_base for one in every(method))
    together = max(1, round(run.rounds.participation * max(clients, run.rounds.clients)))
    return Travels(
        kinds=tuple(Travel(down=down, up=up, density_down=share, density_up=part, layers=layers, rounds=count)
                    for (down, up, share, part, layers), count in kinds.items()),
        folds=together if folds else 0,
    )  # fmt: skip


def _kind(method: Method, round: int) -> tuple[str, str, float, float, float]:
    factors = method.factors.of(round)
    down, up = ("".join(sorted(sides)) for sides in (factors.common, factors.shares))
    share = 0.0 if method.layers.device else method.layers.share
    return down, up, method.mask.down, method.mask.up, share
