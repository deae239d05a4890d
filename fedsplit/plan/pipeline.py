"""Micro-batches of one step in a pipeline: what runs when, and how much shorter the step is than its stages in sum.

    u: front, h1 up, body, h2 down, tail (there and back), g2 up, body back, g1 down, front back
    v: front, h1 up, body and tail (there and back), g1 down, front back

Client, uplink, server and downlink each do one thing at a time; a client has at most ``IN_FLIGHT`` micro-batches on
their way. Like ``exchange.step`` it starts the next one as soon as it may and takes answers in the order in which they
arrive. ``simulate`` follows that event by event. ``makespan`` is a closed form over floats or arrays alike, never above
the simulation: every resource has its work between a first and a last stage, and micro-batches of one slot follow one
another. Seconds throughout; ``Legs`` are those of all micro-batches together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from fedsplit.plan.work import IN_FLIGHT

COUNTED = 0.75
"""Part of the overlap of the closed form that plans count on: with it they are rarely below the simulation."""

Seconds = Any
"""A float, or an array with a value for each candidate: the same formula serves both."""


class Resource(StrEnum):
    """What is busy during a stage."""

    CLIENT = "client"
    UP = "up"
    SERVER = "server"
    DOWN = "down"


@dataclass(frozen=True, kw_only=True)
class Legs:
    """Seconds of each leg of a step, all micro-batches together; ``wait``: on the way of one message, ``wait_back`` of
    the last one (0 where no gradient comes back). ``v`` has its whole server time in ``body``."""

    front: Seconds
    up: Seconds = 0.0
    body: Seconds = 0.0
    down: Seconds = 0.0
    tail: Seconds = 0.0
    up_back: Seconds = 0.0
    body_back: Seconds = 0.0
    down_back: Seconds = 0.0
    back: Seconds = 0.0
    wait: Seconds = 0.0
    wait_back: Seconds = 0.0

    @property
    def device(self) -> Seconds:
        return self.front + self.tail + self.back

    @property
    def server(self) -> Seconds:
        return self.body + self.body_back


class Stage(NamedTuple):
    """One leg of one micro-batch: what it occupies, for how long, and the pause until the next one may start."""

    name: str
    resource: Resource
    seconds: float
    pause: float = 0.0


class Busy(NamedTuple):
    """A stage of micro-batch ``micro`` that runs from ``start`` to ``end``."""

    micro: int
    stage: Stage
    start: float
    end: float


def makespan(legs: Legs, micro: Seconds, crossings: Seconds) -> Seconds:
    """Least seconds of the step without its agreement. ``crossings``: messages of one micro-batch."""
    return _makespan(legs, micro, _stages(legs), _waits(legs, crossings))


def _makespan(legs: Legs, micro: Seconds, stages: Seconds, waits: Seconds) -> Seconds:
    last = (legs.down_back + legs.back) / micro
    served = np.where(legs.up_back == 0, legs.body, legs.body_back)
    one = stages / micro + waits
    client = legs.device
    up = legs.front / micro + (legs.up + legs.up_back) + legs.wait + served / micro + legs.wait_back + last
    server = (legs.front + legs.up) / micro + legs.wait + legs.server + legs.wait_back + last
    down = (legs.front + legs.up + legs.body) / micro + legs.wait + (legs.down + legs.down_back)
    down = down + legs.wait_back + legs.back / micro
    slot = micro // IN_FLIGHT * one + np.where(micro % IN_FLIGHT == 0, legs.front / micro, one)
    return np.maximum(np.maximum(np.maximum(client, up), np.maximum(server, down)), slot)


def overlap(legs: Legs, micro: Seconds, crossings: Seconds) -> Seconds:
    """Seconds that the step is counted as shorter than its stages one after the other; 0 for one micro-batch."""
    stages, waits = _stages(legs), _waits(legs, crossings)
    saved = np.maximum(0.0, stages + micro * waits - _makespan(legs, micro, stages, waits))
    return np.where((micro > 1) & (crossings > 0), COUNTED * saved, 0.0)


def _stages(legs: Legs) -> Seconds:
    return legs.device + legs.up + legs.server + legs.down + legs.up_back + legs.down_back


def _waits(legs: Legs, crossings: Seconds) -> Seconds:
    """On the way, of one micro-batch."""
    return legs.wait * (crossings - (legs.wait_back > 0)) + legs.wait_back


def stages_of(legs: Legs, micro: int) -> tuple[Stage, ...]:
    """The stages of one micro-batch in order; those that take no time are left out, the client's first and last not."""
    found = [
        Stage("front", Resource.CLIENT, legs.front / micro),
        Stage("up", Resource.UP, legs.up / micro, legs.wait),
        Stage("body", Resource.SERVER, legs.body / micro),
        Stage("down", Resource.DOWN, legs.down / micro, legs.wait),
        Stage("tail", Resource.CLIENT, legs.tail / micro),
        Stage("up back", Resource.UP, legs.up_back / micro, legs.wait),
        Stage("body back", Resource.SERVER, legs.body_back / micro),
        Stage("down back", Resource.DOWN, legs.down_back / micro, legs.wait_back),
        Stage("back", Resource.CLIENT, legs.back / micro),
    ]
    return (found[0], *(stage for stage in found[1:-1] if stage.seconds > 0), found[-1])


def simulate(stages: Sequence[Stage], micro_batches: int, in_flight: int = IN_FLIGHT) -> list[Busy]:
    """Every stage of every micro-batch with its time, in the order of their starts.

    Among stages that could start at the same time on one resource a new micro-batch comes first, then the one that has
    waited longest.
    """
    free = dict.fromkeys(Resource, 0.0)
    waiting: dict[int, tuple[int, float]] = {}
    done: list[Busy] = []
    begun, slot = 0, 0.0
    while waiting or begun < micro_batches:
        ready = [(max(since, free[stages[at].resource]), 1, since, micro) for micro, (at, since) in waiting.items()]
        if begun < micro_batches and len(waiting) < in_flight:
            ready.append((max(slot, free[stages[0].resource]), 0, slot, begun))
        start, _, _, micro = min(ready)
        place = waiting[micro][0] if micro in waiting else 0
        stage = stages[place]
        end = start + stage.seconds
        free[stage.resource] = end
        done.append(Busy(micro, stage, start, end))
        begun = max(begun, micro + 1)
        if place + 1 < len(stages):
            waiting[micro] = place + 1, end + stage.pause
        else:
            waiting.pop(micro, None)
            slot = end
    return done


def length(run: Sequence[Busy]) -> float:
    """Seconds until the last stage ends."""
    return max((busy.end for busy in run), default=0.0)
