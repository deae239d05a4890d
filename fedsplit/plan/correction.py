"""What a run showed about a device, as two factors in its profile that the next plan counts on.

Time: seconds a step of the device's own computing, measured / predicted from the uncorrected profile. Memory: what the
process took beyond the plan's other terms / ``runtime_bytes``, the one term that is the machine's and not the model's.
Each factor moves half way (in its logarithm) to what was seen, so one run on a busy machine does not spoil it, and
stays between 1/4 and 4. What was imported stays in memory, so that the second one falls no lower than
``PROGRAM_LEAST``: where a process took less, other terms were too high, and plans of other models must not count on it.
"""

from __future__ import annotations

import math

from msgspec import structs

from fedsplit.config.run import RunFile
from fedsplit.devices.profile import FACTOR_LEAST, FACTOR_MOST, DeviceProfile
from fedsplit.plan.memory import client_memory
from fedsplit.plan.model import ModelCard
from fedsplit.plan.timing import step_times
from fedsplit.plan.types import ClientPlan
from fedsplit.plan.work import DataLike, as_planned, work_of

WEIGHT = 0.5
"""Of the newest run."""

PROGRAM_LEAST = 0.8
"""Of ``runtime_bytes``: a program does not shrink by more."""


def smoothed(before: float, seen: float) -> float:
    """``before`` moved towards ``seen``, both positive, within the bounds."""
    bounded = min(FACTOR_MOST, max(FACTOR_LEAST, seen))
    return min(FACTOR_MOST, max(FACTOR_LEAST, math.exp((1 - WEIGHT) * math.log(before) + WEIGHT * math.log(bounded))))


def learnt(
    profile: DeviceProfile,
    card: ModelCard,
    run: RunFile,
    plan: ClientPlan,
    data: DataLike | None,
    *,
    device_s: float,
    peak_bytes: int = 0,
) -> DeviceProfile:
    """``profile`` (as kept, uncorrected) with the factors after a run of ``plan``.

    ``device_s``: median seconds of a step computing on the device, not positive where unknown; ``peak_bytes``: of the
    process, 0 where unknown. ``data``: the counts of the rows that were really trained on.
    """
    base = structs.replace(profile, time_factor=1.0, memory_factor=1.0)
    work = as_planned(work_of(card, run, data, batch=plan.batch, edge=base.edge), plan)
    fixed = next((section for section in run.clients if section.name == plan.client), None)
    threads = base.threads_of(fixed.threads if fixed else 0)
    predicted_s = step_times(work, plan.topology, plan.cut, base, base, threads=threads).device
    time, memory = profile.time_factor, profile.memory_factor
    if device_s > 0 and predicted_s > 0:
        time = smoothed(time, device_s / predicted_s)
    if peak_bytes and base.runtime_bytes:
        rest = client_memory(work, plan.topology, plan.cut).with_holes(work, base).total - base.runtime_bytes
        memory = max(PROGRAM_LEAST, smoothed(memory, max(1, peak_bytes - rest) / base.runtime_bytes))
    return structs.replace(profile, time_factor=float(f"{time:.3g}"), memory_factor=float(f"{memory:.3g}"))
