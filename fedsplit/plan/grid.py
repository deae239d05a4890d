"""Every (micro-batches × topology and cut) of a step as arrays: what does not depend on the device, computed once.

The closed forms of ``memory`` and ``timing`` are the definition; here they stand once more over arrays, operation by
operation in the same order, so that the numbers are equal to the last bit (``tests/plan/test_grid.py``). A fleet has
few kinds of data and many devices: a grid serves them all. Shape letters: M numbers of micro-batches, O cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.bits import server_layer_bytes, unpacked_bytes
from fedsplit.plan.edge import Held, terms
from fedsplit.plan.memory import CACHE_HOLES, CHURN, HEAP_HOLES, WORKING_LAYERS, Memory, logits, recompute
from fedsplit.plan.timing import head_s, speed
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import IN_FLIGHT, Work

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive layers [start, stop) of each cut (O): operations of all micro-batches, layers walked each way."""

    start_O: Ints
    stop_O: Ints
    lora_O: Ints
    count_O: Ints
    back_O: Ints
    forward_O: Floats
    backward_O: Floats
    again_O: Floats

    def at(self, columns: Ints) -> Segment:
        """One cut an entry."""
        return Segment(**{field.name: getattr(self, field.name)[columns] for field in fields(self)})

    def passes(
        self,
        work: Work,
        micro: Ints | int,
        flops: Floats | float,
        bandwidth: Floats | float,
        overhead: Floats | float,
        *,
        twice: NDArray[np.bool_] | bool = False,
    ) -> tuple[Floats, Floats]:
        """``timing.passes`` for every cut; the other arguments broadcast against (…, O)."""
        read = work.layer_bytes / bandwidth * micro
        fixed = micro * overhead
        there: Floats = np.maximum(self.forward_O / flops, self.count_O * read) + self.count_O * fixed
        pause, least = self.back_O * fixed, self.back_O * read
        back: Floats = np.maximum(self.backward_O / flops, least) + pause
        if np.any(twice):
            back = back + np.where(twice, np.maximum(self.again_O / flops, least) + pause, 0.0)
        return there, back


def segment(work: Work, start_O: Ints, stop_O: Ints) -> Segment:
    sums = np.array(work.adapter_params, dtype=np.int64)
    card, tokens = work.card, work.batch * work.typical
    lora = sums[stop_O] - sums[start_O]
    attention = 4 * work.typical * card.attention_width
    count = stop_O - start_O
    back = np.maximum(0, stop_O - np.maximum(start_O, work.lowest))
    forward = count * (2 * card.macs + attention) + 2 * lora
    backward = back * (2 * card.macs + 2 * attention) + 4 * lora
    return Segment(
        start_O=start_O, stop_O=stop_O, lora_O=lora, count_O=count, back_O=back, forward_O=forward * tokens,
        backward_O=backward * tokens, again_O=(back * (2 * card.macs + attention) + 2 * lora) * tokens,
    )  # fmt: skip


def kept(work: Work, part: Segment, *, inputs_only: bool = False) -> Ints:
    """``memory.activations`` of every cut, bytes (O)."""
    if inputs_only:
        return part.back_O * (work.peak_tokens * work.width_bytes * work.card.hidden)
    sums = np.array(work.adapter_kept)
    start = np.maximum(part.start_O, work.lowest)
    lora = sums[part.stop_O] - sums[np.minimum(start, part.stop_O)]
    found = work.peak_tokens * work.width_bytes * ((part.stop_O - start) * work.kept + lora)
    return np.where(start >= part.stop_O, 0, np.rint(found)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All candidates of one kind of client. ``works``: the step in ever more micro-batches (M)."""

    works: Sequence[Work]
    chosen: Sequence[tuple[Topology, Cut]]

    @cached_property
    def micro_M(self) -> Ints:
        return np.array([work.micro_batches for work in self.works], dtype=np.int64)

    @cached_property
    def c1_O(self) -> Ints:
        return np.array([cut.c1 for _, cut in self.chosen], dtype=np.int64)

    @cached_property
    def c2_O(self) -> Ints:
        return np.array([cut.c2 for _, cut in self.chosen], dtype=np.int64)

    def is_(self, topology: Topology) -> NDArray[np.bool_]:
        """Which candidates have this topology (O)."""
        return np.array([one is topology for one, _ in self.chosen], dtype=bool)

    @cached_property
    def front(self) -> Segment:
        layers = self.works[0].card.num_layers
        stop = np.where(self.is_(Topology.LOCAL), layers, self.c1_O)
        return segment(self.works[0], np.zeros_like(stop), stop)

    @cached_property
    def tail(self) -> Segment:
        layers = self.works[0].card.num_layers
        whole = self.is_(Topology.LOCAL) | self.is_(Topology.V)
        start = np.where(whole, layers, self.c2_O)
        return segment(self.works[0], start, np.full_like(start, layers))

    @cached_property
    def body(self) -> Segment:
        layers = self.works[0].card.num_layers
        local, v = self.is_(Topology.LOCAL), self.is_(Topology.V)
        stop = np.where(v, layers, self.c2_O)
        return segment(self.works[0], np.where(local, 0, self.c1_O), np.where(local, 0, stop))

    @cached_property
    def crossings_O(self) -> Ints:
        """``memory.crossings``: tensors of hidden states that a micro-batch sends and gets."""
        back = (self.works[0].lowest < self.c1_O).astype(np.int64)
        once = np.where(self.is_(Topology.V), 1, 3) + back
        return np.where(self.is_(Topology.LOCAL), 0, once)

    @cached_property
    def bytes_O(self) -> tuple[Ints, Ints]:
        """``timing.traffic``: (up, down) bytes of a step."""
        work = self.works[0]
        crossing, gradient = work.crossing_bytes
        labels = round(8 * work.batch * (work.valid if work.card.task == "causal-lm" else 1))
        v, local = self.is_(Topology.V), self.is_(Topology.LOCAL)
        back = np.where(work.lowest < self.c1_O, gradient, 0)
        up = np.where(v, crossing + labels, crossing + gradient)
        down = np.where(v, back, crossing + back)
        return np.where(local, 0, up), np.where(local, 0, down)

    def client_MO(self, *, accelerator: bool) -> Ints:
        """Peak bytes on the device without the program's own (``client_memory`` with holes)."""
        return np.stack([self._client(work, accelerator) for work in self.works])

    def server_MO(self, *, accelerator: bool) -> Ints:
        """The same on the server for this client alone."""
        return np.stack([self._server(work, accelerator) for work in self.works])

    def served_MO(self, server: DeviceProfile) -> tuple[Floats, Floats]:
        """(body there, body back) in seconds of the undivided server; ``v`` has all of it in the first."""
        work, flops = self.works[0], speed(server, self.works[0].dtype)
        micro, v = self.micro_M[:, None], self.is_(Topology.V)
        there, back = self.body.passes(work, micro, flops, server.memory_bandwidth_bps, server.layer_overhead_s)
        return np.where(v, there + back + head_s(work, server), there), np.where(v, 0.0, back)

    def _client(self, work: Work, accelerator: bool) -> Ints:
        if work.edge:
            return self._on_edge(work)
        card = work.card
        head = ~self.is_(Topology.V)
        held = self.front.count_O + self.tail.count_O
        waiting = np.where(self.is_(Topology.LOCAL), 1, min(IN_FLIGHT, work.micro_batches))
        trained = self.front.lora_O + self.tail.lora_O + np.where(head & work.trains_head, card.head_trained, 0)
        ends = Memory(
            weights=0, embedding=card.embedding_params * work.width_bytes,
            head=(card.head_params + card.norm_params) * work.width_bytes, logits=logits(work),
        ).on(work, accelerator=accelerator)  # fmt: skip
        stays = held * work.layer_bytes + ends.embedding + work.state_bytes * trained + np.where(head, ends.head, 0)
        once = work.checkpoint
        twice = (self.front.back_O + self.tail.back_O) * once
        inside = np.where(twice > 0, recompute(work), 0)
        passing = waiting * kept(work, self.front, inputs_only=once) + kept(work, self.tail, inputs_only=once)
        passing += inside + np.where(head, ends.logits, 0)
        churn = np.where(accelerator, 0.0, CHURN * (twice + 1) * inside)
        return _with_holes(work, stays, passing + self._wire(work), held * work.layer_bytes > 0, accelerator, churn)

    def _on_edge(self, work: Work) -> Ints:
        head = ~self.is_(Topology.V)
        trained = self.front.lora_O + self.tail.lora_O + np.where(head & work.trains_head, work.card.head_trained, 0)
        waiting = np.where(self.is_(Topology.LOCAL), 1, min(IN_FLIGHT, work.micro_batches))
        found = terms(
            work,
            Held(
                front=self.front.count_O, tail=self.tail.count_O, front_back=self.front.back_O,
                tail_back=self.tail.back_O, head=head.astype(np.int64), crossings=self.crossings_O, waiting=waiting,
                trained=trained,
            ),
        )  # fmt: skip
        total: Ints = np.sum(np.broadcast_arrays(*(value for name, value in found.items() if name != "twice")), axis=0)
        return total

    def _server(self, work: Work, accelerator: bool) -> Ints:
        card = work.card
        head = self.is_(Topology.V)
        tied = card.embedding_params if card.tied else 0
        trained = self.body.lora_O + np.where(head & work.trains_head, card.head_trained, 0)
        weights = self.body.count_O * server_layer_bytes(work)
        weights += (self.body.count_O > 0) * unpacked_bytes(work) * bool(work.server_bits)
        stays = weights + work.state_bytes * trained
        stays += np.where(head, (card.head_params + card.norm_params + tied) * work.width_bytes, 0)
        passing = kept(work, self.body) + np.where(head, logits(work), 0)
        return _with_holes(work, stays, passing + self._wire(work), weights > 0, accelerator, 0.0)

    def _wire(self, work: Work) -> Ints:
        return self.crossings_O * work.peak_tokens * work.card.hidden * work.width_bytes


def _with_holes(
    work: Work, stays: Ints, passing: Ints, loaded: NDArray[np.bool_], accelerator: bool, churn: Floats | float
) -> Ints:
    """``Memory.with_holes`` over arrays."""
    share = CACHE_HOLES if accelerator else HEAP_HOLES
    layer = work.peak_tokens * work.width_bytes * work.largest_kept
    holes = np.rint(share * passing + np.where(loaded, WORKING_LAYERS * layer, 0.0) + churn)
    total: Ints = stays + passing + holes.astype(np.int64)
    return total
