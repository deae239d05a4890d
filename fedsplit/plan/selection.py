"""A cut's memory as a knapsack: which of the client's own layers train, at which rank, and what each of them costs.

What the server holds always trains at the run's rank: it has the memory. Of the client's layers each is frozen or gets
one of the ranks; a layer that trains costs its factors with their optimiser state and what they keep for backward, and
the lowest one decides how much everything above it keeps (``floor``). Both come from the closed forms of ``memory``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.bits import ERROR, layer_bytes
from fedsplit.plan.knapsack import Item, Segment, layer_value
from fedsplit.plan.memory import CACHE_HOLES, HEAP_HOLES, client_memory, served
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import IN_FLIGHT, Work, held

ROUNDING = 4
"""Bytes that the closed forms may lose by rounding their terms."""


def own_layers(work: Work, topology: Topology, cut: Cut) -> list[int]:
    """The layers that the client holds, the lowest first."""
    front, tail = held(topology, cut, work.card.num_layers)
    return [*front, *tail]


def segment_of(
    work: Work,
    topology: Topology,
    cut: Cut,
    device: DeviceProfile,
    ranks: Sequence[int],
    importance: Sequence[float] = (),
    bits: Sequence[int] = (),
) -> Segment:
    """The client's layers at this cut; bytes are those of the process without the program itself.

    ``ranks``: what a layer may be given; ``bits``: what its matrices may be given, empty: the run's alone;
    ``importance``: of every layer of the model, empty: all alike, together 1.
    """
    wide = 8 * work.width_bytes
    # Graphs have the bits of model.edge_bits.
    bits = sorted({wide, *(() if device.edge else bits)}, reverse=True)
    work = replace(work, layer_bits=(bits[-1] % wide,) * work.card.num_layers if bits[1:] else ())
    mine = own_layers(work, topology, cut)
    frozen = server_ranks(work, topology, cut)
    weights = importance or [1 / work.card.num_layers] * work.card.num_layers
    layers = [_items(work, topology, cut, device, ranks, layer, weights[layer], bits) for layer in mine]
    floor = [
        _taken(work, topology, cut, device, _with(frozen, layer, items[-1].rank)) - items[-1].bytes + ROUNDING
        if items[-1].rank
        else None
        for layer, items in zip(mine, layers, strict=True)
    ]
    # A plan in which no factor trains anywhere would be no training.
    nothing = replace(work, ranks=frozen).adapter_params[-1] == 0
    alone = None if nothing else _taken(work, topology, cut, device, frozen) + ROUNDING
    return Segment(layers=layers, floor=[*floor, alone])


def chosen_ranks(work: Work, topology: Topology, cut: Cut, items: Sequence[Item]) -> tuple[int, ...]:
    """The rank of every layer of the model once the client's layers take ``items``; 0: it does not train."""
    found = list(server_ranks(work, topology, cut))
    for layer, item in zip(own_layers(work, topology, cut), items, strict=True):
        found[layer] = item.rank
    return tuple(found)


def chosen_bits(work: Work, topology: Topology, cut: Cut, items: Sequence[Item]) -> tuple[int, ...]:
    """Bits of every layer's matrices once the client's layers take ``items``, 0: the run's; empty: those everywhere."""
    found = [0] * work.card.num_layers
    for layer, item in zip(own_layers(work, topology, cut), items, strict=True):
        found[layer] = item.bits % (8 * work.width_bytes)
    return tuple(found) if any(found) else ()


def value_of(work: Work, importance: Sequence[float] = ()) -> float:
    """What the factors of a step are worth in sum: imp · (1 − 2^(−R/4)) of every layer that trains, less imp · ε of
    every layer whose matrices have fewer bits than the run's."""
    layers, sums = range(work.card.num_layers), work.adapter_params
    weights = importance or [1 / len(layers)] * len(layers)
    # fsum: the same layers at other places are worth the same to the last bit.
    return math.fsum(
        layer_value(
            weights[layer],
            work.rank_of(layer) if sums[layer + 1] > sums[layer] else 0,
            penalty=weights[layer],
            error=ERROR[work.bits_of(layer)],
        )
        for layer in layers
    )


def server_ranks(work: Work, topology: Topology, cut: Cut) -> tuple[int, ...]:
    """The run's rank in the layers that the server holds, 0 in all others."""
    theirs = served(topology, cut, work.card.num_layers)
    return tuple(work.rank if layer in theirs else 0 for layer in range(work.card.num_layers))


def _with(ranks: Sequence[int], layer: int, rank: int) -> tuple[int, ...]:
    return (*ranks[:layer], rank, *ranks[layer + 1 :])


def _taken(work: Work, topology: Topology, cut: Cut, device: DeviceProfile, ranks: tuple[int, ...]) -> int:
    """Peak bytes by the closed form, without the program itself."""
    memory = client_memory(replace(work, ranks=ranks), topology, cut).with_holes(work, device)
    return memory.total - memory.runtime


def _items(
    work: Work,
    topology: Topology,
    cut: Cut,
    device: DeviceProfile,
    ranks: Sequence[int],
    layer: int,
    importance: float,
    bits: Sequence[int],
) -> list[Item]:
    """Downwards in bits: frozen, then the ranks upwards. The floors count the weights at the fewest bits."""
    found = []
    for width in bits:
        short = width % (8 * work.width_bytes)
        more = layer_bytes(work, short) - layer_bytes(work, work.bits_of(layer))
        for rank, cost in _ranked(work, topology, cut, device, ranks, layer):
            value = layer_value(importance, rank, penalty=importance, error=ERROR[short])
            found.append(Item(rank=rank, value=value, bytes=more + cost, bits=width))
    return found


def _ranked(
    work: Work, topology: Topology, cut: Cut, device: DeviceProfile, ranks: Sequence[int], layer: int
) -> Iterator[tuple[int, int]]:
    """(rank, bytes of the factors and of what they keep): frozen, then the ranks upwards where there is a target."""
    yield 0, 0
    for rank in sorted(ranks):
        params, elements = work.factors(layer, rank)
        if not params:
            break
        kept = 0.0 if work.twice else work.peak_tokens * work.width_bytes * elements
        waiting = 1 if topology is Topology.LOCAL or layer >= cut.c1 else min(IN_FLIGHT, work.micro_batches)
        holes = HEAP_HOLES if device.runtime_bytes else CACHE_HOLES
        cost = work.state_bytes * params + waiting * (1 + holes) * kept
        yield rank, math.ceil(cost)
