"""What training costs this device, step by step: said to the server once a round, and learnt from at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fedsplit.devices.here import peak_memory
from fedsplit.wire.messages import Cost


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One step: its seconds, of them this device's own work (not waiting for the server), and bytes on the wire."""

    seconds: float
    own_s: float
    up_bytes: int
    down_bytes: int


def cost_of(steps: Sequence[Taken]) -> Cost | None:
    """The cost of a round of ``steps``; None for a round without any. Medians: a first step warms up, others hiccup."""
    if not steps:
        return None
    return Cost(
        step_s=statistics.median(step.seconds for step in steps),
        device_s=statistics.median(step.own_s for step in steps),
        up_bytes=round(statistics.fmean(step.up_bytes for step in steps)),
        down_bytes=round(statistics.fmean(step.down_bytes for step in steps)),
        peak_bytes=peak_memory(),
    )
