"""The numbers of a plan's picture: a row a client, or a kind of device where there are too many to read.

Pure and without matplotlib, so that a test can hold the bars to the plan. Seconds of one optimiser step add up to the
plan's step time, bytes to its peak memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsplit.devices.units import duration, size
from fedsplit.plan.memory import Memory, client_memory
from fedsplit.plan.options import describe
from fedsplit.plan.pipeline import Busy, Legs, length, simulate, stages_of
from fedsplit.plan.question import Question, server_of, step_as_planned
from fedsplit.plan.timing import AGREEMENT, Times, legs_of, step_times
from fedsplit.plan.types import ClientPlan, Plan, Topology
from fedsplit.plan.work import IN_FLIGHT, Work

MOST_ROWS = 40
"""Clients up to which each has a row of its own."""

CAUSES = {"device": "computing here", "up": "sending", "server": "server", "down": "receiving", "latency": "latency"}
"""Fields of ``Times`` in the order of the bars, and their names for a reader."""

PARTS = {"runtime": "the program", "model": "frozen weights", "training": "activations, LoRA, buffers"}
"""Parts of the memory in the order of the bars."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row. ``seconds`` by cause and ``bytes`` by part are means over the row's ``count`` clients.

    ``spread_s`` and ``spread_share`` are the 10th and 90th percentile of step time and of memory used / limit. Of one
    client, ``lane``: what runs when in a step, simulated, and ``served``: its share of the server.
    """

    name: str
    plan: str
    count: int
    seconds: Mapping[str, float]
    bytes: Mapping[str, float]
    limit_bytes: float
    spread_s: tuple[float, float]
    spread_share: tuple[float, float]
    lane: tuple[Busy, ...] = ()
    agreement_s: float = 0.0
    served: float = 0.0

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def lane_s(self) -> float:
        """Seconds until the lane's step is agreed on: less than planned where micro-batches overlap unplanned."""
        return length(self.lane) + self.agreement_s

    @property
    def used_bytes(self) -> float:
        return sum(self.bytes.values())

    @property
    def share(self) -> float:
        """Of the memory that a plan may fill."""
        return self.used_bytes / self.limit_bytes


@dataclass(frozen=True, kw_only=True)
class Picture:
    """``bars``: slowest first. ``slowest_s``: what everybody waits for. ``steps``: of one round."""

    title: str
    notes: tuple[str, ...]
    bars: tuple[Bar, ...]
    slowest_s: float
    steps: int

    @property
    def grouped(self) -> bool:
        return any(bar.count > 1 for bar in self.bars)


def picture(plan: Plan, asked: Mapping[str, Question], *, most: int = MOST_ROWS) -> Picture:
    """The picture of ``plan``, made for the questions ``asked``. More than ``most`` clients: a row a kind of device."""
    alone = [_bar(client, asked[client.client]) for client in plan.clients]
    bars = alone if len(alone) <= most else _grouped(alone, [asked[bar.name].device.name for bar in alone])
    run = next(iter(asked.values())).run
    slowest = max(bar.step_s for bar in alone)
    return Picture(
        title=f"{run.run.name}: {len(alone)} {'client' if len(alone) == 1 else 'clients'}, {Path(run.model.path).name}",
        notes=plan.reasons,
        bars=tuple(sorted(bars, key=_order)),
        slowest_s=slowest,
        steps=run.train.steps,
    )


def _order(bar: Bar) -> tuple[float, list[tuple[int, str]]]:
    """Slowest first, four digits of it; equals by name, ``pi-2`` before ``pi-10``."""
    words = re.findall(r"\d+|\D+", bar.name)
    return -float(f"{bar.step_s:.4g}"), [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def costs(client: ClientPlan, question: Question) -> tuple[Times, Memory]:
    """What the plan of one client was priced at, by cause."""
    work, device = _work(client, question), question.device
    threads = question.fixed.threads if question.fixed else 0
    topology, cut = client.topology, client.cut
    times = step_times(
        work, topology, cut, device, server_of(question),
        threads=threads, share=question.share, link_share=question.link_share,
    )  # fmt: skip
    if not question.run.plan.overlap:
        times = replace(times, overlap=0.0)
    return times, client_memory(work, topology, cut).with_holes(work, device)


def _work(client: ClientPlan, question: Question) -> Work:
    return step_as_planned(question, client)


def _bar(client: ClientPlan, question: Question) -> Bar:
    times, memory = costs(client, question)
    model = memory.weights + memory.embedding + memory.head
    limit = question.device.budget_bytes
    share = memory.total / limit
    return Bar(
        name=client.client,
        plan=describe(client.topology, client.cut),
        count=1,
        seconds=_causes(times),
        bytes={"runtime": memory.runtime, "model": model, "training": memory.total - memory.runtime - model},
        limit_bytes=limit,
        spread_s=(times.total, times.total),
        spread_share=(share, share),
        lane=tuple(lane(client, question)),
        agreement_s=0.0 if client.topology is Topology.LOCAL else AGREEMENT * _legs(client, question).wait,
        served=0.0 if client.topology is Topology.LOCAL else question.share,
    )


def _legs(client: ClientPlan, question: Question) -> Legs:
    threads = question.fixed.threads if question.fixed else 0
    return legs_of(
        _work(client, question), client.topology, client.cut, question.device, server_of(question),
        threads=threads, share=question.share, link_share=question.link_share,
    )  # fmt: skip


def lane(client: ClientPlan, question: Question) -> list[Busy]:
    """What runs when in one step of this client; one on its own has one micro-batch at a time."""
    stages = stages_of(_legs(client, question), client.micro_batches)
    return simulate(stages, client.micro_batches, 1 if client.topology is Topology.LOCAL else IN_FLIGHT)


def _causes(times: Times) -> dict[str, float]:
    """Seconds by cause; where micro-batches overlap each keeps its part of the step."""
    seconds = {cause: float(getattr(times, cause)) for cause in CAUSES}
    return {cause: value * times.total / sum(seconds.values()) for cause, value in seconds.items()}


def _grouped(alone: Sequence[Bar], kinds: Sequence[str]) -> list[Bar]:
    groups: dict[str, list[Bar]] = {}
    for bar, kind in zip(alone, kinds, strict=True):
        groups.setdefault(kind, []).append(bar)
    return [_together(kind, members) for kind, members in groups.items()]


def _together(kind: str, members: Sequence[Bar]) -> Bar:
    count = len(members)
    (common, times), *others = Counter(bar.plan for bar in members).most_common()
    more = f" and {len(others)} other plan{'s' if len(others) > 1 else ''}" if others else ""
    share = f" ({times / count:.0%})" if others else ""
    return Bar(
        name=kind,
        plan=f"{common}{share}{more}",
        count=count,
        seconds={cause: sum(bar.seconds[cause] for bar in members) / count for cause in CAUSES},
        bytes={part: sum(bar.bytes[part] for bar in members) / count for part in PARTS},
        limit_bytes=sum(bar.limit_bytes for bar in members) / count,
        spread_s=_percentiles([bar.step_s for bar in members]),
        spread_share=_percentiles([bar.share for bar in members]),
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile, as values that occur."""
    ranked = sorted(values)
    last = len(ranked) - 1
    return ranked[round(0.1 * last)], ranked[round(0.9 * last)]


def step_text(bar: Bar) -> str:
    """``1.31 s``; of several clients their spread."""
    low, high = bar.spread_s
    return duration(bar.step_s) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"


def memory_text(bar: Bar) -> str:
    """``312 MB of 1.24 GB``."""
    return f"{size(bar.used_bytes)} of {size(bar.limit_bytes)}"
