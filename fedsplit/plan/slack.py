"""What a client waits of each step for the slowest one.

Clients that do not wait for the server's share are done before the slowest: their slack. Another cut would not help the
slowest, and more local steps than the others' would bias the mean towards their rows, so it is said and not spent.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fedsplit.devices.units import duration
from fedsplit.plan.types import ClientPlan

WORTH_SAYING = 0.01
"""A shorter wait, as a share of the slowest step, is noise of the estimate."""


def step_s(plan: ClientPlan) -> float:
    """Planned seconds of a step."""
    assert plan.estimate is not None
    return plan.estimate.step_s


def with_slack(plans: Sequence[ClientPlan]) -> list[ClientPlan]:
    """The plans, with what each client waits among its reasons."""
    slowest_s = max(map(step_s, plans))
    found = []
    for plan in plans:
        wait_s = slowest_s - step_s(plan)
        if wait_s > WORTH_SAYING * slowest_s:
            line = f"waits {duration(wait_s)} of each step for the slowest"
            plan = structs.replace(plan, reasons=(*plan.reasons, line))
        found.append(plan)
    return found


def balance_note(plans: Sequence[ClientPlan]) -> str:
    """How unequal the steps are, for the whole plan; empty: nobody waits."""
    steps = sorted(map(step_s, plans))
    if steps[-1] - steps[0] <= WORTH_SAYING * steps[-1]:
        return ""
    idle = 1 - sum(steps) / len(steps) / steps[-1]
    return f"steps take {duration(steps[0])} to {duration(steps[-1])}; on average a client waits {idle:.0%} of the time"
