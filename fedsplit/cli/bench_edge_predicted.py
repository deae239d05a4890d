"""What the planner says of a plan on a device without torch, from NumPy's speed as it was measured beside the steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.card import card
from fedsplit.plan.edge import tokenizer_bytes
from fedsplit.plan.memory import client_memory
from fedsplit.plan.timing import step_times
from fedsplit.plan.types import ClientPlan
from fedsplit.plan.work import Work, work_of
from fedsplit.split.base import Base

PART_BYTES = 75_000_000
"""Of the process that is measured, which has no wire, no tokenizer and no data: NumPy, onnxruntime, sessions."""


def step_of(base: Base, run: RunFile, batch: int, tokens: int) -> Work:
    """A step of full rows."""
    model = msgspec.structs.replace(run.model, max_length=tokens)
    cut = msgspec.structs.replace(run, model=model)
    found = card(base.config.to_dict(), run.model.task, len(run.model.labels))
    return replace(work_of(found, cut, batch=batch, edge=True), typical=float(tokens))


def predicted(base: Base, plan: ClientPlan, run: RunFile, batch: int, tokens: int) -> int:
    """Peak bytes of the process that computes the part alone."""
    work = step_of(base, run, batch, tokens)
    memory = client_memory(work, plan.topology, plan.cut).with_holes(work, _device([]))
    return memory.total - tokenizer_bytes(work.card)


def predicted_s(
    base: Base, plan: ClientPlan, run: RunFile, batch: int, tokens: int, speeds: Sequence[dict[str, Any]]
) -> float:
    """Seconds that the device computes in a step. ``speeds``: what ``bench_edge_speed`` found, at least once."""
    device = _device(speeds)
    return step_times(step_of(base, run, batch, tokens), plan.topology, plan.cut, device, device).device


def _device(speeds: Sequence[dict[str, Any]]) -> DeviceProfile:
    def usual(key: str) -> float:
        return statistics.median(found[key] for found in speeds) if speeds else 1.0

    return DeviceProfile(
        name="here", arch="", cores=1, threads=1, flops={"float32": usual("flops")}, memory_bytes=1, edge=True,
        free_memory_bytes=1, memory_bandwidth_bps=usual("bandwidth_bps"), layer_overhead_s=usual("overhead_s"),
        runtime_bytes=PART_BYTES,
    )  # fmt: skip
