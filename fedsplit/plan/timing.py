"""Seconds of one step, cause by cause, by a roofline a segment and a rate plus a latency a message.

A layer with P weights takes 2·P + 4·T·W multiplications-and-additions a token forward (W = attention width, scores and
values, not halved for causality), and backward through frozen weights as much for the projections and twice as much
for the attention: only input gradients are formed, and none below the lowest layer that trains. LoRA adds 2·R·(M + N)
forward and twice that backward. Seconds are max(operations / speed, bytes of weights / memory bandwidth) + the layer's
fixed overhead.

    u: front →, h1 up, body →, h2 down, tail → ←, g2 up, ← body, g1 down, ← front
    v: front →, h1 up, body and tail → ←, g1 down, ← front

Micro-batches follow one another here; overlapping them is a gain that the plan does not count on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.memory import crossings, served
from fedsplit.plan.threads import share_of
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work, held

ASSUMED_LINK = Link(up_bps=12.5e6, down_bps=12.5e6, latency_s=0.005)
"""100 Mbit/s and 5 ms: taken, and said, where a link was never measured."""

ENDS = 4
"""Fixed costs of embedding, head, loss and optimiser together, in passes through a layer (estimate)."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one optimiser step by cause."""

    device: float
    up: float = 0.0
    server: float = 0.0
    down: float = 0.0
    latency: float = 0.0

    @property
    def total(self) -> float:
        return self.device + self.up + self.server + self.down + self.latency

    def largest(self) -> tuple[str, float]:
        """The cause that takes longest."""
        return max(((field.name, getattr(self, field.name)) for field in fields(self)), key=lambda item: item[1])


def step_times(
    work: Work,
    topology: Topology,
    cut: Cut,
    device: DeviceProfile,
    server: DeviceProfile,
    *,
    threads: int = 0,
    share: float = 1.0,
    link_share: float = 1.0,
) -> Times:
    """Seconds of one step. ``threads``: fewer than the profile was measured with; ``share``: of the server's speed,
    ``link_share``: of its link."""
    card = work.card
    front, tail = held(topology, cut, card.num_layers)
    slower = share_of(device, work.dtype, threads)
    mine = layers_s(work, front, device) + layers_s(work, tail, device) + embedding_s(work, device)
    mine += ENDS * work.micro_batches * device.layer_overhead_s
    theirs = layers_s(work, served(topology, cut, card.num_layers), server)
    if topology is Topology.V:
        theirs += head_s(work, server)
    else:
        mine += head_s(work, device)
    if topology is Topology.LOCAL:
        return Times(device=mine / slower)
    up, down = traffic(work, topology, cut)
    link = reached(device, server, link_share)
    messages = crossings(work, topology, cut) * work.micro_batches + 2
    return Times(
        device=mine / slower,
        up=up / link.up_bps,
        server=theirs / share,
        down=down / link.down_bps,
        latency=messages * link.latency_s,
    )


def reached(device: DeviceProfile, server: DeviceProfile, share: float = 1.0) -> Link:
    """The device's link, no faster than its share of the server's: what a client sends, the server receives."""
    link, theirs = device.link or ASSUMED_LINK, server.link
    if theirs is None:
        return link
    up, down = min(link.up_bps, share * theirs.down_bps), min(link.down_bps, share * theirs.up_bps)
    return Link(up_bps=up, down_bps=down, latency_s=link.latency_s)


def speed(device: DeviceProfile, dtype: str) -> float:
    """FLOP/s in ``dtype``; float32's where it was not measured."""
    return device.flops.get(dtype) or device.flops["float32"]


def layers_s(work: Work, layers: range, device: DeviceProfile) -> float:
    """Forward and backward of all micro-batches through these layers, their factors training."""
    if not layers:
        return 0.0
    card, tokens, flops = work.card, work.batch * work.typical, speed(device, work.dtype)
    lora = work.adapter_params[layers.stop] - work.adapter_params[layers.start]
    attention = 4 * work.typical * card.attention_width
    forward = len(layers) * (2 * card.macs + attention) + 2 * lora
    back = max(0, layers.stop - max(layers.start, work.lowest))
    backward = back * (2 * card.macs + 2 * attention) + 4 * lora
    read = work.layer_bytes / device.memory_bandwidth_bps * work.micro_batches
    fixed = (len(layers) + back) * work.micro_batches * device.layer_overhead_s
    return max(forward * tokens / flops, len(layers) * read) + max(backward * tokens / flops, back * read) + fixed


def embedding_s(work: Work, device: DeviceProfile) -> float:
    """Forward only: the embedding is frozen. Looking rows up is free, projecting patches is not."""
    return 2 * work.card.embedding_macs * work.batch * work.typical / speed(device, work.dtype)


def head_s(work: Work, device: DeviceProfile) -> float:
    """Forward and backward of the task head: of every token of a language model, of every row otherwise."""
    count = work.batch * (work.typical if work.card.task == "causal-lm" else 1)
    return (6 if work.trains_head else 4) * work.card.head_macs * count / speed(device, work.dtype)


def traffic(work: Work, topology: Topology, cut: Cut) -> tuple[int, int]:
    """(up, down) bytes of tensors of one step; hidden states travel without their padding, labels as 64-bit numbers."""
    if topology is Topology.LOCAL:
        return 0, 0
    crossing = round(work.batch * work.valid * work.card.hidden * work.width_bytes)
    back = crossing if work.lowest < cut.c1 else 0
    if topology is Topology.V:
        labels = work.valid if work.card.task == "causal-lm" else 1
        return crossing + round(8 * work.batch * labels), back
    return 2 * crossing, crossing + back
