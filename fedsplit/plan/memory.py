"""Peak memory of a client and of the server for one client, term by term.

    weights   = layers held · P_l · bytes                      frozen, in the compute dtype or in fewer bits (``bits``)
    embedding = its tables; head = what it does not share with them
    adapters  = state_bytes · θ                                fp32 weight 4 + gradient 4 + moments (AdamW 8)
    acts      = N · bytes · Σ_{l ≥ l_min} (kept_l + lora_l)    l_min: the lowest layer of the model that trains;
                                                               the front's times the micro-batches in flight
    recompute = N · bytes · (kept + lora - D), one layer       where layers keep their input alone (acts: D a layer):
                                                               what is in one while it is computed again
    logits    = chunk · V · (bytes + 4 + 4)                    N when the loss is not cut into slices
    wire      = crossings · N · D · bytes
    holes     = 0.7 · (acts + recompute + logits + wire) + half a layer's acts
                + 0.45 · recompute · (layers computed again + 1)

Derivation: backprop walks through every layer above the lowest trainable parameter, adapted or not, and each of them
keeps its inputs (``ModelCard.kept_elements``): a front in which nothing trains keeps nothing, a tail above a training
body always does. Checked against saved-tensor hooks and the worked example of docs/planner.md.

The rest is what a process takes beyond its live bytes: a layer's intermediate results, and the holes that glibc's heap
keeps once tensors of many megabytes come and go. Measured on x86-64 Linux with torch 2.13, seven plans of two models:
peaks were 1.3 to 2.0 times the live bytes, and 0.9 to 1.2 times this formula (docs/planner.md). Blocks mapped one by
one (``MALLOC_MMAP_THRESHOLD_=1048576``) have no holes, and steps take longer. Sizes in bytes; N = tokens of one
micro-batch, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.bits import layer_bytes as client_layer_bytes
from fedsplit.plan.bits import server_layer_bytes, torch_bytes, unpacked_bytes, weight_bytes
from fedsplit.plan.edge import Held, terms
from fedsplit.plan.model import ModelCard
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.plan.work import IN_FLIGHT, Work, held

HEAP_HOLES = 0.7
"""Bytes lost beside each live byte that comes and goes, in the C library's heap."""
CACHE_HOLES = 0.1
"""The same on a GPU, whose caching allocator rounds and splits (estimate)."""
CHURN = 0.45
"""Of a layer's inside, what each layer computed again leaves as holes in the heap (measured at 1 to 24 layers)."""
SLABS_BYTES = 3 * (1 << 23)
"""Of a streamed vocabulary at a time: rows, their float32 copy, their logits (``split/streamed.py``)."""
WORKING_LAYERS = 0.5
"""Intermediate results of the layer being computed, as a share of what a layer keeps."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak bytes by cause; ``twice`` is a number, the layers that are computed again."""

    weights: int
    embedding: int = 0
    head: int = 0
    adapters: int = 0
    acts_front: int = 0
    acts_tail: int = 0
    recompute: int = 0
    logits: int = 0
    wire: int = 0
    holes: int = 0
    runtime: int = 0
    twice: int = 0

    @property
    def total(self) -> int:
        return sum(self._causes().values())

    def _causes(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "twice"}

    @property
    def passing(self) -> int:
        """Bytes that come and go with every step."""
        return self.acts_front + self.acts_tail + self.recompute + self.logits + self.wire

    def on(self, work: Work, *, accelerator: bool) -> Memory:
        """With a large vocabulary left in its file, as CPUs do: embedding, a language model's head, whole logits."""
        if accelerator or not (self.embedding and work.streams):
            return self
        own, table = work.card.head_params, work.card.vocab * work.card.hidden
        if work.card.task != "causal-lm" or not self.head:
            return replace(self, embedding=self.embedding - table * work.width_bytes)
        return replace(
            self,
            embedding=self.embedding - table * work.width_bytes,
            head=self.head - own * work.width_bytes,
            logits=min(self.logits, SLABS_BYTES),
        )

    def with_holes(self, work: Work, device: DeviceProfile) -> Memory:
        """The peak of the process on ``device``. A device without a runtime of its own is an accelerator.

        One without torch has no such holes: its live bytes are those of ``plan.edge``, the pool they leave included.
        """
        if device.edge:
            return replace(self, runtime=device.runtime_bytes)
        return self.on(work, accelerator=not device.runtime_bytes)._with_holes(work, device)

    def _with_holes(self, work: Work, device: DeviceProfile) -> Memory:
        share = HEAP_HOLES if device.runtime_bytes else CACHE_HOLES
        layer = work.peak_tokens * work.width_bytes * work.largest_kept
        working = WORKING_LAYERS * layer if self.weights else 0.0
        churn = CHURN * (self.twice + 1) * self.recompute if device.runtime_bytes else 0.0
        return replace(self, holes=round(share * self.passing + working + churn), runtime=device.runtime_bytes)

    def largest(self) -> tuple[str, int]:
        """The cause that takes most."""
        return max(self._causes().items(), key=lambda item: item[1])


def client_memory(work: Work, topology: Topology, cut: Cut) -> Memory:
    """Live bytes at the peak of a step on the client; ``with_holes`` makes it the peak of the process."""
    card = work.card
    front, tail = held(topology, cut, card.num_layers)
    waiting = 1 if topology is Topology.LOCAL else min(IN_FLIGHT, work.micro_batches)
    has_head = topology is not Topology.V
    if work.edge:
        return _on_edge(work, topology, cut)
    own_head = card.head_params + card.norm_params if has_head else 0
    twice = back_layers(work, front) + back_layers(work, tail) if work.checkpoint else 0
    return Memory(
        weights=weight_bytes(work, (*front, *tail)),
        embedding=card.embedding_params * work.width_bytes,
        head=own_head * work.width_bytes,
        adapters=work.state_bytes * trained_params(work, topology, cut),
        acts_front=waiting * activations(work, front, inputs_only=work.checkpoint),
        acts_tail=activations(work, tail, inputs_only=work.checkpoint),
        recompute=recompute(work) if twice else 0,
        twice=twice,
        logits=logits(work) if has_head else 0,
        wire=crossings(work, topology, cut) * work.peak_tokens * card.hidden * work.width_bytes,
    )


def _on_edge(work: Work, topology: Topology, cut: Cut) -> Memory:
    front, tail = held(topology, cut, work.card.num_layers)
    found = terms(
        work,
        Held(
            front=len(front),
            tail=len(tail),
            front_back=back_layers(work, front),
            tail_back=back_layers(work, tail),
            head=int(topology is not Topology.V),
            crossings=crossings(work, topology, cut),
            waiting=1 if topology is Topology.LOCAL else min(IN_FLIGHT, work.micro_batches),
            trained=trained_params(work, topology, cut),
        ),
    )
    fewer = weight_bytes(work, (*front, *tail)) - (len(front) + len(tail)) * client_layer_bytes(work, 0)
    return Memory(**{name: int(value) + (fewer if name == "weights" else 0) for name, value in found.items()})


def server_memory(work: Work, topology: Topology, cut: Cut) -> Memory:
    """What one client alone costs the server: the layers it needs, one set of adapters, one micro-batch in flight."""
    card = work.card
    layers = served(topology, cut, card.num_layers)
    heads = topology is Topology.V
    tied = card.embedding_params if card.tied else 0
    theta = work.adapter_params[layers.stop] - work.adapter_params[layers.start]
    theta += card.head_trained if heads and work.trains_head else 0
    return Memory(
        weights=len(layers) * server_layer_bytes(work) + unpacked_bytes(work) * bool(work.server_bits and layers),
        head=(card.head_params + card.norm_params + tied) * work.width_bytes if heads else 0,
        adapters=work.state_bytes * theta,
        acts_tail=activations(work, layers),
        logits=logits(work) if heads else 0,
        wire=crossings(work, topology, cut) * work.peak_tokens * card.hidden * work.width_bytes,
    )


def served(topology: Topology, cut: Cut, num_layers: int) -> range:
    """The layers that the server holds for this client."""
    if topology is Topology.LOCAL:
        return range(0)
    return range(cut.c1, num_layers if topology is Topology.V else cut.c2)


def trained_params(work: Work, topology: Topology, cut: Cut) -> int:
    """Scalars that the client trains: the factors of its layers, and the head where it has one that trains."""
    sums = work.adapter_params
    theta = sum(sums[part.stop] - sums[part.start] for part in held(topology, cut, work.card.num_layers))
    return theta + (work.card.head_trained if work.trains_head and topology is not Topology.V else 0)


def back_layers(work: Work, layers: range) -> int:
    """How many of these layers backward passes through."""
    return max(0, layers.stop - max(layers.start, work.lowest))


def activations(work: Work, layers: range, *, inputs_only: bool = False) -> int:
    """Bytes that a segment keeps for backward between its forward and its backward pass."""
    back = back_layers(work, layers)
    if not back:
        return 0
    if inputs_only:
        return back * work.peak_tokens * work.width_bytes * work.card.hidden
    lora = work.adapter_kept[layers.stop] - work.adapter_kept[layers.stop - back]
    return round(work.peak_tokens * work.width_bytes * (back * work.kept + lora))


def recompute(work: Work) -> int:
    """Bytes inside the largest layer, beside its input, while it is computed again."""
    inside = max(0.0, work.largest_kept - work.card.hidden)
    return round(work.peak_tokens * work.width_bytes * inside)


def logits(work: Work) -> int:
    """Bytes of the task head's outputs: compute dtype, a float32 copy and its gradient."""
    if work.card.task == "causal-lm":
        tokens = min(work.chunk or work.peak_tokens, work.peak_tokens)
        return tokens * work.card.vocab * (work.width_bytes + 8)
    return work.rows * work.card.num_labels * (work.width_bytes + 8)


def crossings(work: Work, topology: Topology, cut: Cut) -> int:
    """How often a micro-batch's hidden states or gradients cross the wire; the front's gradient only if it trains."""
    if topology is Topology.LOCAL:
        return 0
    back = 1 if work.lowest < cut.c1 else 0
    return (1 if topology is Topology.V else 3) + back


def disk_bytes(work: Work, topology: Topology, cut: Cut) -> int:
    """Weights that the client downloads and keeps, in the checkpoint's precision."""
    card = work.card
    front, tail = held(topology, cut, card.num_layers)
    params = (len(front) + len(tail)) * card.layer_params + card.embedding_params
    params += card.head_params + card.norm_params if topology is not Topology.V else 0
    return params * card.stored_bits // 8


def server_total(card: ModelCard, plans: Sequence[ClientPlan], width_bytes: int) -> int:
    """Weights once for all clients (the layers any of them needs), everything else for each."""
    layers: set[int] = set()
    own = 0
    bits = min((layer.bits for plan in plans for layer in plan.layers if layer.place == "server"), default=0)
    layer_bytes = torch_bytes(card, width_bytes, bits)
    for plan in plans:
        theirs = served(plan.topology, plan.cut, card.num_layers)
        layers.update(theirs)
        if plan.estimate is not None:
            own += plan.estimate.server_memory_bytes - len(theirs) * layer_bytes
    return own + len(layers) * layer_bytes


def adapter_bytes(work: Work, topology: Topology, cut: Cut) -> int:
    """Bytes of the factors (and the shared head) that a client sends, and gets, once a round in float32."""
    return 4 * trained_params(work, topology, cut)
