"""What a plan has of its client's slack: the steps, the rank or the density beyond what the run file asks of everybody.

``spend`` gives it, before a round; both ends read it here: how many steps a round has, and that a plan with more of
them is still the work that the owner agreed to.
"""

from __future__ import annotations

from msgspec import structs

from fedsplit.config.run import RunFile
from fedsplit.plan.types import ClientPlan

MOST_TIMES = 4
"""A client takes at most so many times the steps of the run file, however fast it is."""


def steps_of(plan: ClientPlan, run: RunFile) -> int:
    """Local steps of a round."""
    return plan.steps or run.train.steps


def scheduled(round: int, step: int, steps: int, of_run: int) -> int:
    """Where step ``step`` of a round of ``steps`` stands in the learning rate's schedule, which has ``of_run`` a round:
    at the end of a round all clients have the same rate, however many steps they took."""
    return round * of_run + step * of_run // steps


def larger_ranks(run: RunFile) -> list[int]:
    """Those of ``plan.ranks`` above the run's, the largest first."""
    return sorted({rank for rank in run.plan.ranks if rank > run.lora.rank}, reverse=True)


def bare(plan: ClientPlan, run: RunFile) -> ClientPlan:
    """The plan without what slack may have bought: the work that the run file asks of everybody."""
    if run.plan.slack == "steps" and 0 <= plan.steps <= MOST_TIMES * run.train.steps:
        return structs.replace(plan, steps=0)
    if run.plan.slack == "density":
        return structs.replace(plan, density_down=0.0, density_up=0.0)
    larger = set(larger_ranks(run)) if run.plan.slack == "rank" else set()
    if not any(layer.rank in larger for layer in plan.layers):
        return plan
    layers = (structs.replace(one, rank=run.lora.rank) if one.rank in larger else one for one in plan.layers)
    return structs.replace(plan, layers=tuple(layers))


def value(plan: ClientPlan, run: RunFile) -> int:
    """What two plans of one client differ in where slack gave one of them more: ranks, steps, or per mille sent."""
    if run.plan.slack == "steps":
        return steps_of(plan, run)
    if run.plan.slack == "density":
        return round(1000 * (plan.density_down + plan.density_up))
    return sum(layer.rank for layer in plan.layers if layer.trains)


def words(plan: ClientPlan, run: RunFile) -> str:
    """What slack gave this plan; empty: nothing."""
    if plan.steps:
        return f"{plan.steps} steps a round instead of {run.train.steps}"
    if plan.density_down or plan.density_up:
        return f"{plan.density_down:.3g} of the factors' entries down, {plan.density_up:.3g} up"
    most = max((layer.rank for layer in plan.layers if layer.trains), default=0)
    given = run.plan.slack == "rank" and most in larger_ranks(run)
    return f"rank {most} instead of {run.lora.rank}" if given else ""
