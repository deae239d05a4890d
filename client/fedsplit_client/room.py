"""Whether the plan fits into the memory that is free now, asked before anything is fetched or loaded.

The plan was made from the profile, which may be weeks old, or of another time of the day: what is free at this moment
is what counts. A process that the system kills for its memory says nothing; a refusal says need and have.
"""

from __future__ import annotations

import os

import psutil

from fedsplit.devices.here import free_memory
from fedsplit.errors import OutOfMemory
from fedsplit.plan.options import describe
from fedsplit.plan.types import ClientPlan


def refuse_too_large(plan: ClientPlan, *, free_bytes: int | None = None, held_bytes: int | None = None) -> None:
    """``free_bytes``: of this machine, within the limits of its control groups; ``held_bytes``: what this process has
    taken already, which the estimate counts. By default as they are now.

    :raises OutOfMemory: the plan's peak is above both together.
    """
    if plan.estimate is None:
        return
    held = int(psutil.Process(os.getpid()).memory_info().rss) if held_bytes is None else held_bytes
    have = (free_memory() if free_bytes is None else free_bytes) + held
    need = plan.estimate.memory_bytes
    if need > have:
        fix = "close other programs, or run `fedsplit profile` and join again: the plan will be made for what is free"
        raise OutOfMemory(f"the plan {describe(plan.topology, plan.cut)}", need, have, fix, limit="free here are")
