"""What a device on which not everything fits could train instead: every set of layers worth looking at, with its price.

A plan that was cut down (``fitted``) trains the most valuable layers, which for all devices alike are the upper ones.
For the fleet's sake (``cover``) a device may train others. At a cut and a number of micro-batches the lowest layer that
trains decides how much is left for the layers above it (``selection``). Of these every choice is offered, up to ``FEW``
layers; beyond, runs of neighbours that fill the memory, beginning at each of them. All that train have one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.fitted import Fitter, room_bytes
from fedsplit.plan.knapsack import Segment
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, priced
from fedsplit.plan.selection import own_layers, segment_of, server_ranks, value_of
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work

FEW = 6
"""Layers above the lowest one of which every choice is looked at."""
RUNS = 8
"""Of longer segments about so many runs of neighbours, for each lowest layer; more where runs are shorter."""
MOST_CELLS = 256
"""Cuts times numbers of micro-batches up to which every cut is looked at; beyond, the longest body of each front."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Way:
    """``index``: of the micro-batches among the question's; ``mask``: bit l is set where layer l trains, on the device
    or on the server."""

    option: Option
    index: int
    mask: int
    value: float


def mask_of(work: Work) -> int:
    """The layers whose factors train, as bits."""
    sums = work.adapter_params
    return sum(1 << layer for layer in range(work.card.num_layers) if sums[layer + 1] > sums[layer])


class Menu:
    """The ways of all clients that differ from the fitter's in device and share alone; what they have in common is
    computed once."""

    def __init__(self, fitter: Fitter) -> None:
        self._fitter = fitter
        self._segments: dict[tuple[Topology, Cut, int, bool], Segment] = {}
        cells = sum(map(len, fitter.rows)) * len(fitter.works)
        self._all = cells <= MOST_CELLS

    def ways(self, question: Question) -> list[Way]:
        """Every way that fits and that no other beats: more layers, worth more, in less time. The fastest first."""
        found: dict[tuple[int, float], Way] = {}
        for row in self._fitter.rows:
            for choice in row:
                here = list(self._at(question, choice))
                for way in here:
                    key = way.mask, way.value
                    if key not in found or way.option.key < found[key].option.key:
                        found[key] = way
                if here and not self._all:
                    break
        return _undominated(sorted(found.values(), key=lambda way: (way.option.key, way.mask)))

    def missing(self, question: Question, layer: int) -> int | None:
        """Bytes of memory without which this device cannot train ``layer`` in any way; None: no memory would do."""
        lacks = []
        for choice in (choice for row in self._fitter.rows for choice in row):
            for index, work in enumerate(self._fitter.works):
                segment, own = self._segment(question, choice, index), own_layers(work, *choice)
                place = own.index(layer) if layer in own else len(own)
                floor = segment.floor[place]
                if floor is None or not (place < len(own) or server_ranks(work, *choice)[layer]):
                    continue
                able = [item.bytes for item in segment.layers[place] if item.rank] if place < len(own) else [0]
                lacks.append(floor + min(able) - room_bytes(question))
        return max(0, min(lacks)) if lacks else None

    def _at(self, question: Question, choice: tuple[Topology, Cut]) -> Iterator[Way]:
        """The ways of one cut."""
        seen: set[tuple[int, ...]] = set()
        for index, work in enumerate(self._fitter.works):
            own, base = own_layers(work, *choice), server_ranks(work, *choice)
            for layers in self._sets(self._segment(question, choice, index), room_bytes(question)):
                ranks = list(base)
                for place, rank in layers:
                    ranks[own[place]] = rank
                if tuple(ranks) in seen:
                    continue
                part = replace(work, ranks=tuple(ranks))
                option = priced(question, *choice, [part])
                if option.fits and (mask := mask_of(part)):
                    seen.add(tuple(ranks))
                    yield Way(option=option, index=index, mask=mask, value=value_of(part))

    def _segment(self, question: Question, choice: tuple[Topology, Cut], index: int) -> Segment:
        key = *choice, index, bool(question.device.runtime_bytes)
        if key not in self._segments:
            work, ranks = self._fitter.works[index], self._fitter.ranks
            self._segments[key] = segment_of(work, *choice, question.device, ranks)
        return self._segments[key]

    def _sets(self, segment: Segment, room: int) -> Iterator[list[tuple[int, int]]]:
        """(place, rank) of the client's layers that train together within the room, all at one rank."""
        if segment.floor[-1] is not None and segment.floor[-1] <= room:
            yield []
        for rank in reversed(self._fitter.ranks):
            cost = [next((item.bytes for item in items if item.rank == rank), None) for items in segment.layers]
            for lowest, floor in enumerate(segment.floor[:-1]):
                first = cost[lowest]
                if floor is None or first is None or floor + first > room:
                    continue
                above = {place: taken for place, taken in enumerate(cost) if place > lowest and taken is not None}
                for some in _fillings(above, room - floor - first):
                    yield [(place, rank) for place in (lowest, *some)]


def _fillings(cost: dict[int, int], room: int) -> Iterator[tuple[int, ...]]:
    """Choices of places within the room; see ``FEW``."""
    if len(cost) <= FEW:
        for size in range(len(cost), -1, -1):
            yield from (some for some in combinations(cost, size) if sum(cost[place] for place in some) <= room)
    elif sum(cost.values()) <= room:
        yield tuple(cost)
    else:
        yield from dict.fromkeys(_runs(list(cost.items()), room))


def _runs(cost: Sequence[tuple[int, int]], room: int) -> Iterator[tuple[int, ...]]:
    """From places upwards, and on from the lowest one, what fits; every place is in one of them."""
    start = 0
    while start < len(cost):
        left, some = room, []
        for place, taken in (*cost[start:], *cost[:start]):
            if taken <= left:
                left -= taken
                some.append(place)
        yield tuple(sorted(some))
        start += max(1, min(len(some), len(cost) // RUNS))


def _undominated(ways: Sequence[Way]) -> list[Way]:
    """Ways in the order of their time, without those that an earlier one beats."""
    found: list[Way] = []
    masks = np.zeros((0, 0), dtype=bool)
    layers = max((way.mask.bit_length() for way in ways), default=0)
    masks, values = np.zeros((len(ways), layers), dtype=bool), np.zeros(len(ways))
    for way in ways:
        bits = np.array([bool(way.mask >> layer & 1) for layer in range(layers)])
        count = len(found)
        if ((masks[:count] | ~bits).all(axis=1) & (values[:count] >= way.value)).any():
            continue
        masks[count], values[count] = bits, way.value
        found.append(way)
    return found
