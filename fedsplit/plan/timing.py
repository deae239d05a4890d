"""Seconds of one step, cause by cause, by a roofline a segment and a rate plus a latency a message.

A layer with P weights takes 2·P + 4·T·W multiplications-and-additions a token forward (W = attention width, scores and
values, not halved for causality), and backward through frozen weights as much for the projections and twice as much
for the attention: only input gradients are formed, and none below the lowest layer that trains. LoRA adds 2·R·(M + N)
forward and twice that backward. Seconds are max(operations / speed, bytes of weights / memory bandwidth) + the layer's
fixed overhead.

Layers that are computed twice cost a forward more, from the lowest layer that trains on. Micro-batches overlap:
``pipeline`` says by how much.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.memory import back_layers, crossings, served
from fedsplit.plan.pipeline import Legs, overlap
from fedsplit.plan.threads import share_of
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work, held

ASSUMED_LINK = Link(up_bps=12.5e6, down_bps=12.5e6, latency_s=0.005)
"""100 Mbit/s and 5 ms: taken, and said, where a link was never measured."""

ENDS = 4
"""Fixed costs of embedding, head, loss and optimiser together, in passes through a layer (estimate)."""
BEGIN = 1
"""Those of them that come first."""
AGREEMENT = 2
"""Messages with which both sides agree on the step."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one optimiser step by cause; ``overlap``: how much of them passes at the same time as others."""

    device: float
    up: float = 0.0
    server: float = 0.0
    down: float = 0.0
    latency: float = 0.0
    overlap: float = 0.0

    @property
    def total(self) -> float:
        return self.device + self.up + self.server + self.down + self.latency - self.overlap

    def largest(self) -> tuple[str, float]:
        """The cause that takes longest."""
        names = [field.name for field in fields(self) if field.name != "overlap"]
        return max(((name, getattr(self, name)) for name in names), key=lambda item: item[1])


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
    legs = legs_of(work, topology, cut, device, server, threads=threads, share=share, link_share=link_share)
    if topology is Topology.LOCAL:
        return Times(device=legs.device)
    count = crossings(work, topology, cut)
    return Times(
        device=legs.device,
        up=legs.up + legs.up_back,
        server=legs.server,
        down=legs.down + legs.down_back,
        latency=(count * work.micro_batches + AGREEMENT) * legs.wait,
        overlap=float(overlap(legs, work.micro_batches, count)),
    )


def legs_of(
    work: Work,
    topology: Topology,
    cut: Cut,
    device: DeviceProfile,
    server: DeviceProfile,
    *,
    threads: int = 0,
    share: float = 1.0,
    link_share: float = 1.0,
) -> Legs:
    """The step's seconds, leg by leg; arguments as ``step_times``."""
    mine = _own_legs(work, topology, cut, device, share_of(device, work.dtype, threads))
    if topology is Topology.LOCAL:
        return mine
    body, body_back = passes(work, served(topology, cut, work.card.num_layers), server)
    up, down = traffic(work, topology, cut)
    first_down, up_back = (0, 0) if topology is Topology.V else work.crossing_bytes
    if topology is Topology.V:
        body, body_back = body + body_back + head_s(work, server), 0.0
    link = reached(device, server, link_share)
    return replace(
        mine,
        up=(up - up_back) / link.up_bps,
        body=body / share,
        down=first_down / link.down_bps,
        up_back=up_back / link.up_bps,
        body_back=body_back / share,
        down_back=(down - first_down) / link.down_bps,
        wait=link.latency_s,
        wait_back=link.latency_s if work.lowest < cut.c1 else 0.0,
    )


def _own_legs(work: Work, topology: Topology, cut: Cut, device: DeviceProfile, slower: float) -> Legs:
    """What the client computes. ``slower``: the speed that is left of the device's."""
    front, tail = held(topology, cut, work.card.num_layers)
    there, back = passes(work, front, device, twice=work.twice)
    there += embedding_s(work, device) + BEGIN * work.micro_batches * device.layer_overhead_s
    ends = (ENDS - BEGIN) * work.micro_batches * device.layer_overhead_s
    if topology is Topology.V:
        return Legs(front=there / slower, back=(back + ends) / slower)
    end = sum(passes(work, tail, device, twice=work.twice)) + head_s(work, device) + ends
    return Legs(front=there / slower, tail=end / slower, back=back / slower)


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
    return sum(passes(work, layers, device))


def passes(work: Work, layers: range, device: DeviceProfile, *, twice: bool = False) -> tuple[float, float]:
    """(forward, backward) seconds of all micro-batches through these layers. ``twice``: there once more going back."""
    if not layers:
        return 0.0, 0.0
    card, tokens, flops = work.card, work.batch * work.typical, speed(device, work.dtype)
    lora = work.adapter_params[layers.stop] - work.adapter_params[layers.start]
    attention = 4 * work.typical * card.attention_width
    forward = len(layers) * (2 * card.macs + attention) + 2 * lora
    back = back_layers(work, layers)
    backward = back * (2 * card.macs + 2 * attention) + 4 * lora
    read = work.layer_bytes / device.memory_bandwidth_bps * work.micro_batches
    fixed = work.micro_batches * device.layer_overhead_s
    there = max(forward * tokens / flops, len(layers) * read) + len(layers) * fixed
    return_s = max(backward * tokens / flops, back * read) + back * fixed
    if twice:
        again = back * (2 * card.macs + attention) + 2 * lora
        return_s += max(again * tokens / flops, back * read) + back * fixed
    return there, return_s


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
    crossing, gradient = work.crossing_bytes
    back = gradient if work.lowest < cut.c1 else 0
    if topology is Topology.V:
        labels = work.valid if work.card.task == "causal-lm" else 1
        return crossing + round(8 * work.batch * labels), back
    return crossing + gradient, crossing + back
