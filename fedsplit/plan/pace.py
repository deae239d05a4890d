"""Seconds of every leg of a step for a block of devices and all cuts: ``timing.legs_of`` over arrays.

Operation by operation in the same order, so that both agree to the last bit. Shape letters: K devices, O cuts; ``at``
makes both one axis, an entry for each device and cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.profile import Link
from fedsplit.plan.grid import Floats, Grid, Ints, Segment
from fedsplit.plan.pipeline import Legs, overlap
from fedsplit.plan.question import Question, server_of
from fedsplit.plan.threads import share_of
from fedsplit.plan.timing import AGREEMENT, BEGIN, ENDS, embedding_s, head_s, reached, speed
from fedsplit.plan.types import Topology
from fedsplit.plan.work import IN_FLIGHT, Work

Flags = NDArray[np.bool_]
ROUNDING = 2.0**-12
"""Times this close are equal to the planner (``options.time_rank``)."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """A step of each device and cut by cause, (K, O); ``overlap_KO`` passes at the same time as other causes."""

    device_KO: Floats
    up_KO: Floats
    server_KO: Floats
    down_KO: Floats
    latency_KO: Floats
    overlap_KO: Floats
    total_KO: Floats

    def merged(self, other: Seconds, better: Flags) -> Seconds:
        """``other`` where it is better."""
        names = [field.name for field in fields(self)]
        return Seconds(**{name: np.where(better, getattr(other, name), getattr(self, name)) for name in names})

    def put(self, at: tuple[Ints, Ints], values: Seconds) -> None:
        """Set the entries ``at``."""
        for field in fields(self):
            getattr(self, field.name)[at] = getattr(values, field.name)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What the seconds of a step depend on beside the device: of all cuts (O), or of one for each entry."""

    work: Work
    front: Segment
    tail: Segment
    v_O: Flags
    up_O: Ints
    down_O: Ints
    back_O: Flags
    crossings_O: Ints

    def at(self, columns: Ints) -> Cuts:
        """One cut an entry."""
        names = ("v_O", "up_O", "down_O", "back_O", "crossings_O")
        taken = {name: getattr(self, name)[columns] for name in names}
        return Cuts(work=self.work, front=self.front.at(columns), tail=self.tail.at(columns), **taken)


def cuts_of(grid: Grid) -> Cuts:
    """All cuts of a grid."""
    up, down = grid.bytes_O
    return Cuts(
        work=grid.works[0], front=grid.front, tail=grid.tail, v_O=grid.is_(Topology.V), up_O=up, down_O=down,
        back_O=grid.works[0].lowest < grid.c1_O, crossings_O=grid.crossings_O,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Speeds of a block's devices and of what they have of the server, a row each (K, 1), or one for each entry."""

    flops_K: Floats
    bandwidth_K: Floats
    overhead_K: Floats
    slower_K: Floats
    embedding_K: Floats
    head_K: Floats
    up_bps_K: Floats
    down_bps_K: Floats
    latency_K: Floats
    share_K: Floats

    def at(self, rows: Ints) -> Pace:
        """One device an entry."""
        return Pace(**{field.name: getattr(self, field.name)[rows, 0] for field in fields(self)})

    def legs(self, cuts: Cuts, micro: Ints | int, twice: Flags | bool, served: tuple[Floats, Floats]) -> Legs:
        """Of a step in ``micro`` pieces. ``twice``: where layers are computed again; ``served``: (body there, back)
        in seconds of the whole server."""
        device = self.flops_K, self.bandwidth_K, self.overhead_K
        there, back = cuts.front.passes(cuts.work, micro, *device, twice=twice)
        there = there + (self.embedding_K + BEGIN * micro * self.overhead_K)
        ends = (ENDS - BEGIN) * micro * self.overhead_K
        last, last_back = cuts.tail.passes(cuts.work, micro, *device, twice=twice)
        end = np.where(cuts.v_O, 0.0, last + last_back + self.head_K + ends)
        hidden, gradient = cuts.work.crossing_bytes
        first_down, up_back = np.where(cuts.v_O, 0, hidden), np.where(cuts.v_O, 0, gradient)
        return Legs(
            front=there / self.slower_K,
            up=(cuts.up_O - up_back) / self.up_bps_K,
            body=served[0] / self.share_K,
            down=first_down / self.down_bps_K,
            tail=end / self.slower_K,
            up_back=up_back / self.up_bps_K,
            body_back=served[1] / self.share_K,
            down_back=(cuts.down_O - first_down) / self.down_bps_K,
            back=(back + np.where(cuts.v_O, ends, 0.0)) / self.slower_K,
            wait=self.latency_K,
            wait_back=np.where(cuts.back_O, self.latency_K, 0.0),
        )

    def least(self, cuts: Cuts, found: Seconds, served: tuple[Floats, Floats]) -> Floats:
        """Seconds that no number of micro-batches gets below. ``served``: the server's in a single pass."""
        parts = (cuts.front.forward_O, cuts.front.backward_O, cuts.tail.forward_O, cuts.tail.backward_O)
        here = sum(parts) / self.flops_K / self.slower_K
        there = (served[0] + served[1]) / self.share_K
        wire = found.up_KO + found.down_KO
        busiest = np.maximum(np.maximum(here, there), np.maximum(found.up_KO, found.down_KO))
        bound: Floats = np.maximum(busiest, (here + there + wire) / IN_FLIGHT) * (1 - ROUNDING)
        return bound


def pace_of(questions: Sequence[Question], work: Work) -> Pace:
    """The devices of ``questions`` at their shares."""
    devices, links = [question.device for question in questions], links_of(questions)
    return Pace(
        flops_K=column([speed(device, work.dtype) for device in devices]),
        bandwidth_K=column([device.memory_bandwidth_bps for device in devices]),
        overhead_K=column([device.layer_overhead_s for device in devices]),
        slower_K=column([_slower(question, work.dtype) for question in questions]),
        embedding_K=column([embedding_s(work, device) for device in devices]),
        head_K=column([head_s(work, device) for device in devices]),
        up_bps_K=column([link.up_bps for link in links]),
        down_bps_K=column([link.down_bps for link in links]),
        latency_K=column([link.latency_s for link in links]),
        share_K=column([question.share for question in questions]),
    )


def links_of(questions: Sequence[Question]) -> list[Link]:
    """What each device has of its link and of the server's."""
    return [reached(one.device, server_of(one), one.link_share) for one in questions]


def seconds(legs: Legs, cuts: Cuts, micro: Ints | int, *, serial: bool = False) -> Seconds:
    """``timing.step_times`` over arrays. ``serial``: as if micro-batches followed one another."""
    crossings = cuts.crossings_O
    messages = np.where(crossings > 0, crossings * micro + AGREEMENT, 0)
    up, down, latency = legs.up + legs.up_back, legs.down + legs.down_back, messages * legs.wait
    total = legs.device + up + legs.server + down + latency
    spared = np.zeros(total.shape)
    if not serial and np.any(np.greater(micro, 1)):
        spared = overlap(legs, micro, crossings)
        total = total - spared
    return Seconds(
        device_KO=legs.device, up_KO=up, server_KO=legs.server, down_KO=down, latency_KO=latency, overlap_KO=spared,
        total_KO=total,
    )  # fmt: skip


def column(values: Sequence[float]) -> Floats:
    """One row a device."""
    return np.array(values, dtype=np.float64)[:, None]


def _slower(question: Question, dtype: str) -> float:
    return share_of(question.device, dtype, question.threads)
