"""What a client waits of each step for the slowest one.

Clients that do not wait for the server's share are done before the slowest: their slack. Another cut would not help
the slowest, so without ``[plan] slack`` it is said and not spent (``spend`` does that). Of larger ranks that
``[plan] ranks`` names, the largest that fits the device and is in time is named for whoever decides on ``lora.rank``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from fedsplit.devices.units import duration
from fedsplit.plan.given import larger_ranks
from fedsplit.plan.question import Question, priced, step_as_planned
from fedsplit.plan.selection import own_layers
from fedsplit.plan.types import ClientPlan
from fedsplit.plan.work import Work

WORTH_SAYING = 0.01
"""A shorter wait, as a share of the slowest step, is noise of the estimate."""


def step_s(plan: ClientPlan) -> float:
    """Planned seconds of a step."""
    assert plan.estimate is not None
    return plan.estimate.step_s


def with_slack(plans: Sequence[ClientPlan], asked: Mapping[str, Question]) -> list[ClientPlan]:
    """The plans, with what each client waits among its reasons."""
    slowest_s = max(map(step_s, plans))
    found = []
    for plan in plans:
        wait_s = slowest_s - step_s(plan)
        if wait_s > WORTH_SAYING * slowest_s:
            line = f"waits {duration(wait_s)} of each step for the slowest"
            if rank := in_time(plan, asked[plan.client], slowest_s):
                line += f"; at rank {rank} its step would not be the slowest either"
            plan = structs.replace(plan, reasons=(*plan.reasons, line))
        found.append(plan)
    return found


def balance_note(seconds: Iterable[float], what: str = "steps") -> str:
    """How unequal the steps (or rounds) are, for the whole plan; empty: nobody waits."""
    steps = sorted(seconds)
    if steps[-1] - steps[0] <= WORTH_SAYING * steps[-1]:
        return ""
    idle = 1 - sum(steps) / len(steps) / steps[-1]
    return (
        f"{what} take {duration(steps[0])} to {duration(steps[-1])}; on average a client waits {idle:.0%} of the time"
    )


def in_time(plan: ClientPlan, question: Question, deadline_s: float) -> int:
    """The largest of the larger ranks of ``plan.ranks`` that fits and is done by then; 0: none."""
    run = question.run
    larger = larger_ranks(run)
    if not larger or any(layer.trains and layer.rank != run.lora.rank for layer in plan.layers):
        return 0
    work = step_as_planned(question, plan)
    return next((rank for rank in larger if _done(plan, question, raised(work, plan, rank), deadline_s)), 0)


def raised(work: Work, plan: ClientPlan, rank: int) -> Work:
    """The step with this rank in the client's own layers."""
    mine = set(own_layers(work, plan.topology, plan.cut))
    return replace(
        work,
        ranks=tuple(
            rank if layer in mine and work.rank_of(layer) else work.rank_of(layer)
            for layer in range(work.card.num_layers)
        ),
    )


def _done(plan: ClientPlan, question: Question, work: Work, deadline_s: float) -> bool:
    option = priced(question, plan.topology, plan.cut, [work])
    return option.fits and option.times.total <= deadline_s
