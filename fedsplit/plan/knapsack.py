"""Which layers train, at which rank and bits, within a number of bytes: a multiple-choice knapsack, exactly.

Backprop walks through every layer above the lowest one that trains, so memory is not a sum over the layers that train:

    bytes(S) = floor[l_min] + Σ_l bytes of the item chosen for layer l,        l_min the lowest layer that trains

With l_min given it is a sum, hence l_min is enumerated around a dynamic program over the layers above it. (A knapsack
that charges each trained layer what it keeps, and only that, breaks the budget most of the time: a test counts.) The
tables of the suffixes serve every l_min, so all of it costs O(layers · items · units). ``bound`` relaxes each case to
the convex hulls of its classes (Sinha and Zoltners, Operations Research 27, 1979).

Bytes are counted in units, rounded up, and values as whole numbers: nothing is over budget, no tie is left to rounding.
Shape letters: W units of memory, I items of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

UNITS = 2000
"""Resolution of the memory axis; a case loses at most one unit a layer."""
SCALE = 2**40
"""Values become whole numbers in steps of this part of 1, so that equal sums are equal in any order."""
_NEVER = -(2**60)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One way to hold a layer. ``rank`` 0: frozen. ``bytes``: its weights at ``bits`` unless the floors count them,
    its factors and what they keep for backward."""

    rank: int
    value: float
    bytes: int
    bits: int = 32


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Layers to choose for, the lowest first, each with its items. ``floor``: bytes that are needed whatever the items,
    when the lowest layer that trains is this one; the last entry: when none of these layers trains. None: not allowed.
    """

    layers: Sequence[Sequence[Item]]
    floor: Sequence[int | None]

    @cached_property
    def cheapest(self) -> tuple[int, ...]:
        return tuple(min(item.bytes for item in items) for items in self.layers)

    def case(self, lowest: int) -> list[list[Item]]:
        """The items of every layer that are left when ``lowest`` is the lowest layer that trains."""
        below = [[item for item in items if not item.rank] for items in self.layers[:lowest]]
        here = [[item for item in items if item.rank] for items in self.layers[lowest : lowest + 1]]
        return below + here + [list(items) for items in self.layers[lowest + 1 :]]


def layer_value(importance: float, rank: int, *, penalty: float = 0.0, error: float = 0.0) -> float:
    """imp · (1 − 2^(−R/4)) − κ · ε: what a layer at rank R is worth, less ``penalty`` times the relative output
    ``error`` of its weights at their bits."""
    return importance * (1 - 2 ** (-rank / 4)) - penalty * error


def best(segment: Segment, budget_bytes: int, *, units: int = UNITS) -> tuple[Item, ...] | None:
    """The most valuable items, one a layer, within the budget; None: nothing fits.

    Exact up to the rounding of bytes to units (none where the bytes have a common divisor that gives few units).
    Between equal values the deepest ``l_min`` (the quickest step), then the cheaper item, layer by layer from it.
    """
    found = Knapsack(segment, units=units)
    lowest = found.lowest(budget_bytes)
    return None if lowest is None else found.items(lowest, budget_bytes)


class Knapsack:
    """The tables of a segment, which serve every budget.

    ``off[l]``: best value of freezing the layers [0, l) within w units; ``free[l]``: of the layers [l, L) as one likes.
    """

    def __init__(self, segment: Segment, *, units: int = UNITS) -> None:
        self.segment = segment
        self.unit = _unit(segment, units)
        layers = len(segment.layers)
        self.width = sum(max(self._units(layer, item) for item in segment.layers[layer]) for layer in range(layers))
        self.off = [np.zeros(self.width + 1, dtype=np.int64)]
        for layer in range(layers):
            self.off.append(self._added(self.off[-1], layer, self._frozen(layer)))
        free = [np.zeros(self.width + 1, dtype=np.int64)]
        for layer in reversed(range(layers)):
            free.append(self._added(free[-1], layer, segment.layers[layer]))
        self.free = free[::-1]

    def lowest(self, budget_bytes: int) -> int | None:
        """Where the best choice within the budget starts to train; None: nothing fits."""
        found: tuple[int, int] | None = None
        for lowest in range(len(self.segment.layers) + 1):
            value = self._value(lowest, budget_bytes)
            if value is not None and (found is None or value >= found[0]):
                found = value, lowest
        return None if found is None else found[1]

    def value(self, lowest: int, budget_bytes: int) -> float | None:
        """The best value with this lowest layer; None: it does not fit, or is not allowed."""
        found = self._value(lowest, budget_bytes)
        return None if found is None else found / SCALE

    def items(self, lowest: int, budget_bytes: int) -> tuple[Item, ...]:
        """The items behind ``value``, which is not None."""
        target = self._value(lowest, budget_bytes)
        splits = [(item, self._splits(lowest, item, budget_bytes)) for item in self._starts(lowest)]
        start, split = next((item, split) for item, split in splits if split.size and split.max() == target)
        below = int(split.argmax())
        left = self._traced(self.off, below, range(lowest - 1, -1, -1), step=-1)[::-1]
        layers = range(lowest + 1, len(self.segment.layers))
        right = self._traced(self.free, len(split) - 1 - below, layers, step=1)
        return (*left, *([start] if start else []), *right)

    def least_bytes(self, lowest: int) -> int:
        """The smallest budget at which ``value`` with this lowest layer, which is allowed, is not None."""
        first = min(self._units(lowest, item) if item else 0 for item in self._starts(lowest))
        frozen = sum(min(self._units(layer, item) for item in self._frozen(layer)) for layer in range(lowest))
        return (self.segment.floor[lowest] or 0) + sum(self.segment.cheapest) + (first + frozen) * self.unit

    def _room(self, lowest: int, budget_bytes: int) -> int:
        """Units to give away: what every layer takes at least is no choice and set aside."""
        floor = self.segment.floor[lowest]
        if floor is None:
            return -1
        return min(self.width, (budget_bytes - floor - sum(self.segment.cheapest)) // self.unit)

    def _units(self, layer: int, item: Item) -> int:
        return math.ceil((item.bytes - self.segment.cheapest[layer]) / self.unit)

    def _frozen(self, layer: int) -> list[Item]:
        return [item for item in self.segment.layers[layer] if not item.rank]

    def _added(self, table_W: Ints, layer: int, items: Sequence[Item]) -> Ints:
        """The table with one more layer."""
        found = np.full_like(table_W, _NEVER)
        for item in items:
            cost = self._units(layer, item)
            if cost < len(table_W):
                np.maximum(found[cost:], table_W[: len(table_W) - cost] + _whole(item.value), out=found[cost:])
        found[found < _NEVER // 2] = _NEVER
        return found

    def _splits(self, lowest: int, item: Item | None, budget_bytes: int) -> Ints:
        """Values of giving 0, 1, … units to the frozen layers below and the rest to the free ones above."""
        left = self._room(lowest, budget_bytes) - (self._units(lowest, item) if item else 0)
        if left < 0:
            return np.empty(0, dtype=np.int64)
        above = self.free[min(lowest + 1, len(self.segment.layers))]
        found: Ints = self.off[lowest][: left + 1] + above[left::-1][: left + 1]
        return found + (_whole(item.value) if item else 0)

    def _starts(self, lowest: int) -> list[Item | None]:
        """What the lowest layer that trains may be."""
        if lowest == len(self.segment.layers):
            return [None]
        return [*sorted((item for item in self.segment.layers[lowest] if item.rank), key=_cheap)]

    def _value(self, lowest: int, budget_bytes: int) -> int | None:
        splits = [self._splits(lowest, item, budget_bytes) for item in self._starts(lowest)]
        top = max((int(split.max()) for split in splits if split.size), default=_NEVER)
        return top if top > _NEVER // 2 else None

    def _traced(self, tables: Sequence[Ints], room: int, layers: range, *, step: int) -> list[Item]:
        """The items that a table's entry is made of, layer by layer towards the empty table."""
        found: list[Item] = []
        full = tables[len(layers) if step < 0 else len(tables) - 1 - len(layers)]
        # The fewest units that give this value: tables never fall.
        room = int(np.searchsorted(full[: room + 1], full[room]))
        for layer in layers:
            here, rest = (layer + 1, layer) if step < 0 else (layer, layer + 1)
            choices = self._frozen(layer) if step < 0 else list(self.segment.layers[layer])
            choices.sort(key=_cheap)
            target = int(tables[here][room])
            for item in choices:
                cost = self._units(layer, item)
                if cost <= room and int(tables[rest][room - cost]) + _whole(item.value) == target:
                    found.append(item)
                    room -= cost
                    break
        return found


def _cheap(item: Item) -> tuple[int, int, int]:
    """The order in which items of equal value are taken."""
    return item.bytes, item.rank, item.bits


def _whole(value: float) -> int:
    return round(value * SCALE)


def _unit(segment: Segment, units: int) -> int:
    """Bytes of a unit, whatever the budget, so that less memory never gives more."""
    extra = [
        [item.bytes - cheapest for item in items]
        for items, cheapest in zip(segment.layers, segment.cheapest, strict=True)
    ]
    total = sum(max(row) for row in extra)
    common = math.gcd(*(cost for row in extra for cost in row))
    return common if common and total // common <= units else max(1, math.ceil(total / units))


def bound(segment: Segment, budget_bytes: int) -> float | None:
    """No choice within the budget is worth more: the linear relaxation of every case. None: nothing fits."""
    found = []
    for lowest, floor in enumerate(segment.floor):
        case = segment.case(lowest)
        if floor is not None and all(case):
            relaxed = _relaxed(case, budget_bytes - floor)
            found += [] if relaxed is None else [relaxed]
    return max(found, default=None)


def _relaxed(case: Sequence[Sequence[Item]], room: int) -> float | None:
    """Every class starts at its cheapest item; then the steepest steps of all hulls, the last one in part."""
    hulls = [_hull(items) for items in case]
    room -= sum(hull[0].bytes for hull in hulls)
    if room < 0:
        return None
    value = sum(hull[0].value for hull in hulls)
    steps = [(b.value - a.value, b.bytes - a.bytes) for hull in hulls for a, b in pairwise(hull)]
    for gain, cost in sorted(steps, key=lambda step: -step[0] / step[1]):
        if cost > room:
            return value + gain * room / cost
        value, room = value + gain, room - cost
    return value


def _hull(items: Sequence[Item]) -> list[Item]:
    """The items on the upper convex hull of value over bytes, the cheapest first, as far as value rises."""
    hull: list[Item] = []
    for item in sorted(items, key=lambda item: (item.bytes, -item.value)):
        if hull and item.value <= hull[-1].value:
            continue
        if hull and item.bytes == hull[-1].bytes:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], item):
            hull.pop()
        hull.append(item)
    return hull


def _slope(a: Item, b: Item) -> float:
    return (b.value - a.value) / (b.bytes - a.bytes)
